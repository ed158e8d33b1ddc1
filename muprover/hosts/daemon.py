"""The supervisor of one host: keeps its part of a run going, whoever logs out or goes away.

`python -m muprover.hosts.daemon PLACE` is started by `muprover up`. SIGHUP: read the orders again.
SIGTERM: end everything in order. The process that gets these is the keeper: it passes them on to
the supervisor, its child, and does nothing else but start another one when that is killed.
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
from dataclasses import replace
from select import select

from muprover.hosts.orders import Orders
from muprover.hosts.place import Place
from muprover.hosts.state import ComponentState, Proof, State
from muprover.logs import configure_logging
from muprover.progress import EvaluationLog
from muprover.signals import on_signals
from muprover.supervisor import Component, Supervisor, end_with_parent

log = logging.getLogger(__name__)

TICK_SECONDS = 0.25
STATE_SECONDS = 1.0  # between two writes, if nothing has happened
PAUSE_SECONDS = 1.0  # before another supervisor is started
ENDING = (signal.SIGTERM, signal.SIGINT)
WAITED_FOR = (*ENDING, signal.SIGHUP, signal.SIGCHLD)
SOON_SECONDS = 60.0  # one that fails so soon would fail again


class Daemon:
    """Components as ordered, and what there is to say of them."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.supervisor = Supervisor(tell=log.warning, gives_up=False)
        self.stop, self.reload = threading.Event(), threading.Event()
        before = State.read(place)
        self._seconds_before = before.seconds
        self._proven = before.proven
        self._evaluations = EvaluationLog(place.folder.evaluations)
        self._orders = Orders()
        self._started = time.monotonic()
        self._written = (0.0, State())

    def run(self, lock: int) -> None:
        """Until SIGTERM. lock: the file descriptor of the place, which components hold as well."""
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
            self._obey(Orders.read(self.place))
        self.supervisor.check()
        self._look_at_the_goal()
        self._write_state()

    def _obey(self, orders: Orders) -> None:
        """Ends what is not ordered, starts what is; what is ordered as it runs is left alone."""
        if not orders.number:
            log.warning("there are no orders in %s; all goes on as it is", self.place.orders)
            return
        self.supervisor.replace([ordered.component() for ordered in orders.components])
        self._orders = orders
        if self._proven and self._proven.evaluation.get("goal") != orders.goal:
            self._proven = None  # it was another goal
        names = ", ".join(c.name for c in self.supervisor.components)
        log.info("orders %d: %s", orders.number, names or "nothing")

    @property
    def seconds(self) -> float:
        """Of this host's part, earlier sessions included."""
        return self._seconds_before + time.monotonic() - self._started

    def _look_at_the_goal(self) -> None:
        if self._proven is None:
            evaluation = self._evaluations.newest()
            if evaluation.get("goal_met"):
                self._proven = Proof(round(self.seconds, 1), evaluation)
                log.info("goal met: %s, after %.0f s", evaluation.get("goal"), self.seconds)

    def _write_state(self) -> None:
        """Whenever something has changed, and now and then."""
        state = State(
            pid=os.getppid(),  # the keeper's
            orders=self._orders.number,
            components=[self._describe(c) for c in self.supervisor.components],
            goal=self._orders.goal,
            proven=self._proven,
        )
        at, before = self._written
        if state != before or time.monotonic() > at + STATE_SECONDS:
            replace(state, seconds=round(self.seconds, 1)).write(self.place)
            self._written = (time.monotonic(), state)

    def _describe(self, component: Component) -> ComponentState:
        process = component.process
        running = process is not None and process.poll() is None
        state = "done" if component.is_done else "running" if running else "crashed"
        if self.stop.is_set() and not running:
            state = "ended"
        started = time.time() - (time.monotonic() - component.started)
        return ComponentState(
            name=component.name,
            pid=process.pid if process is not None and running else None,
            state=state,
            started=round(started),
            restarts=component.restarts,
        )


class Keeper:
    """Starts a supervisor, and another one when it is killed.

    Signals wait in a pipe until it is ready for them: none is lost, and none is sent to a child
    that is not there.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self._is_ending = False
        self._arrived, arrives = os.pipe()
        os.set_blocking(arrives, False)
        signal.set_wakeup_fd(arrives)
        for number in WAITED_FOR:
            signal.signal(number, lambda *_: None)

    def run(self) -> int:
        """Until the supervisor ends by itself; answers its status."""
        with self._place.hold() as lock:
            while True:
                began = time.monotonic()
                status = self._supervise(lock)
                soon = time.monotonic() - began < SOON_SECONDS
                if status == 0 or self._is_ending or (status > 0 and soon):
                    return max(0, status)
                log.error("the supervisor ended with %d; starting another", status)
                if select([self._arrived], [], [], PAUSE_SECONDS)[0] and self._next() in ENDING:
                    return 0

    def _supervise(self, lock: int) -> int:
        """Runs one in a child process; answers its status, below 0 for a signal."""
        signal.pthread_sigmask(signal.SIG_BLOCK, WAITED_FOR)  # the child is not ready for them
        child = os.fork()
        if child == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os._exit(supervise(self._place, lock))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, WAITED_FOR)
        while True:
            number = self._next()
            if number != signal.SIGCHLD:
                self._is_ending |= number in ENDING
                os.kill(child, number)  # which has not been waited for: it is still this one
                continue
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status)

    def _next(self) -> int:
        """The signal that came next, as soon as there is one."""
        return os.read(self._arrived, 1)[0]


def supervise(place: Place, lock: int) -> int:
    """The child's part."""
    try:
        daemon = Daemon(place)
        acts = dict.fromkeys(ENDING, daemon.stop.set) | {signal.SIGHUP: daemon.reload.set}
        with on_signals(acts):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, WAITED_FOR)
            end_with_parent(os.getppid())
            daemon.run(lock)
    except BaseException:
        log.exception("the supervisor fails")
        return 1
    return 0


def main() -> int:
    configure_logging("supervisor")
    return Keeper(Place(**json.loads(sys.argv[1]))).run()


if __name__ == "__main__":
    sys.exit(main())
