"""The folder of a run: where everything is that it leaves behind, and that it resumes from."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import platform
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from filecmp import cmp
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from muprover.config import Config, SettingsError
from muprover.game import Game, load_game
from muprover.modelfolder import sync

log = logging.getLogger(__name__)

MODEL_NAME = "muprover"
LOCK_SECONDS = 65.0  # that the components of the session before may take to end, and a bit more
QUIET_SECONDS = 3.0  # before it is said that they are waited for


@dataclass(frozen=True)
class RunFolder:
    """Paths below one folder. It may be moved: nothing in it says where it is, but what each
    session writes anew."""

    path: Path

    @property
    def settings(self) -> Path:
        return self.path / "settings.yaml"

    @property
    def facts(self) -> Path:
        """What the run is besides its settings: game, seed, name."""
        return self.path / "run.json"

    @property
    def models(self) -> Path:
        return self.path / "models"

    @property
    def replay(self) -> Path:
        return self.path / "replay"

    @property
    def serving(self) -> Path:
        return self.path / "serving"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def compiled(self) -> Path:
        """What XLA compiled, for processes that start again."""
        return self.path / "compiled"

    @property
    def evaluations(self) -> Path:
        return self.path / "evaluations.jsonl"

    @property
    def result(self) -> Path:
        return self.path / "result.json"

    def log(self, component: str) -> Path:
        return self.path / "logs" / f"{component}.log"

    @property
    def exists(self) -> bool:
        return self.settings.exists()

    @property
    def source(self) -> str:
        """What `--game` is for this run: a name, or the copy of the game's file."""
        game = str(self.read_facts()["game"])
        return str((self.path / game).resolve()) if game.endswith(".py") else game

    def read_facts(self) -> dict[str, Any]:
        return _read_json(self.facts, {"game": str, "seed": int}, needed=True)

    def read_result(self) -> dict[str, Any]:
        """Of the session before; empty if there was none."""
        kinds = {"sessions": int, "wall_clock_seconds": float, "games": int, "steps": int}
        return _read_json(self.result, kinds) if self.result.exists() else {}

    def load(self, overrides: tuple[str, ...] = ()) -> Game:
        """The game of this run, with the run's settings."""
        if not self.exists:
            raise SettingsError(f"{self.path} is no folder of a run: it has no settings.yaml")
        return load_game(self.source, str(self.settings), overrides)

    def create(self, game: Game, seed: int) -> None:
        """Writes the settings, and a copy of a game that is a file."""
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise SettingsError(
                f"{self.path} is not empty and holds no run; choose another --folder or --name"
            )
        source = game.source
        try:
            (self.path / "logs").mkdir(parents=True)
            if source.endswith(".py"):
                shutil.copy(source, self.path)
                source = Path(source).name
            _write_json(self.facts, {"game": source, "seed": seed, "name": self.path.name})
            self.write_settings(game.config)
        except OSError as error:
            raise SettingsError(f"cannot use folder {self.path}: {error.strerror}") from None

    def keeps(self, source: str) -> bool:
        """Whether the run's game is the one of `source`, as it is now."""
        if source.endswith(".py"):
            copy = Path(self.source)
            return copy.is_file() and cmp(source, copy, shallow=False)
        return source == self.source

    def write_settings(self, config: Config) -> None:
        text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
        write_text(self.settings, text)

    def write_result(self, result: dict[str, Any]) -> None:
        _write_json(self.result, result)

    @contextmanager
    def lock(self) -> Iterator[int]:
        """Holds the folder for one session; yields a file descriptor.

        Whoever inherits that holds the folder too: a session cannot begin while components of the
        one before are still ending.
        """
        with locked(self.path / "lock", f"another run is going on in {self.path}") as file:
            yield file


@contextmanager
def locked(path: Path, otherwise: str, shared: bool = False) -> Iterator[int]:
    """Holds the lock at `path`, alone or with others that share it; yields its file descriptor.

    otherwise: what is said where it cannot be had for long.
    """
    with path.open("a") as file:
        began, said = time.monotonic(), False
        while not try_lock(file.fileno(), shared):
            waited = time.monotonic() - began
            if waited > LOCK_SECONDS:
                raise SettingsError(otherwise)
            if waited > QUIET_SECONDS and not said:
                log.warning("%s; waiting %g s for its end", otherwise, LOCK_SECONDS)
                said = True
            time.sleep(0.2)  # no event tells that a lock is free
        yield file.fileno()


def new_folder(runs: Path, name: str | None, game: str) -> RunFolder:
    """`runs/<name>`, or a folder named after the game and the time."""
    return RunFolder(runs / (name or f"{game}-{datetime.now():%Y%m%d-%H%M%S}"))


def machine() -> dict[str, Any]:
    """What a figure was measured on."""
    return {
        "cpu": _cpu(),
        "cores": num_cores(),
        "python": platform.python_version(),
        "muprover": _version("muprover"),
        "tensorflow": _version("tensorflow"),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def num_cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def try_lock(file: int, shared: bool = False) -> bool:
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read_json(path: Path, kinds: Mapping[str, type], needed: bool = False) -> dict[str, Any]:
    """An object, in which these are numbers or text, if they are there or `needed`."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SettingsError(f"cannot read {path}: {error}") from None
    if not isinstance(tree, dict):
        raise SettingsError(f"{path} must hold an object")
    for name, kind in kinds.items():
        fits = isinstance(tree.get(name), (int, float) if kind is float else kind)
        if not fits and (needed or name in tree):
            raise SettingsError(f"{path} is damaged: `{name}` must be {kind.__name__}")
    return tree


def _write_json(path: Path, tree: dict[str, Any]) -> None:
    write_text(path, json.dumps(tree, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str, mode: int = 0o666) -> None:
    """Whole or not at all, also where the machine stops meanwhile. mode: of a new file."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    handle = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        aside.rename(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    sync(path.parent)
