"""The network server's calls and its REST endpoints, in this process, on a tiny model."""

from __future__ import annotations

import atexit
import json
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from network_servers import MODEL, search_inputs, tiny_config, tiny_exporter, until
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_management_pb2,
    predict_pb2,
)

from fuzz.mutate import Mutator, message, mutate_text
from fuzz.target import Feed, Loop, Refused, Target, ThreadCall, parsed
from muprover.model.serving.batching import Batcher, BatchingOptions
from muprover.model.serving.manager import LoadOptions, Manager
from muprover.model.serving.metrics import Metrics
from muprover.model.serving.predict import ModelServicer, PredictionServicer, Predictor
from muprover.model.serving.rest import RestServer
from muprover.model.serving.versions import Loader
from muprover.serving_config import ModelSettings, VersionPolicy
from muprover.tensors import to_tensor_proto

SIZES = (1, 4)  # of batches; others are refused, as each would be compiled
RELOAD_SECONDS = 0.02
LOAD_SECONDS = 300.0


class Network:
    """What a network server consists of, but for its ports."""

    def __init__(self, folder: Path) -> None:
        models = folder / "models" / MODEL
        tiny_exporter(models, warmup_batch_sizes=SIZES).export(1)
        metrics = Metrics()
        options = BatchingOptions(max_rows=max(SIZES), num_threads=1, allowed_sizes=SIZES)
        self._batcher = Batcher(options, metrics)
        self.settings = [ModelSettings(MODEL, str(models), VersionPolicy("latest", 1))]
        loader = Loader(options.max_rows, options.allowed_sizes, metrics)
        self.manager = Manager(self.settings, loader, LoadOptions(poll_seconds=0), metrics)
        predictor = Predictor(self.manager, self._batcher, metrics, as_content=True)
        self.prediction, self.model = PredictionServicer(predictor), ModelServicer(self.manager)
        self.rest = RestServer(self.manager, predictor, metrics, ["/metrics"])
        self.manager.start()
        until(lambda: self.manager.is_ready, LOAD_SECONDS)

    def close(self) -> None:
        self.manager.stop()
        self._batcher.close()


@cache
def opened() -> Network:
    """One that lives as long as the process."""
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    network = Network(Path(folder.name))
    atexit.register(network.close)
    return network


def call(method: Callable[[Network], Any], kind: Any) -> Callable[[Path], Feed]:
    """Calls a method with a message."""

    def open_target(folder: Path) -> Feed:
        served = method(opened())

        def feed(data: bytes) -> None:
            for request in parsed(kind, [data]):
                with suppress(Refused):
                    served(request, ThreadCall(5.0)).SerializeToString()

        return feed

    return open_target


def open_reload(folder: Path) -> Feed:
    """What a request has done to the list of models is undone before the next one."""
    served = opened()
    store = str(Path(served.settings[0].base_path).parent)

    def feed(data: bytes) -> None:
        for request in parsed(model_management_pb2.ReloadConfigRequest, [data]):
            for entry in request.config.model_config_list.config:
                entry.base_path = entry.base_path.replace("/models", store)
            with suppress(Refused):
                served.model.HandleReloadConfigRequest(request, ReloadCall(RELOAD_SECONDS))
            served.manager.apply(served.settings)

    return feed


class ReloadCall(ThreadCall):
    """A call that may end with UNKNOWN, as the stock server's does: a model does not load."""

    def set_code(self, code: Any) -> None:
        assert code.name != "INTERNAL"


def open_rest(folder: Path) -> Feed:
    """A request as text: method and path on the first line, then the body."""
    served, run = opened(), Loop()

    async def ask(method: str, path: str, body: bytes) -> None:
        request = make_mocked_request(method, path)
        request._read_bytes = body  # as if it had been read
        try:
            answer = await served.rest._answer(request)
        except web.HTTPException:
            return
        assert answer.status not in (500, 405), answer.text
        json.loads(answer.text or "")

    def feed(data: bytes) -> None:
        line, _, body = data.partition(b"\n")
        method, _, path = line.decode("latin-1").partition(" ")
        if not path.startswith("/") or not method.isalpha():
            return  # no request: aiohttp's own parser refuses it
        try:
            make_mocked_request(method, path)
        except ValueError:
            return
        run(ask(method, path, body))

    return feed


