"""Compiled programs that are kept: found by the next process, and never believed blindly."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from muprover.model.compiled import VARIABLE, CompiledPrograms

PROGRAM = """
from muprover.model.compiled import keep_compiled, note_compiled
keep_compiled()
import tensorflow as tf
double = tf.function(lambda x: 2 * x, jit_compile=True)
print(double(tf.constant(21)).numpy())
note_compiled()
"""


def compiled_in(folder: Path) -> list[Path]:
    """What is kept after a process has compiled, which gets its sum right."""
    environment = os.environ | {VARIABLE: str(folder)}
    words = [sys.executable, "-c", PROGRAM]
    printed = subprocess.run(words, env=environment, capture_output=True, check=True).stdout
    assert printed.split() == [b"42"]
    return sorted(folder.glob("*/*.pb"))


def test_a_program_is_kept_found_and_made_again_when_damaged(tmp_path):
    [path] = compiled_in(tmp_path)
    sound, written = path.read_bytes(), path.stat().st_mtime_ns
    assert compiled_in(tmp_path) == [path]
    assert path.stat().st_mtime_ns == written  # not compiled again
    path.write_bytes(sound[:100])
    assert compiled_in(tmp_path) == [path]
    assert path.stat().st_size == len(sound)


@pytest.fixture
def programs(tmp_path, monkeypatch):
    monkeypatch.setenv("TF_XLA_FLAGS", "--mine")
    programs = CompiledPrograms(tmp_path)
    programs.use()
    return programs


def test_only_what_was_noted_is_believed(programs):
    for name in ("noted.pb", "changed.pb"):
        (programs.folder / name).write_bytes(name.encode())
    programs.note()
    (programs.folder / "changed.pb").write_bytes(b"something else")
    (programs.folder / "new.pb").write_bytes(b"of a process that was killed")
    programs.use()
    assert [path.name for path in programs.folder.glob("*.pb")] == ["noted.pb"]
    for garbage in (b"", b"[]", b"{", b'{"noted.pb": 3}'):
        (programs.folder / "sha256.json").write_bytes(garbage)
        programs.use()
    assert not list(programs.folder.glob("*.pb"))


def test_other_flags_of_xla_have_other_programs(programs, tmp_path, monkeypatch):
    assert os.environ["TF_XLA_FLAGS"].startswith("--mine --tf_xla_persistent_cache_directory=")
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
    assert CompiledPrograms(tmp_path).folder != programs.folder


def test_on_a_full_disk_nothing_is_kept(programs, monkeypatch):
    assert "read_only" not in os.environ["TF_XLA_FLAGS"]
    monkeypatch.setattr("muprover.model.compiled.LEAST_FREE_BYTES", 1 << 60)
    programs.use()
    assert "--tf_xla_persistent_cache_read_only=true" in os.environ["TF_XLA_FLAGS"]
