"""REST: TensorFlow Serving's HTTP endpoints for status, metadata and predictions, and metrics."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import unquote

import grpc
import numpy as np
import tensorflow as tf
from aiohttp import web
from google.protobuf import json_format
from numpy.typing import NDArray
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_pb2,
    predict_pb2,
)

from muprover.model.serving.codec import encode
from muprover.model.serving.command import listen
from muprover.model.serving.errors import HTTP_STATUS, as_serving_error, refuse
from muprover.model.serving.manager import Manager
from muprover.model.serving.metrics import Metrics
from muprover.model.serving.predict import (
    DEFAULT_SIGNATURE,
    Predictor,
    get_metadata,
    get_status,
)
from muprover.services.doors import TlsContext, warn_if_open
from muprover.services.locks import in_use
from muprover.services.server import MAX_MESSAGE_BYTES
from muprover.tensors import from_tensor_proto

log = logging.getLogger(__name__)

Array = NDArray[Any]

_MODEL = r"/v1/models/(?P<name>[^/:]+)(?:/versions/(?P<version>\d+)|/labels/(?P<label>[^/:]+))?"
_PREDICT = re.compile(rf"{_MODEL}:(?P<method>classify|regress|predict)", re.IGNORECASE)
_STATUS = re.compile(rf"{_MODEL}(?P<metadata>/metadata)?", re.IGNORECASE)
_LARGEST_VERSION = (1 << 63) - 1
_INVALID = grpc.StatusCode.INVALID_ARGUMENT


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
        refuse(_INVALID, f"Malformed request: {request.method} {request.path}")

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
        outputs = {name: _decode(name, tensor) for name, tensor in response.outputs.items()}
        return await asyncio.to_thread(_format, outputs, is_row_format)

    def _parse(
        self, spec: model_pb2.ModelSpec, body: bytes
    ) -> tuple[predict_pb2.PredictRequest, bool]:
        """The request that a JSON body stands for, and whether it has the row format."""
        document = _read_json(body)
        signature = document.get("signature_name", "")
        if not isinstance(signature, str):
            refuse(
                _INVALID,
                f"JSON Value: {_shown(document)} not formatted correctly. 'signature_name' key "
                "must be a string value.",
            )
        request = predict_pb2.PredictRequest(model_spec=spec)
        request.model_spec.signature_name = signature
        definitions = self._predictor.resolve(request).program.signature_defs
        name = signature or DEFAULT_SIGNATURE
        if name not in definitions:
            refuse(_INVALID, f'Serving signature name: "{name}" not found in signature def')
        infos = definitions[name].inputs
        is_row_format = _is_row_format(document)
        read = _read_instances if is_row_format else _read_inputs
        columns = read(document["instances" if is_row_format else "inputs"], infos)
        for alias, array in columns.items():
            request.inputs[alias].CopyFrom(encode(array, as_content=True))
        return request, is_row_format


def _read_json(body: bytes) -> dict[str, Any]:
    if not body:
        refuse(_INVALID, "JSON Parse error: The document is empty")
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        offset = getattr(error, "pos", 0)
        reason = getattr(error, "msg", None) or str(error)
        refuse(_INVALID, f"JSON Parse error: {reason} at offset: {offset}")
    if not isinstance(document, dict):
        refuse(_INVALID, f"JSON Value: {_shown(document)} Is not object")
    return document


def _is_row_format(document: Mapping[str, Any]) -> bool:
    """Whether there are `instances`, or else `inputs`."""
    if "instances" not in document and "inputs" not in document:
        refuse(_INVALID, "Missing 'inputs' or 'instances' key")
    if "instances" not in document:
        return False
    instances, shown = document["instances"], _shown(document)
    if "inputs" in document:
        refuse(
            _INVALID,
            f"JSON Value: {shown} Not formatted correctly expecting only one of 'inputs' or "
            "'instances' keys to exist ",
        )
    if not isinstance(instances, list):
        refuse(_INVALID, f"JSON Value: {shown} Excepting 'instances' to be an list/array")
    if not instances:
        refuse(_INVALID, f"JSON Value: {shown} No values in 'instances' array")
    return True


def _read_instances(instances: list[Any], infos: Mapping[str, Any]) -> dict[str, Array]:
    """A list of objects with a value for each input, or of values for the only one."""
    names = sorted(infos)
    if not _is_object(instances[0]):
        if len(names) > 1:
            refuse(
                _INVALID,
                "instances is a plain list, but expecting list of objects as multiple input "
                "tensors required as per tensorinfo_map",
            )
        for i, item in enumerate(instances):
            if _is_object(item):
                refuse(_INVALID, f"Expecting value/list but got object at item {i} of input list")
        return {names[0]: _to_array(names[0], instances, infos[names[0]])}
    for i, item in enumerate(instances):
        if not _is_object(item):
            refuse(_INVALID, f"Expecting object but got list at item {i} of input list")
        unknown = sorted(set(item) - set(names))
        if unknown:
            refuse(
                _INVALID,
                f"Failed to process element: {i} key: {unknown[0]} of 'instances' list. Error: "
                f"INVALID_ARGUMENT: JSON object: does not have named input: {unknown[0]}",
            )
        if len(item) < len(names):
            refuse(
                _INVALID,
                f"Failed to process element: {i} of 'instances' list. JSON object: {_shown(item)} "
                f"keys must be equal to: {','.join(names)}",
            )
    return {
        name: _to_array(name, [item[name] for item in instances], infos[name]) for name in names
    }


def _read_inputs(inputs: Any, infos: Mapping[str, Any]) -> dict[str, Array]:
    """An object with a list for each input, or a list for the only one."""
    names = sorted(infos)
    if not _is_object(inputs):
        if len(names) > 1:
            refuse(
                _INVALID,
                "inputs is a plain value/list, but expecting an object as multiple input tensors "
                "required as per tensorinfo_map",
            )
        return {names[0]: _to_array(names[0], inputs, infos[names[0]])}
    for name in names:
        if name not in inputs:
            refuse(_INVALID, f"Missing named input: {name} in 'inputs' object.")
    return {name: _to_array(name, inputs[name], infos[name]) for name in names}


def _to_array(name: str, value: Any, info: Any) -> Array:
    """The array that nested lists stand for, of the input's type."""
    dtype = tf.dtypes.as_dtype(info.dtype)
    if dtype == tf.string:
        return np.array(_map_leaves(value, _to_bytes), object)
    types = _python_types(dtype)
    _map_leaves(value, lambda leaf: _check_leaf(leaf, types, dtype))
    try:
        array = np.array(value)
    except (ValueError, OverflowError):
        refuse(_INVALID, f"{name}: Encountered list at unexpected size or level")
    try:
        converted: Array = array.astype(dtype.as_numpy_dtype)
    except (ValueError, OverflowError):
        refuse(_INVALID, f"{name}: a number does not fit into {dtype.name}")
    if dtype.is_integer and not (converted == array).all():
        refuse(_INVALID, f"{name}: a number does not fit into {dtype.name}")
    return converted


