"""The embedded server's gRPC, driven by TensorFlow Serving's own, unmodified client."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from network_servers import (
    MODEL,
    network_server,
    search_inputs,
    tiny_exporter,
    tiny_network,
    until,
)
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from muprover.model.serving.server import NetworkServer

OUTPUTS = [
    "action",
    "action_weights",
    "principal_variation",
    "prior",
    "q_values",
    "value",
    "visit_counts",
]
INPUTS = "exploration,legal_actions,num_simulations,observation,seed,temperature"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NetworkServer]:
    """Serves versions 7 and 8."""
    folder = tmp_path_factory.mktemp("models") / MODEL
    exporter = tiny_exporter(folder)
    exporter.export(7)
    exporter.export(8, [w.numpy() for w in tiny_network(1).weights])
    with network_server(folder) as server:
        until(lambda: [s.state for s in server.manager.statuses(MODEL)] == [30, 30])
        yield server


@pytest.fixture(scope="module")
def channel(server: NetworkServer) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield channel


@pytest.fixture(scope="module")
def prediction(channel: grpc.Channel) -> Any:
    return prediction_service_pb2_grpc.PredictionServiceStub(channel)


@pytest.fixture(scope="module")
def model(channel: grpc.Channel) -> Any:
    return model_service_pb2_grpc.ModelServiceStub(channel)


def request(
    inputs: dict[str, np.ndarray] | None = None,
    signature: str = "",
    name: str = MODEL,
    version: int | None = None,
    label: str = "",
    outputs: tuple[str, ...] = (),
) -> predict_pb2.PredictRequest:
    made = predict_pb2.PredictRequest(output_filter=outputs)
    made.model_spec.name = name
    made.model_spec.signature_name = signature
    if version is not None:
        made.model_spec.version.value = version
    if label:
        made.model_spec.version_label = label
    for alias, array in (search_inputs()._asdict() if inputs is None else inputs).items():
        made.inputs[alias].CopyFrom(tf.make_tensor_proto(array))
    return made


def refusal(call: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[str, str]:
    """The code's name and the sentence with which a call is refused."""
    with pytest.raises(grpc.RpcError) as caught:
        call(*args, **kwargs)
    return caught.value.code().name, caught.value.details()


def test_a_search_is_answered_by_the_newest_version(prediction: Any) -> None:
    response = prediction.Predict(request())
    assert response.model_spec.name == MODEL
    assert response.model_spec.version.value == 8
    assert response.model_spec.signature_name == "serving_default"
    arrays = {name: tf.make_ndarray(tensor) for name, tensor in response.outputs.items()}
    assert sorted(arrays) == OUTPUTS
    assert arrays["visit_counts"].sum(-1).tolist() == [3, 3, 3, 3]
    np.testing.assert_allclose(arrays["action_weights"].sum(-1), 1, rtol=1e-6)


@pytest.mark.parametrize("signature", ["search", "search_xla", "serving_default"])
def test_all_names_of_the_search_answer_alike(prediction: Any, signature: str) -> None:
    response = prediction.Predict(request(signature=signature))
    assert response.model_spec.signature_name == signature
    assert response.outputs["value"] == prediction.Predict(request()).outputs["value"]


def test_a_pinned_version_answers_with_its_own_weights(prediction: Any) -> None:
    observation = search_inputs().observation
    for version, seed in ((7, 0), (8, 1)):
        asked = request({"observation": observation}, "initial_inference", version=version)
        response = prediction.Predict(asked)
        assert response.model_spec.version.value == version
        expected = tiny_network(seed).initial_inference(observation)
        for name, value in expected._asdict().items():
            served = tf.make_ndarray(response.outputs[name])
            np.testing.assert_allclose(served, value, rtol=1e-5, atol=1e-6)


def test_only_the_outputs_asked_for_are_sent(prediction: Any) -> None:
    response = prediction.Predict(request(outputs=("value", "action")))
    assert sorted(response.outputs) == ["action", "value"]


def test_answers_come_in_typed_fields_and_requests_in_either_encoding(prediction: Any) -> None:
    typed = request()
    for alias, array in search_inputs()._asdict().items():
        tensor = typed.inputs[alias]
        tensor.ClearField("tensor_content")
        field = {"f": "float_val", "i": "int_val", "b": "bool_val"}[array.dtype.kind]
        del getattr(tensor, field)[:]
        getattr(tensor, field).extend(array.ravel().tolist())
    one = typed.inputs["temperature"]
    del one.float_val[1:]  # one element may stand for all
    response = prediction.Predict(typed)
    assert response.outputs["value"].tensor_content == b""
    assert len(response.outputs["value"].float_val) == 4
    assert response.outputs["value"] == prediction.Predict(request()).outputs["value"]


