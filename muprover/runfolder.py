"""The folder of a run: where everything is that it leaves behind, and that it resumes from."""

from __future__ import annotations

import json
import os
import platform
import shutil
import time
from dataclasses import dataclass
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from muprover.config import Config, SettingsError
from muprover.game import Game, load_game

MODEL_NAME = "muprover"


@dataclass(frozen=True)
class RunFolder:
    """Paths below one folder; see `README.md` there."""

    path: Path

    @property
    def settings(self) -> Path:
        return self.path / "settings.yaml"

    @property
    def facts(self) -> Path:
        """What the run is besides its settings: game source, seed, name."""
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

    def read_facts(self) -> dict[str, Any]:
        return _read_json(self.facts)

    def read_result(self) -> dict[str, Any]:
        """Of the session before; empty if there was none."""
        return _read_json(self.result) if self.result.exists() else {}

    def load(self) -> Game:
        """The game of this run, with the run's settings."""
        if not self.exists:
            raise SettingsError(f"{self.path} is no folder of a run: it has no settings.yaml")
        return load_game(self.read_facts()["game"], str(self.settings))

    def create(self, game: Game, seed: int) -> Game:
        """Writes the settings; a game that is a file is copied, and answered as the copy."""
        try:
            (self.path / "logs").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SettingsError(f"cannot make folder {self.path}: {error.strerror}") from None
        source = game.source
        if source.endswith(".py"):
            copy = self.path / Path(source).name
            if Path(source).resolve() != copy.resolve():
                shutil.copy(source, copy)
            source = str(copy.resolve())
        self.write_settings(game.config)
        _write_json(self.facts, {"game": source, "seed": seed, "name": self.path.name})
        return Game(source, game.config, game.module)

    def write_settings(self, config: Config) -> None:
        text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
        self.settings.write_text(text, encoding="utf-8")

    def write_result(self, result: dict[str, Any]) -> None:
        _write_json(self.result, result)


def new_folder(runs: Path, name: str | None, game: str) -> RunFolder:
    """`runs/<name>`, or a folder named after the game and the time."""
    return RunFolder(runs / (name or f"{game}-{datetime.now():%Y%m%d-%H%M%S}"))


def machine() -> dict[str, Any]:
    """What a figure was measured on."""
    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    except OSError:
        pass  # not Linux
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "python": platform.python_version(),
        "muprover": metadata.version("muprover"),
        "tensorflow": _version("tensorflow"),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingsError(f"cannot read {path}: {error}") from None
    if not isinstance(tree, dict):
        raise SettingsError(f"{path} must hold an object")
    return tree


def _write_json(path: Path, tree: dict[str, Any]) -> None:
    """Whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(tree, indent=2) + "\n", encoding="utf-8")
    partial.rename(path)