@cache
def predictions() -> list[bytes]:
    """A search, what a version says of itself, and the network alone."""
    search = predict_pb2.PredictRequest(output_filter=["action", "action_weights", "value"])
    for name, array in search_inputs(rows=1, simulations=1)._asdict().items():
        search.inputs[name].ParseFromString(to_tensor_proto(array).SerializeToString())
    search.model_spec.signature_name = "search"
    about, infer = predict_pb2.PredictRequest(), predict_pb2.PredictRequest()
    about.model_spec.signature_name = "about"
    about.inputs["row"].dtype = 3
    about.inputs["row"].tensor_shape.dim.add(size=1)
    infer.model_spec.signature_name = "initial_inference"
    infer.inputs["observation"].CopyFrom(search.inputs["observation"])
    for request in (search, about, infer):
        request.model_spec.name = MODEL
    infer.model_spec.version.value = 1
    return [request.SerializeToString() for request in (search, about, infer)]


def metadata() -> list[bytes]:
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = MODEL
    return [request.SerializeToString()]


def statuses() -> list[bytes]:
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = MODEL
    one = request.SerializeToString()
    request.model_spec.version.value = 1
    return [one, request.SerializeToString()]


def reloads() -> list[bytes]:
    """Paths below `/models`, which stands for the folder of this run."""
    request = model_management_pb2.ReloadConfigRequest()
    models = request.config.model_config_list.config
    models.add(name=MODEL, base_path=f"/models/{MODEL}", model_platform="tensorflow")
    models.add(name="other", base_path="/models/other", model_platform="tensorflow")
    models[0].model_version_policy.latest.num_versions = 2
    models[0].version_labels["stable"] = 1
    return [request.SerializeToString()]


@cache
def rest_requests() -> list[bytes]:
    game = tiny_config().game
    row = {
        "observation": [0.5] * game.observation_shape[0],
        "legal_actions": [True] * game.num_actions,
        "seed": [1, 2],
        "num_simulations": 1,
        "temperature": 1.0,
        "exploration": 0.0,
    }
    columns = {name: [value] for name, value in row.items()}
    path = f"/v1/models/{MODEL}"
    return [
        f"GET {path}\n".encode(),
        f"GET {path}/versions/1/metadata\n".encode(),
        f"GET {path}/labels/stable\n".encode(),
        f"POST {path}:predict\n{json.dumps({'instances': [row]})}".encode(),
        f"POST {path}/versions/1:predict\n{json.dumps({'inputs': columns})}".encode(),
        f'POST {path}:predict\n{{"signature_name":"about","instances":[0]}}'.encode(),
    ]


def rest_mutator() -> Mutator:
    words = ("instances", "inputs", "signature_name", "b64", "predict", "metadata", "labels")
    return lambda data, rng: mutate_text(data, rng, (*words, "{", "}", "[", "]", "-0", "1e9", "%"))


def of(name: str, service: str, kind: Any, seeds: Callable[[], list[bytes]]) -> Target:
    def method(network: Network) -> Any:
        return getattr(getattr(network, service), name)

    return Target(f"network.{name}", call(method, kind), seeds, message(kind))


Predict = predict_pb2.PredictRequest
TARGETS = [
    of("Predict", "prediction", Predict, predictions),
    of(
        "GetModelMetadata",
        "prediction",
        get_model_metadata_pb2.GetModelMetadataRequest,
        metadata,
    ),
    of("GetModelStatus", "model", get_model_status_pb2.GetModelStatusRequest, statuses),
    Target(
        "network.HandleReloadConfigRequest",
        open_reload,
        reloads,
        message(model_management_pb2.ReloadConfigRequest),
        0.2,
    ),
    Target("network.REST", open_rest, rest_requests, rest_mutator()),
]
