"""What `muprover up` leaves: orders and states on hosts, records where it was typed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from unittest.mock import patch

from fuzz.files import refused
from fuzz.mutate import text
from fuzz.target import Feed, Target
from muprover.components import Layout
from muprover.hosts.daemon import Daemon
from muprover.hosts.on_host import status
from muprover.hosts.orders import Ordered, Orders, own_ports
from muprover.hosts.place import Place
from muprover.hosts.record import Record, find
from muprover.hosts.state import ComponentState, Proof, State

WORDS = ("components", "metrics", "listens", "pid", "replay", "proven", "seconds", "number")


def file_of_a_host(path_of: Callable[[Place], Path]) -> Callable[[Path], Feed]:
    """A supervisor begins with it, and its host is asked how it is; both do without it."""

    def open_target(folder: Path) -> Feed:
        place = Place("localhost", "run", str(folder), str(folder / "models"))
        path = path_of(place)
        path.parent.mkdir(parents=True)
        daemon = Daemon(place)

        def feed(data: bytes) -> None:
            path.write_bytes(data)
            orders = Orders.read(place)
            components = [ordered.component() for ordered in orders.components]
            assert all(isinstance(word, str) for c in components for word in c.arguments)
            own_ports(Layout(only=("replay",)), {"replay": 1}, orders)
            Daemon(place)
            daemon._orders = orders
            daemon._write_state()
            assert json.dumps(status({"place": vars(place), "seconds": 0}))

        return feed

    return open_target


def open_record(folder: Path) -> Feed:
    path = folder / "muprover" / "runs" / "run.json"
    path.parent.mkdir(parents=True)

    def read() -> None:
        record = find("run")
        for host, names in record.components.items():
            assert record.place(host).host == host
            assert all(record.host_of(name) in record.components for name in names)
        assert isinstance(record.has_evaluator, bool)

    def feed(data: bytes) -> None:
        path.write_bytes(data)
        with patch.dict(os.environ, XDG_STATE_HOME=str(folder)):
            refused(read)

    return feed


def orders() -> list[bytes]:
    replay = Ordered("replay", ["replay", "--port", "1"], "log", 30.0, {"OMP_NUM_THREADS": "1"})
    made = Orders(
        number=3,
        names=["replay"],
        components=[replay],
        listens={"replay": 1},
        elsewhere={"network": "b:2"},
        metrics={"replay": 9},
        goal="lost_lines ≤ 0",
    )
    return [json.dumps(asdict(made)).encode()]


def states() -> list[bytes]:
    replay = ComponentState("replay", 77, "running", 1e9, 2)
    proof = Proof(9.5, {"version": 3, "goal": "lost_lines ≤ 0"})
    made = State(pid=7, orders=3, components=[replay], proven=proof, seconds=11.0)
    return [json.dumps(asdict(made)).encode()]


def records() -> list[bytes]:
    made = Record(
        run="run",
        game="tictactoe",
        dir="muprover",
        models="m",
        goal=None,
        components={"beta": ["replay", "evaluator"], "localhost": ["agent-1"]},
        pythons={"beta": "/usr/bin/python3"},
        network="beta:50002",
    )
    return [json.dumps(asdict(made)).encode()]


TARGETS = [
    Target("host.orders", file_of_a_host(lambda place: place.orders), orders, text(WORDS), 0.5),
    Target("host.state", file_of_a_host(lambda place: place.state), states, text(WORDS), 0.5),
    Target("host.record", open_record, records, text((*WORDS, "components", "beta")), 0.5),
]
