"""REST: TensorFlow Serving's HTTP endpoints for status, metadata and predictions, and metrics."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import unquote

import grpc
from aiohttp import web
from google.protobuf import json_format
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_pb2,
    predict_pb2,
)

from muprover.model.serving.codec import encode
from muprover.model.serving.errors import HTTP_STATUS, as_serving_error, refuse
from muprover.model.serving.flags import listen
from muprover.model.serving.manager import Manager
from muprover.model.serving.metrics import Metrics
from muprover.model.serving.predict import (
    DEFAULT_SIGNATURE,
    Predictor,
    get_metadata,
    get_status,
)
from muprover.model.serving.rest_json import (
    INVALID,
    format_outputs,
    read_columns,
    read_json,
    read_tensor,
    signature_name,
)
from muprover.services.common import MAX_MESSAGE_BYTES
from muprover.services.doors import TlsContext, warn_if_open
from muprover.services.locks import in_use

log = logging.getLogger(__name__)

_MODEL = r"/v1/models/(?P<name>[^/:]+)(?:/versions/(?P<version>\d+)|/labels/(?P<label>[^/:]+))?"
_PREDICT = re.compile(rf"{_MODEL}:(?P<method>classify|regress|predict)", re.IGNORECASE)
_STATUS = re.compile(rf"{_MODEL}(?P<metadata>/metadata)?", re.IGNORECASE)
_LARGEST_VERSION = (1 << 63) - 1


class RestServer:
    """Answers HTTP on one port. With `only_tells` it answers no predictions and has no locks but
    TLS: Prometheus and the API server of a cluster, which read it, carry none of its keys."""

    def __init__(
        self,
        manager: Manager,
        predictor: Predictor,
        metrics: Metrics,
        metrics_paths: Sequence[str],
        only_tells: bool = False,
    ) -> None:
        self._locks = in_use()
        self._only_tells = only_tells
        self._manager = manager
        self._predictor = predictor
        self._metrics = metrics
        asks: list[Any] = [] if only_tells or self._locks.tokens is None else [self._ask_for_token]
        app = web.Application(client_max_size=MAX_MESSAGE_BYTES, middlewares=asks)
        for path in dict.fromkeys(metrics_paths):
            app.router.add_get(path, self._get_metrics)
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=5)
        self.port = 0

    async def start(self, host: str, port: int, option: str) -> None:
        """Listens; raises `PortError`, naming the command's option, if it cannot."""
        await self._runner.setup()
        listener = listen(host, port, option)
        await web.SockSite(self._runner, listener, ssl_context=self._tls()).start()
        self.port = int(listener.getsockname()[1])
        if not self._only_tells:
            warn_if_open(host, self.port, self._locks)

    async def stop(self) -> None:
        await self._runner.cleanup()

    def _tls(self) -> TlsContext | None:
        if self._locks.tls is None:
            return None
        checked = self._locks.asks_for_certificates and not self._only_tells
        return TlsContext.of(self._locks, checked)

    @web.middleware
    async def _ask_for_token(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if refusal := self._locks.refusal_of(request.headers.get("Authorization")):
            return _json_response(json.dumps({"error": refusal}), 401)
        response: web.StreamResponse = await handler(request)
        return response

    async def _get_metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=self._metrics.render(), content_type="text/plain", charset="utf-8")

    async def _answer(self, request: web.Request) -> web.Response:
        try:
            text = await self._dispatch(request)
        except web.HTTPRequestEntityTooLarge:
            raise
        except Exception as error:
            refusal = as_serving_error(error)
            if refusal.code is grpc.StatusCode.INTERNAL:
                log.exception("%s %s failed", request.method, request.path)
            status = HTTP_STATUS.get(refusal.code, 500)
            return _json_response(json.dumps({"error": str(refusal)}), status)
        return _json_response(text)

    async def _dispatch(self, request: web.Request) -> str:
        path = request.rel_url.raw_path
        is_prediction = request.method == "POST" and not self._only_tells
        if is_prediction and (match := _PREDICT.fullmatch(path)):
            if match["method"].lower() != "predict":
                refuse(grpc.StatusCode.UNIMPLEMENTED, f"{match['method']}: use predict")
            return await self._predict(_model_spec(match), await request.read())
        if request.method == "GET" and (match := _STATUS.fullmatch(path)):
            read = self._get_metadata if match["metadata"] else self._get_status
            return read(_model_spec(match))
        refuse(INVALID, f"Malformed request: {request.method} {request.path}")

    def _get_status(self, spec: model_pb2.ModelSpec) -> str:
        request = get_model_status_pb2.GetModelStatusRequest(model_spec=spec)
        return _to_json(get_status(self._manager, request))

    def _get_metadata(self, spec: model_pb2.ModelSpec) -> str:
        request = get_model_metadata_pb2.GetModelMetadataRequest(
            model_spec=spec, metadata_field=["signature_def"]
        )
        response = get_metadata(self._predictor, request)
        signatures = get_model_metadata_pb2.SignatureDefMap()
        response.metadata["signature_def"].Unpack(signatures)
        return (
            f'{{\n"model_spec":{_to_json(response.model_spec)},\n'
            f'"metadata": {{"signature_def": {_to_json(signatures)}}}\n}}\n'
        )

    async def _predict(self, spec: model_pb2.ModelSpec, body: bytes) -> str:
        request, is_row_format = await asyncio.to_thread(self._parse, spec, body)
        response = await self._predictor.predict_soon(request)
        outputs = {name: read_tensor(name, tensor) for name, tensor in response.outputs.items()}
        return await asyncio.to_thread(format_outputs, outputs, is_row_format)

    def _parse(
        self, spec: model_pb2.ModelSpec, body: bytes
    ) -> tuple[predict_pb2.PredictRequest, bool]:
        """The request that a JSON body stands for, and whether it has the row format."""
        document = read_json(body)
        request = predict_pb2.PredictRequest(model_spec=spec)
        request.model_spec.signature_name = signature_name(document)
        definitions = self._predictor.resolve(request).program.signature_defs
        name = request.model_spec.signature_name or DEFAULT_SIGNATURE
        if name not in definitions:
            refuse(INVALID, f'Serving signature name: "{name}" not found in signature def')
        columns, is_row_format = read_columns(document, definitions[name].inputs)
        for alias, array in columns.items():
            request.inputs[alias].CopyFrom(encode(array, as_content=True))
        return request, is_row_format


def _model_spec(match: re.Match[str]) -> model_pb2.ModelSpec:
    spec = model_pb2.ModelSpec(name=unquote(match["name"]))
    if match["version"]:
        version = int(match["version"])
        if version > _LARGEST_VERSION:
            refuse(INVALID, f"Failed to convert version: {version} to numeric.")
        spec.version.value = version
    elif match["label"]:
        spec.version_label = unquote(match["label"])
    return spec


def _to_json(message: Any) -> str:
    text: str = json_format.MessageToJson(
        message,
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=True,
        indent=1,
    )
    return text


def _json_response(text: str, status: int = 200) -> web.Response:
    return web.Response(text=text, status=status, content_type="application/json")
