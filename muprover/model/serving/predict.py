"""gRPC: `PredictionService` and `ModelService`, code for code as TensorFlow Serving answers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from typing import Any, NamedTuple

import grpc
from numpy.typing import NDArray
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from muprover.model.serving.batching import Batcher
from muprover.model.serving.codec import decode, encode
from muprover.model.serving.errors import ServingError, as_serving_error, refuse
from muprover.model.serving.manager import Manager
from muprover.model.serving.metrics import Metrics
from muprover.model.serving.versions import LoadedVersion
from muprover.serving_config import model_settings

log = logging.getLogger(__name__)

Array = NDArray[Any]

PREDICTION_SERVICE = "tensorflow.serving.PredictionService"
MODEL_SERVICE = "tensorflow.serving.ModelService"
DEFAULT_SIGNATURE = "serving_default"
RELOAD_SECONDS = 600.0  # at most

_INVALID = grpc.StatusCode.INVALID_ARGUMENT


class Query(NamedTuple):
    """A request, checked against the version that is to answer it."""

    version: LoadedVersion
    signature: str
    inputs: dict[str, Array]
    outputs: list[str]


class Predictor:
    """Answers predictions, whatever protocol they came by."""

    def __init__(
        self, manager: Manager, batcher: Batcher, metrics: Metrics, as_content: bool = False
    ) -> None:
        self._manager = manager
        self._batcher = batcher
        self._metrics = metrics
        self._as_content = as_content

    def resolve(self, request: Any) -> LoadedVersion:
        """The version that a request's `model_spec` means."""
        if not request.HasField("model_spec"):
            refuse(_INVALID, "Missing ModelSpec")
        spec = request.model_spec
        version = spec.version.value if spec.HasField("version") else None
        return self._manager.get(spec.name, version, spec.version_label)

    def predict(
        self,
        request: predict_pb2.PredictRequest,
        timeout: float | None,
        when_lost: Callable[[Callable[[], Any]], bool],
    ) -> predict_pb2.PredictResponse:
        """Waits for the answer, at most `timeout` seconds; raises `ServingError`.

        when_lost: remembers what to call if the caller goes away (False: it has).
        """
        with self._counted(request, "GRPC"):
            query = self._check(request)
            future = self._submit(query, timeout, helps=True)
            if not when_lost(future.cancel):
                future.cancel()
            self._batcher.help()
            return self._response(request.model_spec.name, query, future.result())

    async def predict_soon(
        self, request: predict_pb2.PredictRequest
    ) -> predict_pb2.PredictResponse:
        """The same on the event loop, for REST; raises `ServingError`."""
        with self._counted(request, "REST"):
            query = self._check(request)
            outputs = await asyncio.wrap_future(self._submit(query, None))
            return self._response(request.model_spec.name, query, outputs)

    def _submit(
        self, query: Query, timeout: float | None, helps: bool = False
    ) -> Future[dict[str, Array]]:
        """The outputs of a query by name, later."""
        deadline = None if timeout is None else time.monotonic() + timeout
        function = query.version.program.function(query.signature)
        return self._batcher.submit(
            query.version, function, query.inputs, query.outputs, deadline, helps
        )

    @contextlib.contextmanager
    def _counted(self, request: predict_pb2.PredictRequest, entrypoint: str) -> Iterator[None]:
        """Counts a prediction by how it ends; what goes wrong becomes a `ServingError`."""
        began, status = time.perf_counter(), "OK"
        try:
            yield
        except Exception as error:
            refusal = as_serving_error(error)
            status = refusal.code.name
            if refusal.code is grpc.StatusCode.INTERNAL:
                log.exception("prediction failed")
            raise refusal from None
        finally:
            model = request.model_spec.name if status == "OK" else ""  # names from outside: no
            self._metrics.count_request(model, status, entrypoint, time.perf_counter() - began)

    def _check(self, request: predict_pb2.PredictRequest) -> Query:
        version = self.resolve(request)
        signature = request.model_spec.signature_name or DEFAULT_SIGNATURE
        definition = version.program.signature_defs.get(signature)
        if definition is None:
            refuse(
                grpc.StatusCode.FAILED_PRECONDITION,
                f'Serving signature key "{signature}" not found.',
            )
        specs = version.program.inputs[signature]
        _check_names(set(request.inputs), set(specs))
        inputs = {
            name: decode(tensor, specs[name], self._batcher.max_rows)
            for name, tensor in request.inputs.items()
        }
        if version.program.function(signature).sizes is not None:
            _check_rows(inputs)
        return Query(version, signature, inputs, _outputs(request, definition))

    def _response(
        self, model: str, query: Query, outputs: Mapping[str, Array]
    ) -> predict_pb2.PredictResponse:
        response = predict_pb2.PredictResponse()
        response.model_spec.name = model
        response.model_spec.version.value = query.version.number
        response.model_spec.signature_name = query.signature
        for name, array in outputs.items():
            response.outputs[name].CopyFrom(encode(array, self._as_content))
        return response


