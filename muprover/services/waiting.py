"""How clients wait: for servers that are not there yet or went away, and for the word to stop."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import TypeVar

import grpc

from muprover.services.client import ServiceError

log = logging.getLogger(__name__)

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 3.0  # s between two attempts to reach a server

T = TypeVar("T")


class Stopped(Exception):
    """Whoever waits was told to stop."""


def passes(error: ServiceError) -> bool:
    """Whether it may pass: a server that is away, or has no model to serve yet."""
    return error.is_transient or error.code == grpc.StatusCode.NOT_FOUND


class Patience:
    """Pauses between attempts, longer each time; says once what it waits for, once that it came."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop
        self._since: float | None = None
        self._pause = FIRST_PAUSE

    def wait(self, error: Exception) -> float:
        """Pauses because of `error`; answers for how long. Raises `Stopped` when told to stop."""
        if self._since is None:
            self._since = time.monotonic()
            log.warning("%s; trying again", error)
        start = time.monotonic()
        if self._stop.wait(self._pause):
            raise Stopped
        self._pause = min(2 * self._pause, LONGEST_PAUSE)
        return time.monotonic() - start

    def rewarded(self) -> None:
        """The attempt succeeded."""
        if self._since is not None:
            log.info("going on after %.1f s", time.monotonic() - self._since)
            self._since, self._pause = None, FIRST_PAUSE


def persist(attempt: Callable[[], T], stop: threading.Event) -> T:
    """What `attempt` answers at last; it is made again as long as it fails for a passing reason.

    Raises `Stopped` when told to stop, and any other error at once.
    """
    patience = Patience(stop)
    while True:
        try:
            answer = attempt()
        except ServiceError as error:
            if not passes(error):
                raise
            patience.wait(error)
        else:
            patience.rewarded()
            return answer


def stop_on_signals() -> threading.Event:
    """An event that SIGTERM and SIGINT set; a second one kills as usual."""
    stop = threading.Event()
    arrived: SimpleQueue[int] = SimpleQueue()  # a handler may put here, but not set an event

    def on_signal(number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        arrived.put(number)

    def watch() -> None:
        log.info("%s: ending", signal.Signals(arrived.get()).name)
        stop.set()

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, on_signal)
        threading.Thread(target=watch, name="signals", daemon=True).start()
    return stop
