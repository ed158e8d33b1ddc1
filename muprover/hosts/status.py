"""`muprover status`: what runs on which host, how training goes, whether the goal is met."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from muprover.hosts.connection import Connections, Host, Message
from muprover.hosts.down import down
from muprover.hosts.record import Record
from muprover.progress import (
    History,
    Snapshot,
    clock,
    combine,
    make_display,
)

LOOK_SECONDS = 2.0  # between two looks of `up --wait`
NOT_RUNNING = "not running"


@dataclass(frozen=True)
class Process:
    """A component, as its host tells of it."""

    host: str
    name: str
    state: str  # running, crashed, done, not running, unknown
    pid: int | None = None
    seconds: float | None = None  # since it was started
    restarts: int = 0

    @property
    def runs(self) -> bool:
        return self.state in ("running", "done")


@dataclass(frozen=True)
class Status:
    """What all hosts have answered."""

    record: Record
    answers: dict[str, Message]
    wrong: dict[str, str]  # hosts that have not, and why

    @cached_property
    def processes(self) -> list[Process]:
        return list(self._processes())

    @property
    def all_run(self) -> bool:
        return all(process.runs for process in self.processes)

    @property
    def proven(self) -> Message | None:
        """When the goal was met: `seconds` of the run, and the `evaluation` that says so."""
        return next((p for a in self.answers.values() if (p := a["state"].get("proven"))), None)

    @property
    def seconds(self) -> float:
        """Of the run, earlier sessions included."""
        return max((a["state"].get("seconds", 0.0) for a in self.answers.values()), default=0.0)

    @property
    def evaluation(self) -> Message:
        """The newest."""
        return next((e for a in self.answers.values() if (e := a["evaluation"])), {})

    @cached_property
    def snapshot(self) -> Snapshot:
        """How training goes now, with rates if each host was looked at twice."""
        history = History()
        first = history.add(self._look(0, 0.0))
        spans = [a["looks"][-1]["at"] - a["looks"][0]["at"] for a in self.answers.values()]
        if not (span := max(spans, default=0.0)):
            return replace(first, seconds=self.seconds)
        return replace(history.add(self._look(-1, span)), seconds=self.seconds)

    def to_json(self) -> dict[str, Any]:
        snapshot = vars(self.snapshot) | {"evaluation": self.evaluation}
        return {
            "run": self.record.run,
            "game": self.record.game,
            "goal": self.record.goal,
            "proven": self.proven,
            "processes": [vars(process) for process in self.processes],
            "hosts": {host: self.wrong.get(host) for host in self.record.components},
            "training": snapshot,
        }

    def _processes(self) -> Iterator[Process]:
        for host, names in self.record.components.items():
            answer = self.answers.get(host)
            if answer is None:
                yield from (Process(host, name, "unknown") for name in names)
                continue
            known = {c["name"]: c for c in answer["state"].get("components", [])}
            for name in names:
                told = known.get(name)
                if told is None or not answer["running"]:
                    yield Process(host, name, NOT_RUNNING)
                else:
                    seconds = answer["now"] - told["started"] if told["pid"] else None
                    facts = (told["state"], told["pid"], seconds, told["restarts"])
                    yield Process(host, name, *facts)

    def _look(self, number: int, seconds: float) -> Snapshot:
        scraped = {
            name: metrics
            for answer in self.answers.values()
            for name, metrics in answer["looks"][number]["metrics"].items()
        }
        return combine(scraped, seconds, self.evaluation)


def read_status(record: Record, connections: Connections, seconds: float) -> Status:
    """Asks all hosts; rates are of so many seconds."""

    def ask(host: Host) -> Message:
        return host.ask("status", {"place": vars(record.place(host.name)), "seconds": seconds})

    return Status(record, *connections.each(ask))


def status(record: Record, seconds: float) -> Status:
    with Connections(record.components, record.pythons) as connections:
        return read_status(record, connections, seconds)


def describe(status: Status) -> str:
    """A page for people."""
    record = status.record
    rows = [["host", "component", "state", "pid", "up", "restarts"]]
    for p in status.processes:
        up = "-" if p.seconds is None else clock(max(0.0, p.seconds))
        pid = "-" if p.pid is None else str(p.pid)
        rows.append([p.host, p.name, p.state, pid, up, str(p.restarts)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    figures = [f"{name + ':':20}{figure}" for name, figure in status.snapshot.describe()]
    wrong = [f"{host}: {problem}" for host, problem in status.wrong.items()]
    head = f"run {record.run}: {record.game}, {clock(status.seconds)} so far; {verdict(status)}"
    return "\n".join([head, "", *table, *wrong, "", *figures])


def verdict(status: Status) -> str:
    """Whether the goal is met."""
    record, proven = status.record, status.proven
    if proven:
        return (
            f"PROVEN after {proven['seconds']:.0f} s: {proven['evaluation'].get('goal')} "
            f"(version {proven['evaluation'].get('version'):,})"
        )
    if not record.goal:
        return "it has no goal"
    if not record.has_evaluator:
        return f"goal {record.goal}, but no evaluator to see whether it is met"
    return f"goal not met yet: {record.goal}"


def wait(record: Record, time_limit_minutes: float | None) -> bool:
    """Shows how it goes until the goal is met, and ends the run; False: at the time limit.

    Whoever is interrupted here leaves the run going.
    """
    end = None if time_limit_minutes is None else time.monotonic() + 60 * time_limit_minutes
    history, told = History(), ""
    with (
        Connections(record.components, record.pythons) as connections,
        make_display(f"{record.game}, run {record.run}") as display,
    ):
        while True:
            now = read_status(record, connections, 0.0)
            snapshot = history.add(replace(now.snapshot, rates={}))
            display.show(snapshot)
            if (trouble := _trouble(now)) != told:
                told = trouble
                display.tell(trouble or "all components run")
            if now.proven or (end is not None and time.monotonic() > end):
                break
            time.sleep(LOOK_SECONDS)  # other hosts; no event tells
    print(
        f"{verdict(now)}; {now.snapshot.games or 0:,.0f} games, "
        f"{now.snapshot.steps or 0:,.0f} training steps"
    )
    down(record, print)
    return now.proven is not None


def _trouble(status: Status) -> str:
    """What does not run, and hosts that do not answer."""
    lost = [f"{p.name} on {p.host}: {p.state}" for p in status.processes if not p.runs]
    silent = [f"{host}: {problem}" for host, problem in status.wrong.items()]
    return "; ".join(silent or lost)
