"""What stands between an agent's games and the replay server: `Uploader` sends the finished ones,
`Admission` asks whether more may begin. A thread each, so that no game waits for either.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, Protocol

from muprover.agent_metrics import QUEUED, REFUSED, WAIT_SECONDS
from muprover.history import GameHistory
from muprover.services.client import ServiceError
from muprover.services.waiting import Stopped, persist

log = logging.getLogger(__name__)

GAMES_PER_ADD = 256  # at most, in one message
LINGER_SECONDS = 0.05  # that a finished game waits for others to be sent with it
ADMISSION_SECONDS = 0.1  # that a yes of the replay server holds
ADMIT_SECONDS = 20.0  # at most, of one question
GLANCE_SECONDS = 0.5  # in which a group that waits looks whether it should end


class Replay(Protocol):
    """What the agent needs of a replay server. Setting `stop` ends the waiting."""

    def add(self, games: Sequence[GameHistory], stop: threading.Event | None = None) -> Any:
        """Keeps games durably; one that it has already is not kept twice."""

    def admit(
        self, agent: str, timeout: float = ADMIT_SECONDS, stop: threading.Event | None = None
    ) -> bool:
        """Whether there is room for more games, for which it waits up to `timeout` seconds."""


class Worker(threading.Thread, ABC):
    """A thread of the agent. What it cannot do anything about ends it, with `failed`; without it
    the agent is of no use, and has to end too."""

    def __init__(self, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self.failed = False

    def run(self) -> None:
        try:
            self.work()
        except Stopped:
            pass
        except Exception as error:
            in_words = isinstance(error, ServiceError)
            log.error("%s: %s", self.name, error, exc_info=None if in_words else error)
            self.failed = True

    @abstractmethod
    def work(self) -> None:
        """What the thread is there for."""


class Uploader(Worker):
    """Sends finished games, in order, and keeps them until the replay server has them."""

    def __init__(self, replay: Replay, room: int) -> None:
        """`room`: segments that may wait; then no games begin. More are kept all the same."""
        super().__init__("uploader")
        self.refused = 0  # segments, by the replay server
        self._replay = replay
        self._room = room
        self._enough = min(GAMES_PER_ADD, room // 2)  # to be sent without waiting for more
        self._changed = threading.Condition()
        self._waiting: deque[GameHistory] = deque()
        self._ending = False
        self._given_up = threading.Event()

    @property
    def is_full(self) -> bool:
        return len(self._waiting) >= self._room

    def put(self, segments: Iterable[GameHistory]) -> None:
        """Takes segments to send; never waits."""
        with self._changed:
            self._waiting.extend(segments)
            QUEUED.set(len(self._waiting))
            self._changed.notify_all()

    def flush(self, timeout: float) -> int:
        """Ends when all is sent, or after `timeout` seconds; answers how many segments were not."""
        with self._changed:
            self._ending = True
            self._changed.notify_all()
        self.join(timeout)
        self._given_up.set()
        return len(self._waiting)

    def work(self) -> None:
        while games := self._next():
            self._send(games)
            with self._changed:
                for _ in games:
                    self._waiting.popleft()
                QUEUED.set(len(self._waiting))

    def _next(self) -> list[GameHistory]:
        """What to send next: as much as comes together in a moment; nothing if that was all."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._ending)
            self._changed.wait_for(
                lambda: len(self._waiting) >= self._enough or self._ending, LINGER_SECONDS
            )
            return list(islice(self._waiting, GAMES_PER_ADD))

    def _send(self, games: Sequence[GameHistory]) -> None:
        """Sends `games` until they are taken. Those that replay refuses for good are named, and
        left behind, so that they do not stand in the way of others."""
        try:
            persist(lambda: self._replay.add(games, self._given_up), self._given_up)
        except ServiceError as error:
            if len(games) > 1:
                for game in games:
                    self._send([game])
                return
            self.refused += 1
            REFUSED.inc()
            log.error("game %016x segment %d was refused: %s", *games[0].key, error)
        else:
            log.debug("acknowledged: %s", _Keys(games))


class _Keys:
    """Games by id and segment, put into words only where they are logged."""

    def __init__(self, games: Sequence[GameHistory]) -> None:
        self._games = games

    def __str__(self) -> str:
        return " ".join(f"{game.game_id:016x}/{game.segment}" for game in self._games)


class Admission(Worker):
    """Asks the replay server, one question at a time, whether more games may begin.

    A yes holds until it is first used, and a moment longer. In that moment the next question is
    asked, so that nobody waits for an answer while there is room. While too many finished games
    wait to be sent, none may begin.
    """

    def __init__(
        self, replay: Replay, agent: str, uploader: Uploader, stop: threading.Event
    ) -> None:
        super().__init__("admission")
        self._replay = replay
        self._agent = agent
        self._uploader = uploader
        self._stop_event = stop
        self._changed = threading.Condition()
        self._until = 0.0  # the last yes holds; infinite while it is not used

    def may_start(self) -> bool:
        """Whether games may begin now."""
        with self._changed:
            if self._uploader.is_full or self._stop_event.is_set() or not self._holds():
                return False
            if self._until == math.inf:
                self._until = time.monotonic() + ADMISSION_SECONDS
                self._changed.notify_all()
            return True

    def wait(self) -> None:
        """Returns when games may begin, or after a while."""
        start = time.perf_counter()
        reason = "add" if self._uploader.is_full else "admit"
        with self._changed:
            if reason == "add":
                self._changed.wait(GLANCE_SECONDS)
            else:
                self._changed.wait_for(self._holds, GLANCE_SECONDS)
        WAIT_SECONDS.labels(reason).inc(time.perf_counter() - start)

    def work(self) -> None:
        while not self._stop_event.is_set():
            with self._changed:
                self._changed.wait_for(lambda: self._until != math.inf)
            if persist(self._ask, self._stop_event):
                with self._changed:
                    self._until = math.inf
                    self._changed.notify_all()
                self._stop_event.wait(ADMISSION_SECONDS / 2)

    def _holds(self) -> bool:
        return time.monotonic() < self._until

    def _ask(self) -> bool:
        return self._replay.admit(self._agent, ADMIT_SECONDS, self._stop_event)
