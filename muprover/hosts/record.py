"""What this machine remembers of the runs that it has started on hosts, to find them again."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from pydantic import TypeAdapter, ValidationError

from muprover.config import SettingsError
from muprover.game import Game
from muprover.hosts.place import Place, write_tree
from muprover.hosts.preflight import Plan


@dataclass(frozen=True)
class Record:
    """Where a run is."""

    run: str
    game: str
    dir: str
    models: str
    goal: str | None
    components: dict[str, list[str]]  # by host
    pythons: dict[str, str]  # by host
    network: str  # HOST:PORT of the network server
    is_down: bool = False

    @classmethod
    def of(cls, plan: Plan, game: Game, pythons: Mapping[str, str]) -> Self:
        network = plan.hosts.line("network")
        return cls(
            run=plan.run,
            game=game.name,
            dir=plan.dir,
            models=plan.models,
            goal=str(game.config.evaluation.goal) if game.config.evaluation.goal else None,
            components={host: plan.hosts.components(host) for host in plan.hosts.names},
            pythons=dict(pythons),
            network=f"{network.host.rpartition('@')[2]}:{network.number}",
        )

    def place(self, host: str) -> Place:
        return Place(host=host, run=self.run, dir=self.dir, models=self.models)

    def play_there(self) -> str:
        """How to play on the one host that does all, whose servers let in nobody from elsewhere;
        empty where the network server is reached from here."""
        [host, *others] = self.components
        if others or host == "localhost":
            return ""
        run = shlex.quote(f"{self.dir}/runs/{self.run}")
        python = shlex.quote(self.pythons[host])
        return f"ssh -t {host} {python} -m muprover.cli play --run {run}"

    @property
    def has_evaluator(self) -> bool:
        return any("evaluator" in components for components in self.components.values())

    def host_of(self, component: str) -> str:
        return next(host for host, names in self.components.items() if component in names)

    def save(self) -> None:
        write_tree(_folder() / f"{self.run}.json", asdict(self))


def find(run: str | None) -> Record:
    """The record of a run; None: of the one that was started last."""
    paths = sorted(_folder().glob("*.json"), key=lambda path: path.stat().st_mtime)
    names = [path.stem for path in paths]
    record = read_record(run or names[-1]) if names else None
    if record is None:
        which = f"run {run}" if run else "run"
        known = f"; there are {', '.join(names)}" if names else ""
        raise SettingsError(f"no {which} was started by `muprover up` on this machine{known}")
    return record


def read_record(run: str) -> Record | None:
    """None: there is none of that name. Raises `SettingsError` for one that is damaged."""
    path = _folder() / f"{run}.json"
    try:
        return TypeAdapter(Record).validate_json(path.read_bytes(), strict=True)
    except FileNotFoundError:
        return None
    except ValidationError as error:
        [first, *_] = error.errors()
        where = ".".join(map(str, first["loc"]))
        raise SettingsError(
            f"{path} is damaged ({where}: {first['msg']}): remove it, and give the same "
            "`muprover up` once more"
        ) from None
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror}") from None


def _folder() -> Path:
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "muprover" / "runs"
