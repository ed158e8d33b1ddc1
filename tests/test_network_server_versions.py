"""Versions that come and go: swaps without a gap, broken ones, those that end."""

from __future__ import annotations

import json
import logging
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from network_servers import (
    MODEL,
    ROWS,
    exporter,
    folder,
    held,
    network_server,
    random_weights,
    search_inputs,
    shared,
    states,
    tiny_config,
    until,
)

from muprover.model.export import MANIFEST, Exporter
from muprover.model.serving import manager as manager_module
from muprover.model.serving import versions as versions_module
from muprover.model.serving.errors import ServingError
from muprover.model.serving.manager import find_versions
from muprover.model.serving.metrics import Metrics
from muprover.model.serving.server import NetworkServer
from muprover.modelfolder import read_version
from muprover.policy import PolicyOutput
from muprover.search import make_policy
from muprover.services.client import ServiceError
from muprover.services.models import ModelPort
from muprover.services.network import RemoteNetwork, VersionGoneError, remote_search_policy

CONFIG = tiny_config()


__all__ = ["exporter", "folder", "held", "shared"]  # fixtures
pytestmark = pytest.mark.usefixtures("held")


def remote(server: NetworkServer, **options: Any) -> RemoteNetwork:
    return RemoteNetwork(f"127.0.0.1:{server.port}", MODEL, CONFIG, **options)


def same(one: PolicyOutput, other: PolicyOutput) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one[:6], other[:6], strict=True))


def test_a_swap_under_load_fails_no_request_and_mixes_no_weights(
    exporter: Exporter, folder: Path
) -> None:
    inputs = search_inputs()
    exporter.export(1, random_weights(1))
    with network_server(folder) as server:
        answers: list[PolicyOutput] = []
        failures: list[Exception] = []
        stop = threading.Event()

        def ask() -> None:
            network = remote(server, patience=0)
            while not stop.is_set():
                try:
                    answers.append(network.policy(inputs, details=True))
                except Exception as error:
                    failures.append(error)
            network.close()

        clients = [threading.Thread(target=ask) for _ in range(3)]
        for client in clients:
            client.start()
        for version in range(2, 12):
            exporter.export(version, random_weights(version))
            until(lambda version=version: answers and answers[-1].version == version)
        stop.set()
        for client in clients:
            client.join()
        assert failures == []
        assert {answer.version for answer in answers} == set(range(1, 12))
        expected = {}
        for version in (10, 11):
            pinned = server.manager.get(MODEL, version)
            outputs = pinned.program.function("search").run(pinned.weights, inputs._asdict())
            expected[version] = {name: outputs[name].numpy() for name in PolicyOutput._fields[:6]}
        for answer in answers:
            if answer.version in expected:
                for name, array in expected[answer.version].items():
                    assert np.array_equal(getattr(answer, name), array)
        by_version = {answer.version: answer for answer in answers}
        assert all(same(answer, by_version[answer.version]) for answer in answers)
        values = {tuple(answer.value) for answer in by_version.values()}
        assert len(values) == 11, "every version has its own answer"