def _python_types(dtype: tf.DType) -> tuple[type, ...]:
    """Of JSON values that an element of a tensor may be."""
    if dtype == tf.bool:
        return (bool,)
    return (int,) if dtype.is_integer else (int, float)


def _check_leaf(leaf: Any, types: tuple[type, ...], dtype: tf.DType) -> None:
    if type(leaf) in types:
        return
    names = {bool: str(leaf), str: "String", dict: "Object", type(None): "Null"}
    refuse(
        _INVALID,
        f"JSON Value: {_shown(leaf)} Type: {names.get(type(leaf), 'Number')} "
        f"is not of expected type: {dtype.name}",
    )


def _to_bytes(leaf: Any) -> bytes:
    if isinstance(leaf, str):
        return leaf.encode()
    if _is_base64(leaf):
        try:
            return base64.b64decode(leaf["b64"], validate=True)
        except (binascii.Error, ValueError):
            refuse(_INVALID, "Unable to base64 decode")
    refuse(_INVALID, f"JSON Value: {_shown(leaf)} not formatted correctly for base64 data")


def _map_leaves(value: Any, function: Callable[[Any], Any]) -> Any:
    if isinstance(value, list):
        return [_map_leaves(item, function) for item in value]
    return function(value)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict) and not _is_base64(value)


def _is_base64(value: Any) -> bool:
    return isinstance(value, dict) and set(value) == {"b64"} and isinstance(value["b64"], str)


def _decode(name: str, tensor: Any) -> Array:
    if tensor.string_val:
        array: Array = tf.make_ndarray(tensor)
        return array
    return from_tensor_proto(tensor, name)


def _format(outputs: Mapping[str, Array], is_row_format: bool) -> str:
    """The JSON of some outputs: an object for each row, or a list for each output; names are left
    out where there is only one output."""
    columns = {name: _plain(array) for name, array in outputs.items()}
    [first, *others] = columns.values()
    if not is_row_format:
        return json.dumps({"outputs": columns if others else first}, indent=4)
    if others:
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        return json.dumps({"predictions": rows}, indent=4)
    return json.dumps({"predictions": first}, indent=4)


def _plain(array: Array) -> Any:
    """Nested lists; numbers as short as their type allows."""
    if array.dtype == np.float32:
        return array.astype("U").astype(np.float64).tolist()
    if array.dtype == object:
        return _map_leaves(array.tolist(), _to_text)
    return array.tolist()


def _to_text(data: bytes) -> Any:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return {"b64": base64.b64encode(data).decode()}


def _model_spec(match: re.Match[str]) -> model_pb2.ModelSpec:
    spec = model_pb2.ModelSpec(name=unquote(match["name"]))
    if match["version"]:
        version = int(match["version"])
        if version > _LARGEST_VERSION:
            refuse(_INVALID, f"Failed to convert version: {version} to numeric.")
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


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else text[:200] + "…"
