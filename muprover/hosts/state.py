"""What a host's supervisor says of its part in a run, in one file."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Self

from muprover.hosts.place import Place, read_as, write_tree


@dataclass(frozen=True)
class ComponentState:
    name: str
    pid: int | None
    state: str  # running, crashed, done, ended
    started: float  # seconds since 1970
    restarts: int


@dataclass(frozen=True)
class Proof:
    """When the goal was met."""

    seconds: float  # of the run
    evaluation: dict[str, Any]  # that says so


@dataclass(frozen=True)
class State:
    pid: int = 0  # of the supervisor's keeper
    orders: int = 0  # the number of those that are obeyed
    components: list[ComponentState] = field(default_factory=list)
    goal: str | None = None
    proven: Proof | None = None
    seconds: float = 0.0  # of this host's part, earlier sessions included

    @classmethod
    def read(cls, place: Place) -> Self:
        return read_as(cls, place.state)

    def write(self, place: Place) -> None:
        write_tree(place.state, asdict(self))
