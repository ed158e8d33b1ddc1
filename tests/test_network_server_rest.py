"""The embedded server's REST: status, metadata, predictions in both formats, metrics."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from network_servers import (
    MODEL,
    ROWS,
    network_server,
    search_inputs,
    tiny_exporter,
    tiny_network,
    until,
)

from muprover.model.serving.server import NetworkServer
from muprover.serving_config import ModelSettings, VersionPolicy

OBSERVATION = search_inputs().observation


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NetworkServer]:
    folder = tmp_path_factory.mktemp("models") / MODEL
    exporter = tiny_exporter(folder)
    exporter.export(7)
    exporter.export(8)
    model = ModelSettings(MODEL, str(folder), VersionPolicy(num_versions=2), {"stable": 7})
    with network_server(folder, models=[model], metrics_path="/monitoring/x", metrics_port=0) as s:
        until(lambda: len([x for x in s.manager.statuses(MODEL) if x.state == 30]) == 2)
        yield s


class Http:
    def __init__(self, server: NetworkServer) -> None:
        self._base = f"http://127.0.0.1:{server.rest_port}"

    def __call__(self, path: str, body: Any = None) -> tuple[int, Any]:
        """Status and JSON; a body makes it a POST."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        try:
            with urllib.request.urlopen(self._base + path, data, timeout=60) as response:
                return response.status, json.loads(response.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def text(self, path: str) -> str:
        with urllib.request.urlopen(self._base + path) as response:
            return str(response.read().decode())


@pytest.fixture(scope="module")
def http(server: NetworkServer) -> Http:
    return Http(server)


def columns(rows: int = ROWS) -> dict[str, Any]:
    return {name: array.tolist() for name, array in search_inputs(rows)._asdict().items()}


def test_status(http: Http) -> None:
    ok = {"error_code": "OK", "error_message": ""}
    seven, eight = ({"version": v, "state": "AVAILABLE", "status": ok} for v in "78")
    assert http(f"/v1/models/{MODEL}") == (200, {"model_version_status": [eight, seven]})
    assert http(f"/v1/models/{MODEL}/versions/7") == (200, {"model_version_status": [seven]})
    assert http("/v1/models/chess") == (
        404,
        {"error": "Could not find any versions of model chess"},
    )
    assert http(f"/v1/models/{MODEL}/versions/3") == (
        404,
        {"error": "Could not find version 3 of model tiny"},
    )


def test_metadata(http: Http) -> None:
    status, answer = http(f"/v1/models/{MODEL}/labels/stable/metadata")
    assert status == 200
    assert answer["model_spec"]["name"] == MODEL
    assert answer["model_spec"]["version"] == "7"
    signatures = answer["metadata"]["signature_def"]["signature_def"]
    observation = signatures["search"]["inputs"]["observation"]
    assert observation["dtype"] == "DT_FLOAT"
    assert [dim["size"] for dim in observation["tensor_shape"]["dim"]] == ["-1", "4"]
    status, answer = http("/v1/models/chess/metadata")
    assert (status, answer["error"]) == (404, "Servable not found for request: Latest(chess)")


def test_rows_are_answered_by_rows(http: Http) -> None:
    asked = columns()
    instances = [{name: column[i] for name, column in asked.items()} for i in range(ROWS)]
    status, answer = http(f"/v1/models/{MODEL}:predict", {"instances": instances})
    assert status == 200
    assert len(answer["predictions"]) == ROWS
    assert [sum(row["visit_counts"]) for row in answer["predictions"]] == [3] * ROWS


def test_columns_are_answered_by_columns(http: Http) -> None:
    asked = {"signature_name": "search", "inputs": columns()}
    status, answer = http(f"/v1/models/{MODEL}/versions/7:predict", asked)
    assert status == 200
    assert np.array(answer["outputs"]["action_weights"]).shape == (ROWS, 3)


def test_the_name_of_an_only_input_may_be_left_out(http: Http) -> None:
    expected = tiny_network().initial_inference(OBSERVATION).value.numpy()
    for body in (
        {"instances": OBSERVATION.tolist()},
        {"inputs": OBSERVATION.tolist()},
        {"inputs": {"observation": OBSERVATION.tolist()}},
        {"instances": [{"observation": row} for row in OBSERVATION.tolist()]},
    ):
        body["signature_name"] = "initial_inference"
        status, answer = http(f"/v1/models/{MODEL}:predict", body)
        assert status == 200, answer
        if "outputs" in answer:
            values = answer["outputs"]["value"]
        else:
            values = [row["value"] for row in answer["predictions"]]
        np.testing.assert_allclose(values, expected, rtol=1e-5)


def test_numbers_are_as_short_as_their_type_allows(http: Http) -> None:
    status, answer = http(f"/v1/models/{MODEL}:predict", {"inputs": columns()})
    assert status == 200
    assert all(len(str(weight)) <= 12 for row in answer["outputs"]["prior"] for weight in row)


def test_strings_are_text(http: Http) -> None:
    body = {"signature_name": "about", "instances": [1]}
    status, answer = http(f"/v1/models/{MODEL}:predict", body)
    assert status == 200
    [about] = answer["predictions"]
    assert about["training_step"] == 8
    assert json.loads(about["contract"])["game.name"] == MODEL


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"", 400, "JSON Parse error: The document is empty"),
        (b"{", 400, "JSON Parse error"),
        (b"[1]", 400, "Is not object"),
        ({"x": 1}, 400, "Missing 'inputs' or 'instances' key"),
        ({"inputs": 1, "instances": [1]}, 400, "expecting only one of 'inputs' or 'instances'"),
        ({"instances": []}, 400, "No values in 'instances' array"),
        ({"instances": 3}, 400, "to be an list/array"),
        ({"instances": [1, 2]}, 400, "instances is a plain list, but expecting list of objects"),
        ({"instances": [{"x": 1}]}, 400, "does not have named input: x"),
        ({"instances": [{"seed": [1, 2]}]}, 400, "keys must be equal to: exploration,legal_"),
        ({"inputs": {"seed": [[1, 2]]}}, 400, "Missing named input: exploration in 'inputs'"),
        ({"signature_name": 3, "instances": [1]}, 400, "'signature_name' key must be a string"),
        ({"signature_name": "x", "instances": [1]}, 400, 'Serving signature name: "x" not found'),
    ],
)
def test_wrong_bodies_are_refused(http: Http, body: Any, status: int, message: str) -> None:
    given, answer = http(f"/v1/models/{MODEL}:predict", body)
    assert given == status
    assert message in answer["error"]