def test_each_wrong_request_is_refused_as_tensorflow_serving_does(prediction: Any) -> None:
    predict = prediction.Predict
    assert refusal(predict, predict_pb2.PredictRequest()) == (
        "INVALID_ARGUMENT",
        "Missing ModelSpec",
    )
    assert refusal(predict, request(name="")) == (
        "INVALID_ARGUMENT",
        "ModelSpec has no name specified.",
    )
    assert refusal(predict, request(name="chess")) == (
        "NOT_FOUND",
        "Servable not found for request: Latest(chess)",
    )
    assert refusal(predict, request(version=6)) == (
        "NOT_FOUND",
        "Servable not found for request: Specific(tiny, 6)",
    )
    assert refusal(predict, request(label="canary")) == (
        "INVALID_ARGUMENT",
        "Unrecognized servable version label: canary",
    )
    assert refusal(predict, request(signature="classify")) == (
        "FAILED_PRECONDITION",
        'Serving signature key "classify" not found.',
    )
    assert refusal(predict, request(outputs=("value", "policy"))) == (
        "INVALID_ARGUMENT",
        "output tensor alias not found in signature: policy Outputs expected to be in the set "
        f"{{{','.join(OUTPUTS)}}}.",
    )
    assert refusal(predict, request(outputs=("value", "value"))) == (
        "INVALID_ARGUMENT",
        "duplicate output tensor alias: value",
    )


def test_wrong_inputs_are_refused(prediction: Any) -> None:
    observation = search_inputs().observation
    predict = prediction.Predict
    assert refusal(predict, request({"observation": observation, "x": observation})) == (
        "INVALID_ARGUMENT",
        f"input size does not match signature: 2!=6 len({{observation,x}}) != len({{{INPUTS}}}). "
        "Sent extra: {x}. Missing but required: "
        "{exploration,legal_actions,num_simulations,seed,temperature}.",
    )
    assert refusal(predict, request({"state": observation}, "initial_inference")) == (
        "INVALID_ARGUMENT",
        "input tensor alias not found in signature: state. Inputs expected to be in the set "
        "{observation}.",
    )
    wrong_type = {"observation": observation.astype(np.float64)}
    code, message = refusal(predict, request(wrong_type, "initial_inference"))
    assert (code, message) == (
        "INVALID_ARGUMENT",
        "input observation must be float32, but float64 is provided",
    )
    code, message = refusal(
        predict, request({"observation": np.ones((4, 5), "f")}, "initial_inference")
    )
    assert (code, message) == (
        "INVALID_ARGUMENT",
        "input observation must have shape [?,4], given [4, 5]",
    )
    uneven = search_inputs()._replace(seed=np.zeros((3, 2), np.int32))._asdict()
    code, message = refusal(predict, request(uneven))
    assert code == "INVALID_ARGUMENT"
    assert "must have equal 0th-dimension size" in message
    cut = request({"observation": observation}, "initial_inference")
    cut.inputs["observation"].tensor_content = b"1234567"
    assert refusal(predict, cut) == ("INVALID_ARGUMENT", "tensor parsing error: observation")


def test_a_shape_that_would_take_all_memory_is_refused(prediction: Any) -> None:
    bomb = request({"observation": np.zeros((1, 4), "f")}, "initial_inference")
    tensor = bomb.inputs["observation"]
    tensor.ClearField("tensor_content")
    tensor.float_val.append(1.0)
    tensor.tensor_shape.dim[0].size = 1 << 40
    code, message = refusal(prediction.Predict, bomb)
    assert code == "INVALID_ARGUMENT"
    assert "is larger than maximum input batch size 4096" in message


def test_a_request_for_more_rows_than_a_batch_has_is_refused(prediction: Any) -> None:
    many = {"observation": np.zeros((4097, 4), "f")}
    assert refusal(prediction.Predict, request(many, "initial_inference")) == (
        "INVALID_ARGUMENT",
        "Task size 4097 is larger than maximum input batch size 4096",
    )


def test_long_sentences_are_cut(prediction: Any) -> None:
    code, message = refusal(prediction.Predict, request(name="x" * 3000))
    assert code == "NOT_FOUND"
    assert message.endswith("...TRUNCATED")
    assert len(message) == 1024 + len("...TRUNCATED")


def test_a_deadline_holds(prediction: Any) -> None:
    # over before it begins: a server with nothing else to do answers within a nanosecond's, which
    # gRPC rounds up
    code, _ = refusal(prediction.Predict, request(), timeout=-1.0)
    assert code in ("DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"), "by the client, or in the queue"


def test_metadata_tells_the_signatures(prediction: Any) -> None:
    asked = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    asked.model_spec.name = MODEL
    response = prediction.GetModelMetadata(asked)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(signatures)
    assert response.model_spec.version.value == 8
    assert set(signatures.signature_def) == {
        "about",
        "initial_inference",
        "recurrent_inference",
        "search",
        "search_xla",
        "serving_default",
    }
    search = signatures.signature_def["search"]
    assert sorted(search.outputs) == OUTPUTS
    assert [dim.size for dim in search.inputs["observation"].tensor_shape.dim] == [-1, 4]
    assert search.method_name == "tensorflow/serving/predict"


