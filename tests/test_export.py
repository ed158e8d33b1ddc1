"""Exports: whole versions or none, with rising numbers, equal to the network that was trained."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from network_servers import (
    random_weights,
    search_inputs,
    tiny_config,
    tiny_exporter,
    tiny_network,
)
from tensorflow_serving.apis import prediction_log_pb2

from muprover.model import export
from muprover.model.export import Exporter, ExportError, ServedModel
from muprover.modelfolder import _is_abandoned, version_numbers

OBSERVATION = search_inputs().observation
OUTPUTS = {
    "action",
    "action_weights",
    "value",
    "visit_counts",
    "q_values",
    "prior",
    "principal_variation",
}

KILLED_IN_MID_EXPORT = """
import os, sys, time
from pathlib import Path
from network_servers import tiny_exporter
exporter = tiny_exporter(Path(sys.argv[1]))
exporter.export(1)
real_fsync, calls = os.fsync, []
def fsync(descriptor):
    calls.append(descriptor)
    if len(calls) == 4:
        print("mid", flush=True)
        time.sleep(600)
    real_fsync(descriptor)
os.fsync = fsync
exporter.export(2)
"""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Exporter:
    """One exporter for all tests that do not care for its folder: tracing takes seconds."""
    return tiny_exporter(tmp_path_factory.mktemp("models"))


@pytest.fixture
def exporter(shared: Exporter, tmp_path: Path) -> Exporter:
    """The shared one, writing into this test's own folder."""
    shared._model_dir = tmp_path / "models"
    shared._keep = 5
    return shared


@pytest.fixture
def folder(exporter: Exporter) -> Path:
    return exporter._model_dir


def is_whole(version: Path) -> bool:
    """Whether all that was written about a version is there, and as it was written."""
    manifest = json.loads((version / export.MANIFEST).read_bytes())
    reader = tf.train.load_checkpoint(str(version / export.VARIABLES))
    return all(
        hashlib.sha256((version / name).read_bytes()).hexdigest() == expected
        for name, expected in manifest["sha256"].items()
    ) and all(reader.get_tensor(key) is not None for key in manifest["weights"])


def signature(version: Path, name: str) -> object:
    loaded = tf.saved_model.load(str(version))
    function = loaded.signatures[name]
    return lambda **inputs: function(**{k: tf.constant(v) for k, v in inputs.items()}), loaded


def test_the_first_version_is_one_though_no_step_was_made(exporter: Exporter) -> None:
    assert exporter.export(0) == 1


def test_a_version_is_its_training_step(exporter: Exporter, folder: Path) -> None:
    assert [exporter.export(step) for step in (0, 250, 500)] == [1, 250, 500]
    assert version_numbers(folder) == [1, 250, 500]


def test_a_trainer_resumed_from_an_older_checkpoint_is_served_all_the_same(
    exporter: Exporter, folder: Path
) -> None:
    exporter.export(1000)
    assert exporter.export(400) == 1001
    manifest = json.loads((folder / "1001" / export.MANIFEST).read_bytes())
    assert manifest["training_step"] == 400


def test_nothing_is_overwritten(exporter: Exporter, folder: Path) -> None:
    exporter.export(7)
    before = (folder / "7" / "variables" / "variables.index").stat().st_mtime_ns
    assert exporter.export(7) == 8
    assert (folder / "7" / "variables" / "variables.index").stat().st_mtime_ns == before


def test_a_number_taken_by_another_exporter_meanwhile_is_skipped(
    exporter: Exporter, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "5").mkdir(parents=True)
    (folder / "5" / "file").touch()
    answers = iter([[], [5]])
    monkeypatch.setattr(export, "version_numbers", lambda _: next(answers, [5, 6]))
    assert exporter.export(5) == 6


def test_the_newest_few_are_kept(exporter: Exporter, folder: Path) -> None:
    exporter._keep = 3
    for step in range(1, 7):
        exporter.export(step)
    assert version_numbers(folder) == [4, 5, 6]
    assert sorted(os.listdir(folder)) == ["4", "5", "6"]