@pytest.mark.parametrize(
    ("instances", "message"),
    [
        (["a", "b"], 'JSON Value: "a" Type: String is not of expected type: float32'),
        ([[1, True, 2, 3]], "JSON Value: true Type: True is not of expected type: float32"),
        ([[1, 2], [3]], "unexpected size or level"),
        ([[1, 2, 3]], "must have shape [?,4], given [1, 3]"),
    ],
)
def test_wrong_elements_are_refused(http: Http, instances: Any, message: str) -> None:
    body = {"signature_name": "initial_inference", "instances": instances}
    status, answer = http(f"/v1/models/{MODEL}:predict", body)
    assert status == 400
    assert message in answer["error"]


def test_wrong_addresses_are_refused(http: Http) -> None:
    assert http("/v1/anything") == (400, {"error": "Malformed request: GET /v1/anything"})
    assert http("/v1/models/a:predict") == (
        400,
        {"error": "Malformed request: GET /v1/models/a:predict"},
    )
    status, answer = http("/v1/models/chess:predict", {"instances": [1]})
    assert (status, answer["error"]) == (404, "Servable not found for request: Latest(chess)")
    status, answer = http(f"/v1/models/{MODEL}/labels/x:predict", {"instances": [1]})
    assert (status, answer["error"]) == (400, "Unrecognized servable version label: x")
    status, _ = http(f"/v1/models/{MODEL}:classify", {"examples": []})
    assert status == 501


def test_metrics_have_the_stock_servers_names_and_more(http: Http, server: NetworkServer) -> None:
    http(f"/v1/models/{MODEL}:predict", {"inputs": columns()})
    http("/v1/models/chess:predict", {"inputs": columns()})
    text = http.text("/metrics")
    assert http.text("/monitoring/x")[:40] == text[:40]
    for name in (
        f':tensorflow:serving:request_count{{model_name="{MODEL}",status="OK"}}',
        ":tensorflow:serving:request_latency_bucket{",
        "muprover_network_queue_seconds_bucket{",
        'muprover_network_batches_total{function="search"}',
        'muprover_network_batch_rows_total{function="search"}',
        'muprover_network_padded_rows_total{function="search"}',
        "muprover_network_simulations_total",
        f'muprover_network_loaded_version{{model_name="{MODEL}"}} 8.0',
        f'muprover_network_version_age_seconds{{model_name="{MODEL}"}}',
        "muprover_network_load_failures_total",
        "muprover_network_compile_seconds_total",
        "process_resident_memory_bytes",
    ):
        assert name in text, name
    assert 'model_name="chess"' not in text, "no series for whatever clients make up"
    port = server._metrics_only.port
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as response:
        assert b"muprover_network_batches_total" in response.read()


def test_metrics_that_are_not_enabled_are_on_their_own_port_alone(tmp_path: Path) -> None:
    options = {"wait": False, "metrics_path": "", "metrics_port": 0}
    with network_server(tmp_path, **options) as server:
        assert Http(server)("/metrics")[0] == 400
        url = f"http://127.0.0.1:{server._metrics_only.port}/metrics"
        with urllib.request.urlopen(url) as response:
            assert b"muprover_network_simulations_total" in response.read()