def test_a_version_of_the_same_graph_is_not_compiled_again(
    exporter: Exporter, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    exporter.export(1)
    with network_server(folder) as server:
        first = server.manager.get(MODEL)
        spent = server.metrics.compile_seconds._value.get()
        began = time.monotonic()
        exporter.export(2, random_weights(2))
        until(lambda: states(server).get(2) == "AVAILABLE")
        assert time.monotonic() - began < 3
        assert server.manager.get(MODEL).program is first.program
        assert server.metrics.compile_seconds._value.get() == spent


def test_a_search_in_the_agent_keeps_to_the_version_of_its_root(
    exporter: Exporter, folder: Path
) -> None:
    exporter.export(1, random_weights(1))
    inputs = search_inputs()
    with network_server(folder) as server:
        network = remote(server)
        policy = remote_search_policy(network, CONFIG)
        before = policy(inputs)
        pinned = network.pinned()
        search = make_policy(pinned, CONFIG.search, CONFIG.signed_discount)
        recurrent, calls = pinned.recurrent_inference, []

        def swap_first(hidden_state: Any, action: Any) -> Any:
            if not calls:
                exporter.export(2, random_weights(2))
                until(lambda: states(server).get(2) == "AVAILABLE")
            calls.append(action)
            return recurrent(hidden_state, action)

        pinned.recurrent_inference = swap_first  # type: ignore[method-assign]
        across = search(inputs)
        assert pinned.version == 1
        assert same(across, before)
        after = policy(inputs)
        assert (before.version, after.version) == (1, 2)
        assert not same(after, before)
        # the numpy search over the wire equals the compiled one on the server
        compiled = network.policy(inputs, details=True)
        assert np.array_equal(after.visit_counts, compiled.visit_counts)
        np.testing.assert_allclose(after.value, compiled.value, rtol=1e-5, atol=1e-6)
        network.close()


def test_a_search_whose_version_is_gone_begins_again(exporter: Exporter, folder: Path) -> None:
    exporter.export(1, random_weights(1))
    inputs = search_inputs()
    with network_server(folder, num_versions=1) as server:
        network = remote(server, patience=5)
        root = network.initial_inference(inputs.observation)
        exporter.export(2, random_weights(2))
        until(lambda: states(server) == {2: "AVAILABLE", 1: "END"})
        with pytest.raises(VersionGoneError, match=r"Specific\(tiny, 1\)"):
            network.recurrent_inference(root.hidden_state, np.zeros(ROWS), version=1)
        original, swapped = network.recurrent_inference, []

        def swap_first(hidden_state: Any, action: Any, version: int | None = None) -> Any:
            if not swapped:
                swapped.append(exporter.export(3, random_weights(3)))
                until(lambda: states(server).get(2) == "END")
            return original(hidden_state, action, version)

        network.recurrent_inference = swap_first  # type: ignore[method-assign]
        answer = remote_search_policy(network, CONFIG)(inputs)
        assert answer.version == 3
        assert answer.visit_counts is not None
        assert answer.visit_counts.sum(-1).tolist() == [3] * ROWS
        network.close()


def test_the_newest_versions_are_kept_and_older_ones_end(exporter: Exporter, folder: Path) -> None:
    for step in (1, 2, 3):
        exporter.export(step)
    with network_server(folder, num_versions=2) as server:
        until(lambda: states(server) == {3: "AVAILABLE", 2: "AVAILABLE"})
        exporter.export(4)
        until(lambda: states(server) == {4: "AVAILABLE", 3: "AVAILABLE", 2: "END"})


def break_manifest(version: Path) -> None:
    (version / MANIFEST).write_text("{}")


def break_graph(version: Path) -> None:
    with (version / "saved_model.pb").open("r+b") as file:
        file.truncate(1000)


def break_weights(version: Path) -> None:
    [data] = (version / "variables").glob("*.data*")
    contents = bytearray(data.read_bytes())
    contents[5] ^= 0xFF
    data.write_bytes(contents)


def lose_weights(version: Path) -> None:
    shutil.rmtree(version / "variables")


def empty(version: Path) -> None:
    shutil.rmtree(version)
    version.mkdir()


@pytest.mark.parametrize(
    "damage", [break_manifest, break_graph, break_weights, lose_weights, empty]
)
def test_a_damaged_version_never_replaces_the_one_that_serves(
    exporter: Exporter, folder: Path, damage: Any
) -> None:
    exporter.export(1)
    aside = folder.parent / "aside"
    with network_server(
        folder, num_versions=1, max_load_retries=1, load_retry_seconds=0.05
    ) as server:
        shutil.copytree(folder / "1", aside)
        damage(aside)
        aside.rename(folder / "2")
        until(lambda: states(server).get(2) == "END")
        assert states(server) == {2: "END", 1: "AVAILABLE"}
        network = remote(server)
        assert network.policy(search_inputs()).version == 1
        [damaged] = [s for s in network.status() if s.version == 2]
        assert damaged.state == "END"
        assert str(folder / "2") in damaged.error or "damaged" in damaged.error
        failures = server.metrics.load_failures.labels(MODEL)._value.get()
        assert failures == 2, "one retry"
        exporter.export(3)
        until(lambda: states(server) == {3: "AVAILABLE", 2: "END", 1: "END"})
        assert network.policy(search_inputs()).version == 3
        network.close()


def test_damaged_weights_cost_no_time_that_an_older_version_needs(
    exporter: Exporter, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are looked at first: reading and compiling the graph takes seconds."""
    exporter.export(1)
    break_weights(folder / "1")

    def load_program(*_: Any) -> Any:
        raise AssertionError("the graph was read")

    monkeypatch.setattr(versions_module, "_load_program", load_program)
    loader = versions_module.Loader(ROWS, (), Metrics())
    loader._programs = {}  # not what the others share
    with pytest.raises(ServingError, match="Checksum does not match"):
        loader.load(folder / "1")


def test_a_version_that_is_completed_late_is_loaded_by_a_retry(
    exporter: Exporter, folder: Path
) -> None:
    """By copying tools that do not rename."""
    exporter.export(1)
    with network_server(folder, load_retry_seconds=0.1, max_load_retries=100) as server:
        weights = folder / "1" / "variables"
        shutil.copytree(folder / "1", folder / "2", ignore=shutil.ignore_patterns("variables"))
        until(lambda: server.metrics.load_failures.labels(MODEL)._value.get() >= 1)
        assert states(server) == {2: "LOADING", 1: "AVAILABLE"}
        shutil.copytree(weights, folder / "2" / "variables")
        until(lambda: states(server)[2] == "AVAILABLE")


def test_a_retry_holds_up_no_newer_version(exporter: Exporter, folder: Path) -> None:
    exporter.export(1)
    with network_server(folder, load_retry_seconds=3600) as server:
        empty_version = folder / "2"
        empty_version.mkdir()
        until(lambda: states(server).get(2) == "LOADING")
        exporter.export(3)
        until(lambda: states(server).get(3) == "AVAILABLE", 10)


def test_a_deleted_version_is_unloaded_and_loaded_when_it_is_back(
    exporter: Exporter, folder: Path
) -> None:
    exporter.export(1)
    exporter.export(2)
    with network_server(folder) as server:
        until(lambda: states(server) == {2: "AVAILABLE", 1: "AVAILABLE"})
        (folder / "2").rename(folder / ".aside")
        until(lambda: states(server) == {2: "END", 1: "AVAILABLE"})
        (folder / ".aside").rename(folder / "2")
        until(lambda: states(server) == {2: "AVAILABLE", 1: "AVAILABLE"})


def test_without_its_folder_a_model_goes_on_being_served(
    exporter: Exporter, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    exporter.export(1)
    with network_server(folder) as server, caplog.at_level(logging.WARNING):
        folder.rename(folder.parent / "moved")
        until(lambda: "Could not find base path" in caplog.text)
        assert states(server) == {1: "AVAILABLE"}
        folder.mkdir()
        until(lambda: states(server) == {1: "END"})
        until(lambda: not server.manager.is_ready)


def test_before_the_first_version_the_server_says_so(exporter: Exporter, folder: Path) -> None:
    with network_server(folder, wait=False) as server:
        network = remote(server, patience=0.1)
        with pytest.raises(ServiceError, match=r"Servable not found.*waited 0.1 s"):
            network.policy(search_inputs())
        assert network.status() == []
        waiting = remote(server, patience=60)
        box: list[Any] = []
        thread = threading.Thread(target=lambda: box.append(waiting.wait_until_ready()))
        thread.start()
        exporter.export(5)
        thread.join(60)
        [about] = box
        assert (about.version, about.training_step) == (5, 5)
        network.close()
        waiting.close()


def test_names_that_are_no_numbers_are_no_versions(tmp_path: Path) -> None:
    for name in ("3", "007", ".tmp-1", "7.partial", "latest", "²", "12"):
        (tmp_path / name).mkdir()
    assert find_versions(tmp_path) == {3: tmp_path / "3", 7: tmp_path / "007", 12: tmp_path / "12"}


def test_the_ended_are_forgotten_in_time(
    exporter: Exporter, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manager_module, "MAX_ENDED", 3)
    exporter.export(1)
    with network_server(folder, num_versions=1) as server:
        for step in range(2, 9):
            exporter.export(step)
            until(lambda step=step: states(server).get(step) == "AVAILABLE")
        until(lambda: list(states(server)) == [8, 7, 6, 5])


def test_the_manifest_says_what_the_graph_is(exporter: Exporter, folder: Path) -> None:
    exporter.export(1)
    manifest = json.loads((folder / "1" / MANIFEST).read_bytes())
    assert manifest["contract"] == CONFIG.contract
    assert len(manifest["graph_hash"]) == 64


def test_a_new_version_is_served_where_no_disk_is_shared(
    exporter: Exporter, folder: Path, tmp_path: Path
) -> None:
    source, here = ModelPort(folder, 0, "127.0.0.1"), tmp_path / "elsewhere"
    exporter.export(1)
    with network_server(here, model_source=f"127.0.0.1:{source.port}") as server:
        network = remote(server)
        assert network.policy(search_inputs()).version == 1
        exporter.export(2)
        until(lambda: network.policy(search_inputs()).version == 2)
        assert b"muprover_pull_version 2.0" in server.metrics.render()
        network.close()
    source.close()
    assert read_version(here, 2) == read_version(folder, 2)