def test_a_watcher_never_sees_half_a_version(exporter: Exporter, folder: Path) -> None:
    folder.mkdir(parents=True)
    done = threading.Event()
    seen: set[int] = set()
    broken: list[int] = []

    def watch() -> None:
        while not done.is_set():
            for version in version_numbers(folder):
                try:
                    whole = is_whole(folder / str(version))
                except (OSError, tf.errors.OpError):
                    whole = version not in version_numbers(folder)  # an old one, removed
                if not whole:
                    broken.append(version)
                seen.add(version)

    watcher = threading.Thread(target=watch)
    watcher.start()
    for step in range(1, 21):
        exporter.export(step)
    done.set()
    watcher.join()
    assert broken == []
    assert len(seen) > 2


def test_killed_in_mid_export_leaves_no_version_and_the_next_export_tidies_up(
    exporter: Exporter, folder: Path
) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED_IN_MID_EXPORT, str(folder)],
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "mid\n"
    [staging] = folder.glob(".tmp-*")
    assert not _is_abandoned(staging), "its writer still lives"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert version_numbers(folder) == [1]
    assert is_whole(folder / "1")
    other = json.loads((folder / "1" / export.MANIFEST).read_bytes())
    assert exporter.export(2) == 2
    assert sorted(os.listdir(folder)) == ["1", "2"]
    mine = json.loads((folder / "2" / export.MANIFEST).read_bytes())
    assert mine["graph_hash"] == other["graph_hash"], "the same graph, traced by two processes"


