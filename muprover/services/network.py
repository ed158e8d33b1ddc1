"""The network server's client: a search, or the network alone, one call away.

`RemoteNetwork` talks to any TensorFlow Serving, stock or MuProver's own. With the search in the
served model one call answers all of an agent's games; with placement `agent` the search runs here
and asks once per simulation, always the version that answered for its root: hidden states mean
something only to the weights that made them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import grpc
import numpy as np
from numpy.typing import NDArray

from muprover.config import Config
from muprover.policy import NetworkOutput, Policy, PolicyOutput, SearchInputs
from muprover.services.client import (
    ContractError,
    ServiceError,
    check_contract,
    open_channel,
    service_error,
)
from muprover.tensors import TensorError, from_tensor_proto, to_tensor_proto
from muprover.v1 import serving_pb2

Array = NDArray[Any]
Answer = TypeVar("Answer")

WHAT = "network server"
PREDICTION = "/tensorflow.serving.PredictionService"
MODEL = "/tensorflow.serving.ModelService"
MAX_RETRY_WAIT = 2.0  # seconds between two attempts
MAX_RESTARTS = 20  # of one search whose version was unloaded

ESSENTIALS = ("action", "action_weights", "value")
DETAILS = ("visit_counts", "q_values", "prior", "principal_variation")


class About(NamedTuple):
    """What a served version says of itself."""

    version: int
    training_step: int
    contract: dict[str, str]


class VersionStatus(NamedTuple):
    version: int
    state: str  # START, LOADING, AVAILABLE, UNLOADING or END
    error: str  # why it did not load; empty if nothing is wrong


class VersionGoneError(ServiceError):
    """The version that a search was pinned to is no longer served."""


class RemoteNetwork:
    """A served model. Its methods wait through restarts of the server for `patience` seconds.

    A single call may take `timeout` seconds. `signature` is the search's: `search`, or, of a stock
    server that was started with XLA, `search_xla`.
    """

    def __init__(
        self,
        address: str,
        model_name: str,
        config: Config,
        *,
        signature: str = "search",
        timeout: float = 60.0,
        patience: float = 300.0,
    ) -> None:
        self.address = address
        self.model_name = model_name
        self.signature = signature
        self._config = config
        self._timeout = timeout
        self._patience = patience
        self._channel = open_channel(address)
        self._predict = self._method(
            PREDICTION, "Predict", serving_pb2.PredictRequest, serving_pb2.PredictResponse
        )
        self._metadata = self._method(
            PREDICTION,
            "GetModelMetadata",
            serving_pb2.GetModelMetadataRequest,
            serving_pb2.GetModelMetadataResponse,
        )
        self._status = self._method(
            MODEL,
            "GetModelStatus",
            serving_pb2.GetModelStatusRequest,
            serving_pb2.GetModelStatusResponse,
        )

    def close(self) -> None:
        self._channel.close()

    def wait_until_ready(self, timeout: float | None = None) -> About:
        """Waits for a served version, and checks that it was made for the same game.

        Raises `ServiceError` when there is none in time, `ContractError` when it does not fit.
        """
        patience = self._patience if timeout is None else timeout
        self._check_signature(self._retry(self._get_signatures, patience))
        about = self._retry(self.about, patience)
        check_contract(WHAT, self.address, self._config.contract, about.contract)
        return about

    def about(self) -> About:
        """Of the newest served version. One attempt."""
        response = self._call("about", {"row": np.zeros(1, np.int32)})
        try:
            [contract] = response.outputs["contract"].string_val
            [training_step] = from_tensor_proto(response.outputs["training_step"], "training_step")
            facts = dict(json.loads(contract))
            return About(response.model_spec.version.value, int(training_step), facts)
        except (TypeError, ValueError, RecursionError) as error:
            raise ContractError(
                f"{WHAT} at {self.address}: model {self.model_name} does not tell what it was "
                f"made for ({error}); was it exported by MuProver?"
            ) from None

    def status(self) -> list[VersionStatus]:
        """Of each version that the server knows of; none before there is any. One attempt."""
        request = serving_pb2.GetModelStatusRequest()
        request.model_spec.name = self.model_name
        try:
            response = self._status(request, timeout=self._timeout)
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.NOT_FOUND:
                return []
            raise service_error(WHAT, self.address, error) from None
        states = {10: "START", 20: "LOADING", 30: "AVAILABLE", 40: "UNLOADING", 50: "END"}
        return [
            VersionStatus(s.version, states.get(s.state, "UNKNOWN"), s.status.error_message)
            for s in response.model_version_status
        ]

    def policy(
        self, inputs: SearchInputs, details: bool = False, version: int | None = None
    ) -> PolicyOutput:
        """A `Policy`: the search in the served model, for all rows in one call; by the newest
        version or a given one."""
        wanted = ESSENTIALS + DETAILS if details else ESSENTIALS
        request = self._request(self.signature, inputs._asdict(), wanted)
        if version is not None:
            request.model_spec.version.value = version
        return self._answer(lambda: self._search(request), version)

    def initial_inference(self, observation: Array, version: int | None = None) -> NetworkOutput:
        """Of `[B, …]` observations, by the newest version or a given one."""
        return self._infer("initial_inference", {"observation": observation}, version)[0]

    def recurrent_inference(
        self, hidden_state: Array, action: Array, version: int | None = None
    ) -> NetworkOutput:
        """Of `[B, …]` hidden states and the actions `[B]` taken in them."""
        inputs = {"hidden_state": hidden_state, "action": np.asarray(action, np.int32)}
        return self._infer("recurrent_inference", inputs, version)[0]

    def pinned(self) -> PinnedNetwork:
        """The network of one search: what answers for the root answers for all of it."""
        return PinnedNetwork(self)

    def _infer(
        self, function: str, inputs: Mapping[str, Array], version: int | None
    ) -> tuple[NetworkOutput, int]:
        def call() -> tuple[NetworkOutput, int]:
            response = self._call(function, inputs, NetworkOutput._fields, version)
            outputs = self._arrays(response, NetworkOutput._fields)
            return NetworkOutput(**outputs), response.model_spec.version.value

        return self._answer(call, version)

    def _answer(self, call: Callable[[], Answer], version: int | None) -> Answer:
        """`call()`, tried again while the server is away; `VersionGoneError` if it no longer
        serves the version that was asked for."""
        if version is None:
            return self._retry(call, self._patience)
        try:
            return self._retry(call, self._patience, waits_for_model=False)
        except ServiceError as error:
            if error.code == grpc.StatusCode.NOT_FOUND:
                raise VersionGoneError(error.code, str(error)) from None
            raise

    def _call(
        self,
        signature: str,
        inputs: Mapping[str, Array],
        outputs: Sequence[str] = (),
        version: int | None = None,
    ) -> serving_pb2.PredictResponse:
        request = self._request(signature, inputs, outputs)
        if version is not None:
            request.model_spec.version.value = version
        return self._send(request)

    def _search(self, request: serving_pb2.PredictRequest) -> PolicyOutput:
        response = self._send(request)
        outputs = self._arrays(response, request.output_filter)
        return PolicyOutput(**outputs, version=response.model_spec.version.value)

    def _send(self, request: serving_pb2.PredictRequest) -> serving_pb2.PredictResponse:
        try:
            response: serving_pb2.PredictResponse = self._predict(request, timeout=self._timeout)
        except grpc.RpcError as error:
            raise service_error(WHAT, self.address, error) from None
        return response

    def _request(
        self, signature: str, inputs: Mapping[str, Array], outputs: Sequence[str]
    ) -> serving_pb2.PredictRequest:
        return serving_pb2.PredictRequest(
            model_spec=serving_pb2.ModelSpec(name=self.model_name, signature_name=signature),
            inputs={name: to_tensor_proto(array) for name, array in inputs.items()},
            output_filter=outputs,
        )

    def _arrays(
        self, response: serving_pb2.PredictResponse, names: Sequence[str]
    ) -> dict[str, Array]:
        try:
            return {name: from_tensor_proto(response.outputs[name], name) for name in names}
        except TensorError as error:
            raise ContractError(f"{WHAT} at {self.address}: {error}") from None

    def _get_signatures(self) -> serving_pb2.SignatureDefMap:
        request = serving_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
        request.model_spec.name = self.model_name
        try:
            response = self._metadata(request, timeout=self._timeout)
        except grpc.RpcError as error:
            raise service_error(WHAT, self.address, error) from None
        signatures = serving_pb2.SignatureDefMap()
        signatures.ParseFromString(response.metadata["signature_def"].value)
        return signatures

    def _check_signature(self, signatures: serving_pb2.SignatureDefMap) -> None:
        """Raises `ContractError` where the served search has inputs of other shapes."""
        place = f"model {self.model_name} of the {WHAT} at {self.address}"
        if self.signature not in signatures.signature_def:
            known = ", ".join(sorted(signatures.signature_def)) or "none"
            raise ContractError(
                f"{place} has no signature {self.signature} (it has {known}); "
                "was it exported by MuProver?"
            )
        game = self._config.game
        expected = {
            "observation": (-1, *game.network_observation_shape),
            "legal_actions": (-1, game.num_actions),
        }
        given = signatures.signature_def[self.signature].inputs
        for name, shape in expected.items():
            served = tuple(dim.size for dim in given[name].tensor_shape.dim)
            if served != shape:
                raise ContractError(
                    f"{place} does not fit: its {name} is {list(served[1:])} per game, "
                    f"here {list(shape[1:])}"
                )

    def _retry(
        self, call: Callable[[], Answer], patience: float, waits_for_model: bool = True
    ) -> Answer:
        """`call()`, again and again while the server is away or (`waits_for_model`) has no
        version to serve, for `patience` seconds; raises the last error then."""
        deadline, wait = time.monotonic() + patience, 0.05
        while True:
            try:
                return call()
            except ServiceError as error:
                absent = waits_for_model and error.code == grpc.StatusCode.NOT_FOUND
                left = deadline - time.monotonic()
                if not (error.is_transient or absent):
                    raise
                if left <= 0:
                    raise ServiceError(
                        error.code, f"{error}; waited {patience:g} s for it"
                    ) from None
            time.sleep(min(wait, left))
            wait = min(2 * wait, MAX_RETRY_WAIT)

    def _method(self, service: str, name: str, request: Any, response: Any) -> Any:
        return self._channel.unary_unary(
            f"{service}/{name}",
            request_serializer=request.SerializeToString,
            response_deserializer=response.FromString,
        )


class PinnedNetwork:
    """A `Network` for one search; `version` is the one that answered for the root."""

    def __init__(self, remote: RemoteNetwork) -> None:
        self._remote = remote
        self.version: int | None = None

    def initial_inference(self, observation: Array) -> NetworkOutput:
        output, self.version = self._remote._infer(
            "initial_inference", {"observation": observation}, None
        )
        return output

    def recurrent_inference(self, hidden_state: Array, action: Array) -> NetworkOutput:
        return self._remote.recurrent_inference(hidden_state, action, self.version)


def remote_search_policy(remote: RemoteNetwork, config: Config) -> Policy:
    """The `Policy` of placement `agent`: the search runs here, on one version from root to leaf.

    A search whose version is unloaded meanwhile begins again, with the one served then.
    """
    from muprover.search import make_policy  # only where agents search

    def policy(inputs: SearchInputs, details: bool = False) -> PolicyOutput:
        for restarts_left in reversed(range(MAX_RESTARTS)):
            network = remote.pinned()
            search = make_policy(network, config.search, config.signed_discount)
            try:
                output = search(inputs, details)
            except VersionGoneError:
                if not restarts_left:
                    raise
            else:
                return output._replace(version=network.version or 0)
        raise AssertionError("unreachable")

    return policy
