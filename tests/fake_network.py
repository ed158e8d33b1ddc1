"""A network server without TensorFlow or learning: any policy, behind the real one's protocol."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np

from muprover.config import Config
from muprover.policy import Policy, SearchInputs
from muprover.tensors import from_tensor_proto, to_tensor_proto
from muprover.v1 import serving_pb2


class FakeNetwork:
    """Serves `policy` as `version` on `port`, until closed; `threads` calls at once."""

    def __init__(
        self, policy: Policy, config: Config, port: int = 0, version: int = 1, threads: int = 4
    ) -> None:
        self.policy, self.config, self.version = policy, config, version
        self.asked: set[str] = set()  # signatures
        self._server = grpc.server(ThreadPoolExecutor(threads), options=[("grpc.so_reuseport", 0)])
        self.port = self._server.add_insecure_port(f"localhost:{port}")
        methods = {
            "tensorflow.serving.PredictionService": {
                "Predict": (self._predict, serving_pb2.PredictRequest),
                "GetModelMetadata": (self._metadata, serving_pb2.GetModelMetadataRequest),
            }
        }
        self._server.add_generic_rpc_handlers(
            [
                grpc.method_handlers_generic_handler(
                    service, {name: _handler(*method) for name, method in handlers.items()}
                )
                for service, handlers in methods.items()
            ]
        )
        self._server.start()

    @property
    def address(self) -> str:
        return f"localhost:{self.port}"

    def close(self) -> None:
        self._server.stop(None).wait()

    def __enter__(self) -> FakeNetwork:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _predict(self, request: Any, context: grpc.ServicerContext) -> Any:
        response = serving_pb2.PredictResponse(model_spec=request.model_spec)
        response.model_spec.version.value = self.version
        self.asked.add(request.model_spec.signature_name)
        if request.model_spec.signature_name == "about":
            response.outputs["contract"].dtype = 7
            response.outputs["contract"].string_val.append(
                json.dumps(self.config.contract).encode()
            )
            steps = np.array([10 * self.version], np.int64)
            response.outputs["training_step"].CopyFrom(to_tensor_proto(steps))
            return response
        wanted = request.model_spec.version.value
        if wanted not in (0, self.version):
            context.abort(grpc.StatusCode.NOT_FOUND, f"version {wanted} is not served")
        inputs = {name: from_tensor_proto(t, name) for name, t in request.inputs.items()}
        output = self.policy(SearchInputs(**inputs), details=True)
        for name in request.output_filter:
            response.outputs[name].CopyFrom(to_tensor_proto(getattr(output, name)))
        return response

    def _metadata(self, request: Any, context: grpc.ServicerContext) -> Any:
        game = self.config.game
        shapes = {
            "observation": (-1, *game.network_observation_shape),
            "legal_actions": (-1, game.num_actions),
        }
        signature = serving_pb2.SignatureDef()
        for name, shape in shapes.items():
            for size in shape:
                signature.inputs[name].tensor_shape.dim.add(size=size)
        signatures = serving_pb2.SignatureDefMap(
            signature_def={"search": signature, "search_xla": signature}
        )
        response = serving_pb2.GetModelMetadataResponse()
        response.metadata["signature_def"].Pack(signatures)
        return response


def _handler(method: Callable[..., Any], request: Any) -> Any:
    return grpc.unary_unary_rpc_method_handler(
        method,
        request_deserializer=request.FromString,
        response_serializer=lambda message: message.SerializeToString(),
    )