def test_wrong_questions_for_metadata_are_refused(prediction: Any) -> None:
    asked = get_model_metadata_pb2.GetModelMetadataRequest()
    metadata = prediction.GetModelMetadata
    assert refusal(metadata, asked) == ("INVALID_ARGUMENT", "Missing ModelSpec")
    asked.model_spec.name = MODEL
    assert refusal(metadata, asked) == (
        "INVALID_ARGUMENT",
        "GetModelMetadataRequest must specify at least one metadata_field",
    )
    asked.metadata_field.append("assets")
    assert refusal(metadata, asked) == (
        "INVALID_ARGUMENT",
        "Metadata field assets is not supported",
    )


def test_status_lists_versions_newest_first(model: Any) -> None:
    asked = get_model_status_pb2.GetModelStatusRequest()
    asked.model_spec.name = MODEL
    versions = model.GetModelStatus(asked).model_version_status
    assert [(v.version, v.state, v.status.error_code) for v in versions] == [(8, 30, 0), (7, 30, 0)]
    asked.model_spec.version.value = 7
    [only] = model.GetModelStatus(asked).model_version_status
    assert only.version == 7


def test_wrong_questions_for_status_are_refused(model: Any) -> None:
    asked = get_model_status_pb2.GetModelStatusRequest()
    assert refusal(model.GetModelStatus, asked) == ("INVALID_ARGUMENT", "Missing ModelSpec")
    asked.model_spec.name = MODEL
    asked.model_spec.version.value = 5
    assert refusal(model.GetModelStatus, asked) == (
        "NOT_FOUND",
        "Could not find version 5 of model tiny",
    )
    asked = get_model_status_pb2.GetModelStatusRequest()
    asked.model_spec.name = "chess"
    assert refusal(model.GetModelStatus, asked) == (
        "NOT_FOUND",
        "Could not find any versions of model chess",
    )


def test_what_a_search_has_no_use_for_is_unimplemented(prediction: Any) -> None:
    classify, regress = classification_pb2.ClassificationRequest, regression_pb2.RegressionRequest
    for call, asked in ((prediction.Classify, classify()), (prediction.Regress, regress())):
        code, message = refusal(call, asked)
        assert code == "UNIMPLEMENTED"
        assert "use Predict" in message


@pytest.mark.parametrize(
    "service",
    [
        "",
        "PredictionService",
        "ModelService",
        "tensorflow.serving.PredictionService",
        "tensorflow.serving.ModelService",
    ],
)
def test_health_is_told_by_each_name(channel: grpc.Channel, service: str) -> None:
    asked = health_pb2.HealthCheckRequest(service=service)
    answer = health_pb2_grpc.HealthStub(channel).Check(asked)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_reflection_lists_the_services(channel: grpc.Channel) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    asked = reflection_pb2.ServerReflectionRequest(list_services="")
    [answer] = stub.ServerReflectionInfo(iter([asked]))
    names = {service.name for service in answer.list_services_response.service}
    assert {"tensorflow.serving.PredictionService", "tensorflow.serving.ModelService"} <= names


def test_garbage_at_the_ports_harms_nobody(server: NetworkServer, prediction: Any) -> None:
    garbage = np.random.default_rng(0).bytes(4096)
    for port in (server.port, server.rest_port):
        for data in (garbage, b"GET / HTTP/1.1\r\n\r\n", b"\x00" * 100, b""):
            with socket.create_connection(("127.0.0.1", port)) as connection:
                connection.sendall(data)
    for method in ("Predict", "GetModelMetadata"):
        with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            call = channel.unary_unary(f"/tensorflow.serving.PredictionService/{method}")
            code, _ = refusal(call, garbage)
            assert code in ("INTERNAL", "INVALID_ARGUMENT", "UNKNOWN")
    assert prediction.Predict(request()).model_spec.version.value == 8


def test_each_search_row_depends_on_its_own_inputs_alone(prediction: Any) -> None:
    """A batch, padded to the compiled size, equals its singles."""
    inputs = search_inputs(3)._asdict()
    together = prediction.Predict(request(inputs))
    visits = tf.make_ndarray(together.outputs["visit_counts"])
    for row in range(3):
        alone = prediction.Predict(request({k: v[row : row + 1] for k, v in inputs.items()}))
        assert tf.make_ndarray(alone.outputs["visit_counts"]).tolist() == [visits[row].tolist()]


def test_more_simulations_than_were_exported_are_cut_to_these(prediction: Any) -> None:
    response = prediction.Predict(request(search_inputs(simulations=100)._asdict()))
    assert tf.make_ndarray(response.outputs["visit_counts"]).sum(-1).tolist() == [6, 6, 6, 6]


def test_the_folder_was_not_touched(server: NetworkServer) -> None:
    folder = Path(server._options.models[0].base_path)
    assert sorted(path.name for path in folder.iterdir()) == ["7", "8"]
