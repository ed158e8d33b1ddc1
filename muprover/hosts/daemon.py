"""The supervisor of one host: keeps its part of a run going, whoever logs out or goes away.

`python -m muprover.hosts.daemon PLACE` is started by `muprover up`. SIGHUP: read the orders again.
SIGTERM: end everything in order.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from typing import Any

from muprover.hosts.orders import from_tree
from muprover.hosts.place import Place, Tree, read_tree, write_tree
from muprover.logs import configure_logging
from muprover.progress import EvaluationLog
from muprover.supervisor import Component, Supervisor

log = logging.getLogger(__name__)

TICK_SECONDS = 0.25
STATE_SECONDS = 1.0  # between two writes, if nothing has happened


class Daemon:
    """Components as ordered, and what there is to say of them."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.supervisor = Supervisor(tell=log.warning, gives_up=False)
        self.stop, self.reload = threading.Event(), threading.Event()
        before = read_tree(place.state)
        self._seconds_before = float(before.get("seconds", 0.0))
        self._proven: Tree | None = before.get("proven")
        self._evaluations = EvaluationLog(place.folder.evaluations)
        self._orders: Tree = {}
        self._started = time.monotonic()
        self._written: tuple[float, Tree] = (0.0, {})

    def run(self) -> None:
        """Until SIGTERM."""
        with self.place.hold() as lock:
            log.info("supervisor of %s in %s", self.place.host, self.place.folder.path)
            self.supervisor.start(lock)
            self.reload.set()
            while not self.stop.wait(TICK_SECONDS):
                try:
                    self._tick()
                except OSError as error:  # a full disk, no process left: all else goes on
                    log.warning("%s", error)
            log.info("ending everything, in order")
            self.supervisor.stop()
            with suppress(OSError):
                self._write_state()

    def _tick(self) -> None:
        if self.reload.is_set():
            self.reload.clear()
            self._obey(read_tree(self.place.orders))
        self.supervisor.check()
        self._look_at_the_goal()
        self._write_state()

    def _obey(self, orders: Tree) -> None:
        """Ends what is not ordered, starts what is; what is ordered as it runs is left alone."""
        if not orders:
            log.warning("there are no orders in %s; all goes on as it is", self.place.orders)
            return
        self.supervisor.replace([from_tree(tree) for tree in orders["components"]])
        self._orders = orders
        if self._proven and self._proven["evaluation"].get("goal") != orders["goal"]:
            self._proven = None  # it was another goal
        names = ", ".join(c.name for c in self.supervisor.components)
        log.info("orders %d: %s", orders["number"], names or "nothing")

    @property
    def seconds(self) -> float:
        """Of this host's part, earlier sessions included."""
        return self._seconds_before + time.monotonic() - self._started

    def _look_at_the_goal(self) -> None:
        if self._proven is None:
            evaluation = self._evaluations.newest()
            if evaluation.get("goal_met"):
                self._proven = {"seconds": round(self.seconds, 1), "evaluation": evaluation}
                log.info("goal met: %s, after %.0f s", evaluation.get("goal"), self.seconds)

    def _write_state(self) -> None:
        """Whenever something has changed, and now and then."""
        facts = {
            "pid": os.getpid(),
            "orders": self._orders.get("number", 0),
            "components": [self._describe(c) for c in self.supervisor.components],
            "goal": self._orders.get("goal"),
            "proven": self._proven,
        }
        at, before = self._written
        if facts != before or time.monotonic() > at + STATE_SECONDS:
            write_tree(self.place.state, facts | {"seconds": round(self.seconds, 1)})
            self._written = (time.monotonic(), facts)

    def _describe(self, component: Component) -> Tree:
        process = component.process
        running = process is not None and process.poll() is None
        state = "done" if component.is_done else "running" if running else "crashed"
        if self.stop.is_set() and not running:
            state = "ended"
        started = time.time() - (time.monotonic() - component.started)
        return {
            "name": component.name,
            "pid": process.pid if process is not None and running else None,
            "state": state,
            "started": round(started),
            "restarts": component.restarts,
        }


def main() -> int:
    configure_logging("supervisor")
    daemon = Daemon(Place(**json.loads(sys.argv[1])))

    def on(number: int, event: threading.Event) -> None:
        def act(*_: Any) -> None:
            event.set()

        signal.signal(number, act)

    on(signal.SIGTERM, daemon.stop)
    on(signal.SIGINT, daemon.stop)
    on(signal.SIGHUP, daemon.reload)
    daemon.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
