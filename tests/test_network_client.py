"""The network server's client against a small server of its protocol, without TensorFlow."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest

from muprover.config import Config, GameConfig, SearchConfig
from muprover.policy import SearchInputs
from muprover.services.client import ContractError, ServiceError
from muprover.services.network import (
    RemoteNetwork,
    VersionGoneError,
    VersionStatus,
    remote_search_policy,
)
from muprover.tensors import from_tensor_proto, to_tensor_proto
from muprover.v1 import serving_pb2

ACTIONS, ROWS = 3, 2
CONFIG = Config(
    game=GameConfig(name="tiny", observation_shape=(4,), num_actions=ACTIONS, max_moves=9),
    search=SearchConfig(variant="muzero", num_simulations=4),
)
Handler = Callable[[Any, grpc.ServicerContext], Any]


class FakeServer:
    """TensorFlow Serving with versions whose hidden states are the version itself.

    A version that is given the hidden state of another one notes that as a mix-up.
    """

    def __init__(self, contract: dict[str, str] | None = None) -> None:
        self.versions = [1]
        self.contract = CONFIG.contract if contract is None else contract
        self.observation_shape = [4]
        self.mixed: list[int] = []
        self.calls: list[str] = []
        self.before: Callable[[str], None] = lambda signature: None
        self.typed_fields = False

    def predict(self, request: Any, context: grpc.ServicerContext) -> Any:
        signature = request.model_spec.signature_name
        self.calls.append(signature)
        self.before(signature)
        version = self._version(request.model_spec, context)
        inputs = {name: from_tensor_proto(t, name) for name, t in request.inputs.items()}
        answer = serving_pb2.PredictResponse()
        answer.model_spec.version.value = version
        if signature == "about":
            answer.outputs["contract"].string_val.append(json.dumps(self.contract).encode())
            self._put(answer, "training_step", np.array([version * 100]))
            return answer
        outputs = self._search(inputs) if signature == "search" else self._infer(inputs, version)
        for name in request.output_filter:
            self._put(answer, name, outputs[name])
        return answer

    def metadata(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._version(request.model_spec, context)
        signatures = serving_pb2.SignatureDefMap()
        search = signatures.signature_def["search"]
        shapes = {"observation": self.observation_shape, "legal_actions": [ACTIONS]}
        for name, shape in shapes.items():
            for size in (-1, *shape):
                search.inputs[name].tensor_shape.dim.add(size=size)
        answer = serving_pb2.GetModelMetadataResponse()
        answer.metadata["signature_def"].value = signatures.SerializeToString()
        return answer

    def status(self, request: Any, context: grpc.ServicerContext) -> Any:
        answer = serving_pb2.GetModelStatusResponse()
        broken = answer.model_version_status.add(version=9, state=50)
        broken.status.error_code, broken.status.error_message = 15, "damaged"
        answer.model_version_status.add(version=1, state=30)
        return answer

    def _version(self, spec: Any, context: grpc.ServicerContext) -> int:
        wanted = spec.version.value if spec.HasField("version") else None
        if not self.versions or (wanted is not None and wanted not in self.versions):
            context.abort(grpc.StatusCode.NOT_FOUND, "Servable not found for request: …")
        return max(self.versions) if wanted is None else int(wanted)

    def _infer(self, inputs: dict[str, Any], version: int) -> dict[str, Any]:
        given = inputs.get("hidden_state")
        if given is not None and (given != version).any():
            self.mixed.append(version)
        rows = len(next(iter(inputs.values())))
        return {
            "hidden_state": np.full((rows, 5), version, np.float32),
            "reward": np.zeros(rows, np.float32),
            "value": np.full(rows, 0.5, np.float32),
            "policy_logits": np.zeros((rows, ACTIONS), np.float32),
        }

    def _search(self, inputs: dict[str, Any]) -> dict[str, Any]:
        weights = inputs["legal_actions"] / inputs["legal_actions"].sum(-1, keepdims=True)
        return {
            "action": weights.argmax(-1).astype(np.int32),
            "action_weights": weights.astype(np.float32),
            "value": inputs["observation"].sum(-1),
            "visit_counts": np.ones(weights.shape, np.int32),
            "q_values": np.zeros(weights.shape, np.float32),
            "prior": weights.astype(np.float32),
            "principal_variation": np.full((len(weights), 4), -1, np.int32),
        }

    def _put(self, answer: Any, name: str, array: Any) -> None:
        message = to_tensor_proto(array)
        if self.typed_fields:
            message.ClearField("tensor_content")
            field = {"f": "float_val", "i": "int_val"}[array.dtype.kind]
            values = array.ravel().tolist()
            while len(values) > 1 and values[-1] == values[-2]:
                values.pop()  # the last stands for all that follow
            getattr(message, field).extend(values)
        answer.outputs[name].CopyFrom(message)


@contextlib.contextmanager
def serving(fake: FakeServer, port: int = 0) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(8))
    methods = {
        "/tensorflow.serving.PredictionService/Predict": (
            fake.predict,
            serving_pb2.PredictRequest,
        ),
        "/tensorflow.serving.PredictionService/GetModelMetadata": (
            fake.metadata,
            serving_pb2.GetModelMetadataRequest,
        ),
        "/tensorflow.serving.ModelService/GetModelStatus": (
            fake.status,
            serving_pb2.GetModelStatusRequest,
        ),
    }

    class Handlers(grpc.GenericRpcHandler):
        def service(self, details: Any) -> Any:
            if details.method not in methods:
                return None
            function, request = methods[details.method]
            return grpc.unary_unary_rpc_method_handler(
                function, request.FromString, lambda answer: answer.SerializeToString()
            )

    server.add_generic_rpc_handlers((Handlers(),))
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    try:
        yield f"127.0.0.1:{bound}"
    finally:
        server.stop(0).wait()


@pytest.fixture
def fake() -> FakeServer:
    return FakeServer()


@pytest.fixture
def network(fake: FakeServer) -> Iterator[RemoteNetwork]:
    with serving(fake) as address, contextlib.closing(connect(address)) as network:
        yield network


def connect(address: str, **options: Any) -> RemoteNetwork:
    return RemoteNetwork(address, "tiny", CONFIG, **{"patience": 20.0} | options)


def inputs(legal: Any = ((1, 1, 0), (0, 0, 1))) -> SearchInputs:
    return SearchInputs(
        observation=np.arange(ROWS * 4, dtype=np.float32).reshape(ROWS, 4),
        legal_actions=np.array(legal, bool),
        seed=np.zeros((ROWS, 2), np.int32),
        num_simulations=np.full(ROWS, 4, np.int32),
        temperature=np.ones(ROWS, np.float32),
        exploration=np.zeros(ROWS, np.float32),
    )


@pytest.mark.parametrize("typed_fields", [False, True])
def test_a_search_is_one_call_in_either_encoding(
    fake: FakeServer, network: RemoteNetwork, typed_fields: bool
) -> None:
    fake.typed_fields = typed_fields
    output = network.policy(inputs())
    assert output.action.tolist() == [0, 2]
    assert output.action_weights.tolist() == [[0.5, 0.5, 0], [0, 0, 1]]
    assert output.value.tolist() == [6, 22]
    assert (output.version, output.visit_counts) == (1, None)
    assert fake.calls == ["search"]


def test_details_come_when_asked_for(network: RemoteNetwork) -> None:
    output = network.policy(inputs(), details=True)
    assert output.visit_counts is not None
    assert output.visit_counts.shape == (ROWS, ACTIONS)
    assert output.principal_variation is not None
    assert output.principal_variation.tolist() == [[-1] * 4] * 2


def test_two_groups_of_games_can_be_searched_at_once(
    fake: FakeServer, network: RemoteNetwork
) -> None:
    together = threading.Barrier(2, timeout=10)
    fake.before = lambda _: together.wait() and None
    with ThreadPoolExecutor(2) as threads:
        for output in threads.map(network.policy, [inputs(), inputs()]):
            assert output.action.tolist() == [0, 2]


def test_a_search_by_one_version_ends_with_it(network: RemoteNetwork) -> None:
    assert network.policy(inputs(), version=1).version == 1
    began = time.monotonic()
    with pytest.raises(VersionGoneError):
        network.policy(inputs(), version=7)
    assert time.monotonic() - began < 5


def test_a_search_in_the_agent_keeps_to_one_version(
    fake: FakeServer, network: RemoteNetwork
) -> None:
    """Versions with incompatible hidden states, swapped in mid-search."""

    def swap(signature: str) -> None:
        if signature == "recurrent_inference":
            fake.versions = [1, 2]

    fake.before = swap
    output = remote_search_policy(network, CONFIG)(inputs())
    assert output.version == 1
    assert fake.mixed == []
    assert fake.calls == ["initial_inference"] + ["recurrent_inference"] * 4
    assert remote_search_policy(network, CONFIG)(inputs()).version == 2
    assert fake.mixed == []


def test_a_search_whose_version_was_unloaded_begins_again(
    fake: FakeServer, network: RemoteNetwork
) -> None:
    def swap(signature: str) -> None:
        if fake.calls.count("recurrent_inference") == 2:
            fake.versions = [2]

    fake.before = swap
    output = remote_search_policy(network, CONFIG)(inputs())
    assert output.version == 2
    assert output.visit_counts is not None
    assert output.visit_counts.sum(-1).tolist() == [4, 4]
    assert fake.calls.count("initial_inference") == 2
    assert fake.mixed == []


def test_a_pinned_version_that_is_gone_is_an_error_of_its_own(network: RemoteNetwork) -> None:
    with pytest.raises(VersionGoneError):
        network.recurrent_inference(np.ones((1, 5), np.float32), np.zeros(1), version=7)


def test_it_waits_for_the_server_and_for_its_first_version(fake: FakeServer) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    fake.versions = []
    network = connect(f"127.0.0.1:{port}")
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(network.wait_until_ready()))
    thread.start()
    with serving(fake, port):
        while not fake.calls and thread.is_alive() and not answers:
            fake.versions = [3]
            time.sleep(0.01)
        thread.join(20)
        [about] = answers
        assert (about.version, about.training_step) == (3, 300)
        assert about.contract == CONFIG.contract
    network.close()


def test_a_call_survives_a_restart_of_the_server(fake: FakeServer) -> None:
    with serving(fake) as address:
        network = connect(address)
        network.policy(inputs())
        port = int(address.rpartition(":")[2])
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(network.policy(inputs())))
    thread.start()
    time.sleep(0.2)
    assert not answers
    with serving(fake, port):
        thread.join(20)
    [answer] = answers
    assert answer.action.tolist() == [0, 2]
    network.close()


def test_nobody_there_is_said() -> None:
    network = connect("127.0.0.1:1", patience=0.3)
    with pytest.raises(
        ServiceError,
        match=r"network server at 127.0.0.1:1: cannot reach it .*is it running\?; waited 0.3 s",
    ):
        network.wait_until_ready()
    network.close()


def test_another_games_server_is_refused() -> None:
    other = CONFIG.contract | {"training.discount": "0.9", "game.name": "chess"}
    with serving(FakeServer(other)) as address, contextlib.closing(connect(address)) as network:
        with pytest.raises(ContractError) as caught:
            network.wait_until_ready()
        message = str(caught.value)
        assert "game.name is chess there, tiny here" in message
        assert "training.discount is 0.9 there, 1.0 here" in message


def test_other_shapes_are_refused(fake: FakeServer) -> None:
    fake.observation_shape = [3, 3, 2]
    with (
        serving(fake) as address,
        contextlib.closing(connect(address)) as network,
        pytest.raises(ContractError, match=r"its observation is \[3, 3, 2\] per game, here"),
    ):
        network.wait_until_ready()


def test_a_model_without_a_search_is_refused(fake: FakeServer) -> None:
    with serving(fake) as address:
        network = connect(address, signature="search_xla")
        with pytest.raises(ContractError, match=r"no signature search_xla \(it has search\)"):
            network.wait_until_ready()
        network.close()


def test_status_tells_what_does_not_load(network: RemoteNetwork) -> None:
    assert network.status() == [
        VersionStatus(9, "END", "damaged"),
        VersionStatus(1, "AVAILABLE", ""),
    ]


def test_a_refusal_is_not_tried_again(fake: FakeServer, network: RemoteNetwork) -> None:
    def refuse(_: str) -> None:
        raise ValueError("wrong")

    fake.before = refuse
    began = time.monotonic()
    with pytest.raises(ServiceError, match=r"network server at 127\.0\.0\.1"):
        network.policy(inputs())
    assert time.monotonic() - began < 5
    assert len(fake.calls) == 1


def test_the_client_needs_no_tensorflow() -> None:
    code = (
        "import sys; sys.modules['tensorflow'] = None\n"
        "from muprover.services.network import RemoteNetwork, remote_search_policy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
