"""Versions pulled from a trainer: whole or not at all, whatever happens to link and disk."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from model_sources import GRAPH, WEIGHTS, link, read_files, write_version
from patience import until
from prometheus_client import CollectorRegistry

from muprover.config import SettingsError
from muprover.modelfolder import ModelFile, version_numbers
from muprover.services.client import ServiceError
from muprover.services.model_pull import Puller
from muprover.services.models import ModelPort, RemoteModels, is_inside
from muprover.v1 import models_pb2, models_pb2_grpc

MIB = 1 << 20


def noise(size: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(size)


@pytest.fixture
def there(tmp_path: Path) -> Path:
    return tmp_path / "there"


@pytest.fixture
def here(tmp_path: Path) -> Path:
    return tmp_path / "here"


@pytest.fixture
def source(there: Path) -> Iterator[ModelPort]:
    port = ModelPort(there, 0, "127.0.0.1")
    yield port
    port.close()


def remote_models(source: ModelPort) -> contextlib.closing[RemoteModels]:
    return contextlib.closing(RemoteModels(f"127.0.0.1:{source.port}"))


class Pull:
    """A puller and what it counts."""

    def __init__(self, port: int, folder: Path) -> None:
        self._registry = CollectorRegistry()
        self._puller = Puller(f"127.0.0.1:{port}", folder, self._registry)
        self._puller.start()
        self.close = self._puller.close

    def count(self, name: str) -> float:
        return self._registry.get_sample_value(f"muprover_pull_{name}") or 0.0


@contextlib.contextmanager
def pulling(port: int, folder: Path) -> Iterator[Pull]:
    pull = Pull(port, folder)
    try:
        yield pull
    finally:
        pull.close()


def await_versions(folder: Path, *numbers: int) -> None:
    until(lambda: version_numbers(folder) == list(numbers))


def test_what_the_trainer_keeps_is_kept_and_equal_files_cross_once(
    source: ModelPort, there: Path, here: Path
) -> None:
    graph = noise(2 * MIB)
    with pulling(source.port, here) as pull:
        for number in (1, 2, 3):
            write_version(there, number, {GRAPH: graph, WEIGHTS: b"%d" % number})
            until(lambda number=number: number in version_numbers(here))
        assert pull.count("bytes_total") == len(graph) + 3
        for number in (1, 2):
            shutil.rmtree(there / str(number))
        write_version(there, 4, {GRAPH: graph, WEIGHTS: b"4"})
        await_versions(here, 3, 4)
    assert read_files(here / "4") == {GRAPH: graph, WEIGHTS: b"4"}
    assert sorted(os.listdir(here)) == [".pull", "3", "4"]


def test_a_link_that_is_cut_costs_nothing_that_had_arrived(
    source: ModelPort, there: Path, here: Path
) -> None:
    write_version(there, 1, {WEIGHTS: noise(12 * MIB)})
    with link(source.port) as between:
        between.hold_at = 8 * MIB
        with pulling(between.port, here) as pull:
            assert between.held.wait(60)
            until(lambda: pull.count("bytes_total") >= 6 * MIB)
            between.cut()
            between.release()
            await_versions(here, 1)
            assert pull.count("bytes_total") == 12 * MIB  # each byte that was kept, once
            assert pull.count("failures_total") >= 1
    assert read_files(here / "1") == read_files(there / "1")


def test_a_puller_that_comes_back_goes_on_where_it_was(
    source: ModelPort, there: Path, here: Path
) -> None:
    write_version(there, 1, {GRAPH: noise(2 * MIB), WEIGHTS: noise(10 * MIB)})
    with link(source.port) as between:
        between.hold_at = 8 * MIB
        with pulling(between.port, here) as pull:
            assert between.held.wait(60)
            until(lambda: pull.count("bytes_total") >= 6 * MIB)
        before = pull.count("bytes_total")
    assert version_numbers(here) == []
    with pulling(source.port, here) as pull:
        await_versions(here, 1)
        assert pull.count("bytes_total") == 12 * MIB - before
    assert read_files(here / "1") == read_files(there / "1")


def test_a_byte_that_changed_on_its_way_is_fetched_again(
    source: ModelPort, there: Path, here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = noise(3 * MIB)
    mark = content[MIB + 1000 : MIB + 1016]
    write_version(there, 1, {WEIGHTS: content})
    with link(source.port) as between:
        between.bend = (mark, mark[:-1] + bytes([mark[-1] ^ 1]))
        with pulling(between.port, here) as pull:
            await_versions(here, 1)
            assert pull.count("failures_total") == 1
    assert between.bend is None, "the byte was not met"
    assert "was damaged on its way; trying again" in caplog.text
    assert read_files(here / "1") == {WEIGHTS: content}


def test_content_that_is_not_what_was_said_never_becomes_a_version(
    source: ModelPort, there: Path, here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_version(there, 1, {WEIGHTS: b"as it was read"})
    with remote_models(source) as models:
        assert len(until(models.watch)) == 1
    (there / "1" / WEIGHTS).write_bytes(b"as it has rot.")
    with pulling(source.port, here) as pull:
        until(lambda: pull.count("failures_total"))
        assert version_numbers(here) == []
        write_version(there, 2, {WEIGHTS: noise(MIB)})
        await_versions(here, 2)
    assert f"{WEIGHTS} is not what the trainer said; trying again" in caplog.text


def test_a_version_that_goes_while_it_is_fetched_gives_way_to_the_newest(
    source: ModelPort, there: Path, here: Path
) -> None:
    write_version(there, 1, {"a": noise(8 * MIB, 1), "b": noise(8 * MIB, 2)})
    with link(source.port) as between:
        between.hold_at = 4 * MIB
        with pulling(between.port, here) as pull:
            assert between.held.wait(60)
            shutil.rmtree(there / "1")
            write_version(there, 2, {"a": noise(MIB, 3)})
            with remote_models(source) as models:
                until(lambda: [version.number for version in models.watch()] == [2])
            between.release()
            await_versions(here, 2)
            assert pull.count("bytes_total") <= 9 * MIB
    assert read_files(here / "2") == {"a": noise(MIB, 3)}


def test_a_file_that_is_in_no_version_is_not_found(source: ModelPort, there: Path) -> None:
    (there / "1").mkdir(parents=True)
    (there / "secret").write_bytes(b"secret")
    (there / "1" / "link").symlink_to(there / "secret")
    (there / "2").symlink_to(there / "1")
    write_version(there, 3, {"a": b"a"})
    with remote_models(source) as models:
        until(lambda: 3 in [version.number for version in models.watch()])
        [first, third] = models.watch()
        assert (first.number, first.files) == (1, ())
        assert list(models.fetch(third.files[0])) == [b"a"]
        with pytest.raises(ServiceError, match="no version that is here has a file"):
            list(models.fetch(ModelFile("../secret", 6, bytes(32))))


@pytest.mark.parametrize(
    ("path", "inside"),
    [
        ("variables/variables.index", True),
        *[(path, False) for path in ("", "..", "../a", "a/../../b", "/a", "a//b", "./a", "a\0")],
    ],
)
def test_paths_lead_inside(path: str, inside: bool) -> None:
    assert is_inside(path) == inside


class Deceiver(models_pb2_grpc.ModelRepositoryServiceServicer):
    """Names a file outside of the version."""

    def __init__(self) -> None:
        self.asked = 0

    def Watch(self, request: Any, context: Any) -> models_pb2.WatchResponse:
        self.asked += 1
        file = models_pb2.ModelFile(path="../../evil", size=4, sha256=bytes(32))
        return models_pb2.WatchResponse(versions=[models_pb2.ModelVersion(number=1, files=[file])])


def test_a_source_that_names_files_outside_is_refused(
    here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server, deceiver = grpc.server(ThreadPoolExecutor(2)), Deceiver()
    models_pb2_grpc.add_ModelRepositoryServiceServicer_to_server(deceiver, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with pulling(port, here):
        until(lambda: deceiver.asked > 1)
    server.stop(0)
    assert "version 1 names a file '../../evil'" in caplog.text
    assert [path.name for path in here.parent.rglob("*") if path.is_file()] == []


def test_a_full_disk_leaves_no_half_version_and_what_arrived_is_gone_on_with(
    source: ModelPort, there: Path, here: Path
) -> None:
    write_version(there, 1, {WEIGHTS: noise(5 * MIB)})
    command = [sys.executable, "-m", "muprover.cli", "pull", "--saved-models", str(here)]
    command += ["--source", f"127.0.0.1:{source.port}"]
    full = (2 * MIB, resource.RLIM_INFINITY)
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, full),
    )
    assert process.stderr is not None
    try:
        complaint = next(line for line in process.stderr if "WARNING" in line)
        assert f"nothing pulled into {here}: File too large; trying again" in complaint
        [part] = (here / ".pull").glob("*.part")
        assert part.read_bytes() == noise(5 * MIB)[: 2 * MIB]
        assert version_numbers(here) == []
        space = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, space)
        await_versions(here, 1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
    assert read_files(here / "1") == read_files(there / "1")
    assert list((here / ".pull").iterdir()) == []


def test_a_trainer_may_go_and_come_back(there: Path, here: Path) -> None:
    write_version(there, 1, {"a": b"1"})
    first = ModelPort(there, 0, "127.0.0.1")
    with pulling(first.port, here):
        await_versions(here, 1)
        write_version(there, 2, {"a": b"2"})
        first.close()  # what was written last is handed over
        assert version_numbers(here) == [1, 2]
        second = ModelPort(there, first.port, "127.0.0.1")
        write_version(there, 3, {"a": b"3"})
        await_versions(here, 1, 2, 3)
        second.close()


def test_versions_of_another_run_or_damaged_ones_are_replaced(
    source: ModelPort, there: Path, here: Path
) -> None:
    for number, content in ((1, b"same"), (2, b"good"), (3, b"new")):
        write_version(there, number, {"a": content})
    (here / ".pull").mkdir(parents=True)
    for number, content in ((1, b"same"), (2, b"evil"), (3, b"old"), (900, b"old")):
        write_version(here, number, {"a": content})
    with pulling(source.port, here) as pull:
        await_versions(here, 1, 3)
        assert pull.count("bytes_total") == 3
    assert read_files(here / "3") == {"a": b"new"}


def test_a_folder_of_somebody_else_is_refused(source: ModelPort, there: Path, here: Path) -> None:
    write_version(there, 1, {"a": b"1"})
    with pytest.raises(SettingsError, match="has versions that were not pulled"):
        Puller("127.0.0.1:1", there)
    with (
        pulling(source.port, here),
        pytest.raises(SettingsError, match="another process pulls into"),
    ):
        Puller("127.0.0.1:1", here)


def test_a_busy_port_is_said(source: ModelPort, there: Path) -> None:
    with pytest.raises(OSError, match=f"model port {source.port} is in use .* --model-port"):
        ModelPort(there, source.port, "127.0.0.1")