@pytest.mark.parametrize("fails", ["_write_file", "sync_tree"])
def test_a_full_disk_is_said_and_leaves_nothing(
    exporter: Exporter, folder: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    exporter.export(1)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(export, fails, full)
    with pytest.raises(ExportError, match=f"no space left for it in {folder}"):
        exporter.export(2)
    assert os.listdir(folder) == ["1"]
    monkeypatch.undo()
    assert exporter.export(2) == 2


def test_a_folder_that_cannot_be_written_is_said(exporter: Exporter, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    exporter._model_dir = tmp_path / "file"
    with pytest.raises(ExportError, match="no version written in"):
        exporter.export(1)


def test_other_weights_must_be_as_many(exporter: Exporter) -> None:
    with pytest.raises(ValueError, match="given 1 weights; the network has 16"):
        exporter.export(1, [np.zeros(1)])


def test_what_is_served_equals_what_was_trained(exporter: Exporter, folder: Path) -> None:
    exporter.export(1)
    call, _loaded = signature(folder / "1", "initial_inference")
    served, trained = call(observation=OBSERVATION), tiny_network(0).initial_inference(OBSERVATION)
    for name, expected in trained._asdict().items():
        np.testing.assert_allclose(served[name], expected, rtol=1e-5, atol=1e-6)
    action = np.array([0, 1, 2, 0], np.int32)
    call, _loaded = signature(folder / "1", "recurrent_inference")
    served = call(hidden_state=trained.hidden_state, action=action)
    following = tiny_network(0).recurrent_inference(trained.hidden_state, action)
    for name, expected in following._asdict().items():
        np.testing.assert_allclose(served[name], expected, rtol=1e-5, atol=1e-6)


def test_given_weights_are_exported_in_place_of_the_networks_own(
    exporter: Exporter, folder: Path
) -> None:
    version = exporter.export(3, random_weights(seed=9))
    call, loaded = signature(folder / str(version), "initial_inference")
    expected = tiny_network(9).initial_inference(OBSERVATION)
    np.testing.assert_allclose(call(observation=OBSERVATION)["value"], expected.value, rtol=1e-5)
    for given, read in zip(random_weights(seed=9), loaded.weights, strict=False):
        assert np.array_equal(given, read)
    assert loaded.weights[-1].numpy() == 3


def test_a_search_in_tensorflows_v1_session_equals_the_compiled_one(
    exporter: Exporter, folder: Path
) -> None:
    """The stock server runs signatures in a session, without XLA."""
    version = folder / str(exporter.export(1))
    inputs = search_inputs()._asdict()
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        graph = tf.compat.v1.saved_model.load(session, ["serve"], str(version))
        definition = graph.signature_def["search"]
        assert set(definition.inputs) == set(inputs)
        assert set(definition.outputs) == OUTPUTS
        assert set(graph.signature_def["serving_default"].inputs) == set(inputs)
        feeds = {definition.inputs[name].name: array for name, array in inputs.items()}
        fetches = {name: info.name for name, info in definition.outputs.items()}
        plain = session.run(fetches, feeds)
    call, _loaded = signature(version, "search_xla")
    compiled = call(**inputs)
    for name in OUTPUTS:
        np.testing.assert_allclose(plain[name], compiled[name], rtol=1e-5, atol=1e-6)
    assert plain["visit_counts"].sum(-1).tolist() == [3, 3, 3, 3]


def test_every_input_and_output_has_the_batch_first(exporter: Exporter, folder: Path) -> None:
    _, loaded = signature(folder / str(exporter.export(1)), "search")
    for function in loaded.signatures.values():
        for spec in function.structured_input_signature[1].values():
            assert spec.shape[0] is None
        for output in function.structured_outputs.values():
            assert output.shape[0] is None


def test_a_version_tells_what_it_is(exporter: Exporter, folder: Path) -> None:
    version = exporter.export(12)
    call, _loaded = signature(folder / str(version), "about")
    answer = call(row=np.zeros(2, np.int32))
    assert json.loads(answer["contract"][0].numpy()) == tiny_config().contract
    assert answer["training_step"].numpy().tolist() == [12, 12]


def test_warm_up_requests_are_ones_that_the_version_answers(
    exporter: Exporter, folder: Path
) -> None:
    version = folder / str(exporter.export(1))
    [record] = tf.data.TFRecordDataset(str(version / export.WARMUP))
    request = prediction_log_pb2.PredictionLog.FromString(record.numpy()).predict_log.request
    inputs = {name: tf.make_ndarray(tensor) for name, tensor in request.inputs.items()}
    assert request.model_spec.signature_name == "search"
    assert inputs["observation"].shape == (4, 4)
    assert inputs["num_simulations"].tolist() == [1, 1, 1, 1]
    call, _loaded = signature(version, "search")
    assert set(call(**inputs)) == OUTPUTS


def test_another_search_is_another_graph() -> None:
    config = tiny_config()
    one = ServedModel(tiny_network(0, config), config).graph_hash()
    assert ServedModel(tiny_network(1, config), config).graph_hash() == one, "weights do not count"
    other = tiny_config(pb_c_init=2.0)
    assert ServedModel(tiny_network(0, other), other).graph_hash() != one


def test_an_exporter_that_begins_anew_traces_nothing(tmp_path: Path, monkeypatch):
    tiny_exporter(tmp_path).export(3)
    monkeypatch.setattr(export, "ServedModel", None)
    again = tiny_exporter(tmp_path, seed=1)
    assert again.export(4) == 4
    old, new = (tmp_path / str(version) for version in (3, 4))
    assert (old / "saved_model.pb").read_bytes() == (new / "saved_model.pb").read_bytes()
    manifest = json.loads((new / export.MANIFEST).read_text())
    assert manifest["training_step"] == 4
    assert (old / f"{export.VARIABLES}.index").exists()
    weights = tf.train.load_checkpoint(str(new / export.VARIABLES))
    np.testing.assert_array_equal(weights.get_tensor(manifest["weights"][0]), random_weights(1)[0])


@pytest.mark.parametrize("what", ["saved_model.pb", "settings"])
def test_an_exporter_takes_nothing_from_a_version_that_is_damaged_or_of_other_settings(
    tmp_path: Path, monkeypatch, what: str
):
    tiny_exporter(tmp_path).export(3)
    config = tiny_config(pb_c_init=2.0) if what == "settings" else tiny_config()
    if what != "settings":
        (tmp_path / "3" / what).write_bytes(b"damage")
    monkeypatch.setattr(export, "ServedModel", None)
    with pytest.raises(TypeError, match="not callable"):  # it would trace
        tiny_exporter(tmp_path, config=config)
