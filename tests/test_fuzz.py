"""A short run of the fuzzer over all that MuProver reads; `make fuzz` is the long one."""

from __future__ import annotations

import subprocess
import sys
import zlib
from itertools import islice
from pathlib import Path

import pytest
from fuzz import plain, targets
from fuzz.mutate import join, split

MUTATIONS = 40  # of each target
TARGETS = targets.load()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", TARGETS)
def test_garbage_is_refused_in_words(name, tmp_path):
    target = TARGETS[name]
    feed, seeds = target.open(tmp_path), plain.known(target)
    seed = zlib.crc32(name.encode())
    for data in (*seeds, *islice(plain.mutations(target, seeds, seed), MUTATIONS)):
        feed(data)  # raises what is no refusal


def test_what_is_sound_is_taken(tmp_path):
    """Else the fuzzer would only try how things are refused at the door."""
    from fuzz.files import backups, read_settings, refused, settings, stores
    from fuzz.replay import config

    from muprover.replay.durable import DurableReplay
    from muprover.services.replay_backup import read_backup

    def written(data: bytes) -> Path:
        path = tmp_path / "games-00000001.log"
        path.write_bytes(data)
        return path

    assert not refused(lambda: read_settings(written(settings()[0])))
    assert len(list(read_backup(written(backups()[0]), config()))) == 4
    written(stores()[0])
    assert len(list(DurableReplay(config(), tmp_path).games())) == 4


def test_every_call_of_every_service_has_a_target():
    from muprover.v1 import environment_pb2, models_pb2, replay_pb2

    kinds = {"environment": environment_pb2, "replay": replay_pb2, "models": models_pb2}
    for kind, module in kinds.items():
        for service in module.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                assert f"{kind}.{method.name}" in TARGETS


def test_what_is_joined_is_split_again():
    assert split(join([b"a", b"", b"bc"])) == [b"a", b"", b"bc"]


def test_libfuzzer_counts_what_it_fed(tmp_path):
    pytest.importorskip("atheris")
    script = Path(__file__).parent / "fuzz" / "process.py"
    words = ["answer.Tensor", "300", str(tmp_path), "atheris", "1", "60"]
    subprocess.run([sys.executable, str(script), *words], check=True, capture_output=True)
    assert '"messages": 300' in (tmp_path / "result.json").read_text()
