"""Programs that XLA compiled, kept on disk: a process that starts again finds them. No TensorFlow
here.

XLA keeps and finds them by what they compute. What else they depend on, versions and processor, is
in the name of the folder; and as XLA trusts its files, those that are not as they were noted are
removed first.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import platform
import shutil
from importlib import metadata
from pathlib import Path

log = logging.getLogger(__name__)

VARIABLE = "MUPROVER_COMPILED"  # names a folder for processes with these options
NOTES = "sha256.json"  # of the files beside it
LEAST_FREE_BYTES = 64 << 20  # what XLA may not write, it does not compile
GPU = Path("/dev/nvidiactl")  # with which this has not been tried


class CompiledPrograms:
    """Those in a folder, of this machine and TensorFlow."""

    def __init__(self, folder: Path) -> None:
        facts = [metadata.version("tensorflow"), _processor(), os.environ.get("XLA_FLAGS", "")]
        self.folder = folder / hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]

    def use(self) -> None:
        """Has XLA look here; to be called before TensorFlow is imported."""
        self.folder.mkdir(parents=True, exist_ok=True)
        noted = self._noted()
        for path in self._programs():
            if noted.get(path.name) != _sha256(path):
                path.unlink(missing_ok=True)
        flags = [os.environ.get("TF_XLA_FLAGS", "")]
        flags += [f"--tf_xla_persistent_cache_directory={self.folder}"]
        if shutil.disk_usage(self.folder).free < LEAST_FREE_BYTES:
            flags += ["--tf_xla_persistent_cache_read_only=true"]
        os.environ["TF_XLA_FLAGS"] = " ".join(flags).strip()

    def note(self) -> None:
        """Takes note of what has been compiled by now, so that the next process believes it."""
        notes = {path.name: _sha256(path) for path in self._programs()}
        if notes != self._noted():
            aside = self.folder / f".{NOTES}.{os.getpid()}"
            aside.write_text(json.dumps(notes, indent=1), encoding="utf-8")
            aside.rename(self.folder / NOTES)

    def _programs(self) -> list[Path]:
        return sorted(self.folder.glob("*.pb"))

    def _noted(self) -> dict[str, str]:
        with contextlib.suppress(OSError, ValueError):
            notes = json.loads((self.folder / NOTES).read_bytes())
            return notes if isinstance(notes, dict) else {}
        return {}


_kept: CompiledPrograms | None = None  # XLA's own setting is one for the process, too


def keep_compiled() -> None:
    """Keeps programs where the environment says; to be called before TensorFlow is imported."""
    global _kept
    if VARIABLE not in os.environ or GPU.exists():
        return
    programs = CompiledPrograms(Path(os.environ[VARIABLE]))
    try:
        programs.use()
    except OSError as error:
        log.warning("compiled programs are not kept: %s", error)
    else:
        _kept = programs


def note_compiled() -> None:
    """Something has been compiled that the next process should find."""
    if _kept is not None:
        with contextlib.suppress(OSError):  # then that one compiles
            _kept.note()


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:  # another process has removed it
        return ""


def _processor() -> str:
    """What machine code may be used."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith(("flags", "Features")):
                return line
    return f"{platform.machine()} {platform.processor()}"