class PredictionServicer(prediction_service_pb2_grpc.PredictionServiceServicer):  # type: ignore[misc]
    """`tensorflow.serving.PredictionService`: Predict and GetModelMetadata."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor

    def Predict(self, request: Any, context: Any) -> Any:
        try:
            return self._predictor.predict(request, context.time_remaining(), context.add_callback)
        except ServingError as error:
            context.abort(error.code, error.details)

    def GetModelMetadata(self, request: Any, context: Any) -> Any:
        try:
            return get_metadata(self._predictor, request)
        except ServingError as error:
            context.abort(error.code, error.details)

    def Classify(self, request: Any, context: Any) -> Any:
        _unimplemented("Classify", context)

    def Regress(self, request: Any, context: Any) -> Any:
        _unimplemented("Regress", context)

    def MultiInference(self, request: Any, context: Any) -> Any:
        _unimplemented("MultiInference", context)

    def PredictStreamed(self, request_iterator: Any, context: Any) -> Any:
        _unimplemented("PredictStreamed", context)


class ModelServicer(model_service_pb2_grpc.ModelServiceServicer):  # type: ignore[misc]
    """`tensorflow.serving.ModelService`: what is served, and a change of that."""

    def __init__(self, manager: Manager) -> None:
        self._manager = manager

    def GetModelStatus(self, request: Any, context: Any) -> Any:
        try:
            return get_status(self._manager, request)
        except ServingError as error:
            context.abort(error.code, error.details)

    def HandleReloadConfigRequest(self, request: Any, context: Any) -> Any:
        """The response tells what went wrong, and the call fails with the same code."""
        remaining = context.time_remaining()
        timeout = RELOAD_SECONDS if remaining is None else min(remaining, RELOAD_SECONDS)
        response = model_management_pb2.ReloadConfigResponse()
        try:
            if request.config.WhichOneof("config") != "model_config_list":
                refuse(
                    _INVALID,
                    "ServerModelConfig type not supported by HandleReloadConfigRequest."
                    " Only ModelConfigList is currently supported",
                )
            _check_platforms(request.config)
            models = model_settings(request.config)
            self._manager.reload(models, timeout)
        except Exception as error:
            refusal = as_serving_error(error)
            log.error("configuration not reloaded: %s", refusal)
            response.status.error_code = refusal.number
            response.status.error_message = refusal.details
            context.set_code(refusal.code)
            context.set_details(refusal.details)
        return response


def get_metadata(predictor: Predictor, request: Any) -> Any:
    """`GetModelMetadata`; raises `ServingError`."""
    if not request.HasField("model_spec"):
        refuse(_INVALID, "Missing ModelSpec")
    if not request.metadata_field:
        refuse(_INVALID, "GetModelMetadataRequest must specify at least one metadata_field")
    for name in request.metadata_field:
        if name != "signature_def":
            refuse(_INVALID, f"Metadata field {name} is not supported")
    version = predictor.resolve(request)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    for name, definition in version.program.signature_defs.items():
        signatures.signature_def[name].CopyFrom(definition)
    response = get_model_metadata_pb2.GetModelMetadataResponse()
    response.model_spec.name = request.model_spec.name
    response.model_spec.version.value = version.number
    response.metadata["signature_def"].Pack(signatures)
    return response


def get_status(manager: Manager, request: Any) -> Any:
    """`GetModelStatus`; raises `ServingError`."""
    if not request.HasField("model_spec"):
        refuse(_INVALID, "Missing ModelSpec")
    spec = request.model_spec
    version = spec.version.value if spec.HasField("version") else None
    response = get_model_status_pb2.GetModelStatusResponse()
    for status in manager.statuses(spec.name, version):
        entry = response.model_version_status.add(version=status.version, state=int(status.state))
        entry.status.error_code = status.error.number if status.error else 0
        entry.status.error_message = status.error.details if status.error else ""
    return response


def _check_names(given: set[str], expected: set[str]) -> None:
    extra, missing = sorted(given - expected), sorted(expected - given)
    if len(given) != len(expected):
        refuse(
            _INVALID,
            f"input size does not match signature: {len(given)}!={len(expected)} "
            f"len({{{','.join(sorted(given))}}}) != len({{{','.join(sorted(expected))}}}). "
            f"Sent extra: {{{','.join(extra)}}}. Missing but required: {{{','.join(missing)}}}.",
        )
    if extra:
        refuse(
            _INVALID,
            f"input tensor alias not found in signature: {extra[0]}. Inputs expected to be in the "
            f"set {{{','.join(sorted(expected))}}}.",
        )


def _check_rows(inputs: Mapping[str, Array]) -> None:
    sizes = {len(array) for array in inputs.values()}
    if len(sizes) != 1 or 0 in sizes:
        refuse(
            _INVALID,
            "Batching Run() input tensors must have equal 0th-dimension size, above 0; given "
            + ", ".join(f"{name}: {len(array)}" for name, array in sorted(inputs.items())),
        )


def _outputs(request: predict_pb2.PredictRequest, definition: Any) -> list[str]:
    """The outputs that a request wants: by default all."""
    wanted = list(request.output_filter)
    for i, name in enumerate(wanted):
        if name not in definition.outputs:
            refuse(
                _INVALID,
                f"output tensor alias not found in signature: {name} Outputs expected to be in "
                f"the set {{{','.join(sorted(definition.outputs))}}}.",
            )
        if name in wanted[:i]:
            refuse(_INVALID, f"duplicate output tensor alias: {name}")
    return wanted or sorted(definition.outputs)


def _check_platforms(config: Any) -> None:
    for entry in config.model_config_list.config:
        if not entry.model_platform and not entry.model_type:
            refuse(_INVALID, "Illegal setting neither model_type(deprecated) nor model_platform.")
        if entry.model_platform not in ("", "tensorflow"):
            refuse(
                grpc.StatusCode.FAILED_PRECONDITION,
                "Cannot transition to requested model platform. It is only legal to transition to "
                "the same model platform.",
            )


def _unimplemented(method: str, context: Any) -> None:
    context.abort(
        grpc.StatusCode.UNIMPLEMENTED, f"{method} is not for models of MuProver; use Predict"
    )
