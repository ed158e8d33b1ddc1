"""The agent: plays games on an environment server, asks a network server for its moves, and sends
what it played to the replay server.

Its games are in groups, a thread each, so that the games of one group move on while another's
searches run. Two more threads stand beside them: `Uploader` sends finished games, `Admission` asks
whether more may begin. No group waits for either but when replay is behind.

Any server may go away and come back: searches are asked again, games whose environment is lost are
kept as far as they went, and finished ones are held until replay has them.
"""

from __future__ import annotations

import logging
import math
import os
import platform
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from itertools import islice
from typing import Any, Protocol

import numpy as np

from muprover.agent_metrics import (
    ENVIRONMENT_WAIT,
    MOVES,
    NETWORK_WAIT,
    QUEUED,
    REFUSED,
    SEARCH_SECONDS,
    WAIT_SECONDS,
    TimedEnvironments,
    count_results,
    count_search,
)
from muprover.config import Config
from muprover.environment import Environments
from muprover.game import Game
from muprover.history import GameHistory
from muprover.policy import Policy, PolicyOutput, SearchInputs
from muprover.selfplay import Games
from muprover.services.client import ServiceError
from muprover.services.health import HealthPort
from muprover.services.server import start_metrics
from muprover.services.waiting import Patience, Stopped, passes, persist, stop_on_signals

log = logging.getLogger(__name__)

GAMES_PER_ADD = 256  # at most, in one message
LINGER_SECONDS = 0.05  # that a finished game waits for others to be sent with it
ADMISSION_SECONDS = 0.1  # that a yes of the replay server holds
QUEUED_PER_GAME = 4  # segments that may wait to be sent, for each game in play
ATTEMPT_SECONDS = 2.0  # of a call to a server that is away, before the agent looks around
ADMIT_SECONDS = 20.0  # at most, of one question
FLUSH_SECONDS = 20.0  # at most, to send what is left when the agent ends
GLANCE_SECONDS = 0.5  # in which a group that waits looks whether it should end


class Replay(Protocol):
    """What the agent needs of a replay server. Setting `stop` ends the waiting."""

    def add(self, games: Sequence[GameHistory], stop: threading.Event | None = None) -> Any:
        """Keeps games durably; one that it has already is not kept twice."""

    def admit(
        self, agent: str, timeout: float = ADMIT_SECONDS, stop: threading.Event | None = None
    ) -> bool:
        """Whether there is room for more games, for which it waits up to `timeout` seconds."""


def run(
    game: Game,
    *,
    environment: str,
    replay_buffer: str,
    network: str,
    num_games: int | None = None,
    groups: int = 2,
    environment_timeout: float = 300.0,
    agent_name: str | None = None,
    metrics_port: int | None = None,
    metrics_host: str = "[::]",
    health_port: int | None = None,
    seed: int = 0,
    model_name: str = "muprover",
    max_games_total: int | None = None,
) -> int:
    """Plays until SIGTERM or SIGINT, or until `max_games_total` are played; answers an exit status.

    num_games: played at once; None: as the settings say. groups: that these are played in.
    environment_timeout: seconds after which a server that answers nothing is taken for lost.
    """
    config = game.config
    name = agent_name or f"{platform.node()}-{os.getpid()}"
    sizes = [n for n in shares(num_games or config.self_play.games_per_agent, groups) if n]
    stop = stop_on_signals()
    with ExitStack() as clients:
        start_metrics(metrics_port, metrics_host)
        health = None if health_port is None else HealthPort(health_port)
        if health:
            clients.callback(health.close)
        try:
            agent = Agent(
                config,
                name,
                policy=connect_network(network, model_name, config, stop, clients),
                replay=connect_replay(replay_buffer, config, stop, clients),
                environments=[
                    connect_environments(
                        environment, config, size, environment_timeout, stop, clients
                    )
                    for size in sizes
                ],
                rng=np.random.default_rng([seed, zlib.crc32(name.encode())]),
                max_games=max_games_total,
                stop=stop,
            )
            log.info("agent %s plays %d games at once, in %d groups", name, sum(sizes), len(sizes))
            return agent.run(health.set_serving if health else None)
        except Stopped:
            return 0
        except ServiceError as error:
            log.error("%s", error)
            return 1


def connect_network(
    address: str, model_name: str, config: Config, stop: threading.Event, clients: ExitStack
) -> Policy:
    """The search of the settings' placement, once the server has a model for it."""
    from muprover.services.network import RemoteNetwork, remote_search_policy

    network = RemoteNetwork(address, model_name, config, patience=ATTEMPT_SECONDS)
    clients.callback(network.close)
    persist(lambda: network.wait_until_ready(ATTEMPT_SECONDS), stop)
    if config.search.placement == "agent":
        return remote_search_policy(network, config)
    return network.policy


def connect_replay(
    address: str, config: Config, stop: threading.Event, clients: ExitStack
) -> Replay:
    from muprover.services.remote_replay import RemoteReplayBuffer

    replay = RemoteReplayBuffer(address, config)
    clients.callback(replay.close)
    persist(lambda: replay.connect(stop), stop)
    return replay


def connect_environments(
    address: str,
    config: Config,
    num_games: int,
    answer_timeout: float,
    stop: threading.Event,
    clients: ExitStack,
) -> Environments:
    from muprover.services.environment import RemoteEnvironments

    def connect() -> Environments:
        return RemoteEnvironments(
            address, config, num_games, timeout=ATTEMPT_SECONDS, answer_timeout=answer_timeout
        )

    environments = persist(connect, stop)
    clients.callback(environments.close)
    return environments


def shares(total: int, parts: int) -> list[int]:
    """`total` in `parts` parts, as equal as can be."""
    size, rest = divmod(total, parts)
    return [size + (part < rest) for part in range(parts)]


class Agent:
    """Groups of games in play, and the two threads between them and the replay server."""

    def __init__(
        self,
        config: Config,
        name: str,
        policy: Policy,
        replay: Replay,
        environments: Sequence[Environments],
        rng: np.random.Generator,
        stop: threading.Event,
        max_games: int | None = None,
    ) -> None:
        num_groups = len(environments)
        self._stop = stop
        self._uploader = Uploader(replay, QUEUED_PER_GAME * sum(map(len, environments)))
        self._admission = Admission(replay, name, self._uploader, stop)
        limits = [None] * num_groups if max_games is None else shares(max_games, num_groups)
        self._groups = []
        for number, (games, limit) in enumerate(zip(environments, limits, strict=True)):
            play = Games(
                TimedEnvironments(games),
                config,
                rng.spawn(1)[0],
                name,
                self._admission.may_start,
                limit,
            )
            group = Group(f"group-{number}", play, policy, self._uploader, self._admission, stop)
            self._groups.append(group)

    def run(self, set_serving: Callable[[bool], None] | None = None) -> int:
        """Plays until told to stop or done, then sends all there is; answers an exit status."""
        for thread in (self._uploader, self._admission, *self._groups):
            thread.start()
        if set_serving:
            set_serving(True)
        while any(group.is_alive() for group in self._groups):
            if self._stop.wait(GLANCE_SECONDS):
                break
        if set_serving:
            set_serving(False)
        for group in self._groups:
            group.join()
        unsent = self._uploader.flush(FLUSH_SECONDS)
        if unsent:
            log.error("%d finished games are lost: the replay server took them not in time", unsent)
        failed = any(group.failed for group in self._groups) or self._uploader.failed
        return 1 if unsent or failed else 0


class Group(threading.Thread):
    """Some games in play, each lock step one search for all of them."""

    def __init__(
        self,
        name: str,
        games: Games,
        policy: Policy,
        uploader: Uploader,
        admission: Admission,
        stop: threading.Event,
    ) -> None:
        super().__init__(name=name, daemon=True)
        self.failed = False
        self._games = games
        self._policy = policy
        self._uploader = uploader
        self._admission = admission
        self._stop_event = stop
        self._network_patience = Patience(stop)
        self._environment_patience = Patience(stop)

    def run(self) -> None:
        try:
            while not self._games.done and self._lock_step():
                pass
        except Stopped:
            pass
        except Exception as error:  # does not go away by itself, so the whole agent ends
            in_words = isinstance(error, ServiceError)
            log.error("%s", error, exc_info=None if in_words else error)
            self.failed = True
            self._stop_event.set()
        finally:
            self._uploader.put(self._games.break_off())

    def _lock_step(self) -> bool:
        """A search, and a move of every game; answers whether to go on.

        Told to stop, it leaves it at the search, which tells what the games are worth as they
        stand. Games whose environment is lost are broken off.
        """
        output = None
        try:
            inputs = self._games.search_inputs()
            if inputs is None:
                self._admission.wait()
                return not self._stop_event.is_set()
            output = self._search(inputs)
            if self._stop_event.is_set():
                self._uploader.put(self._games.break_off(output))
                return False
            progress = self._games.advance(output)
        except ServiceError as error:
            if not error.is_transient:
                raise
            self._uploader.put(self._games.break_off(output))
            ENVIRONMENT_WAIT.inc(self._environment_patience.wait(error))
            return True
        self._environment_patience.rewarded()
        self._uploader.put(progress.segments)
        MOVES.inc(progress.num_moves)
        count_results(progress.results)
        return True

    def _search(self, inputs: SearchInputs) -> PolicyOutput:
        """What the network server answers, as soon as it does."""
        while True:
            start = time.perf_counter()
            try:
                output = self._policy(inputs)
            except ServiceError as error:
                if not passes(error):
                    raise
                NETWORK_WAIT.inc(time.perf_counter() - start)
                NETWORK_WAIT.inc(self._network_patience.wait(error))
                continue
            self._network_patience.rewarded()
            seconds = time.perf_counter() - start
            NETWORK_WAIT.inc(seconds)
            SEARCH_SECONDS.observe(seconds)
            count_search(inputs, output)
            return output


class Uploader(threading.Thread):
    """Sends finished games, in order, and keeps them until the replay server has them."""

    def __init__(self, replay: Replay, room: int) -> None:
        """`room`: segments that may wait; then no games begin. More are kept all the same."""
        super().__init__(name="uploader", daemon=True)
        self.failed = False
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

    def run(self) -> None:
        with suppress(Stopped):
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
            self.failed = True
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


class Admission(threading.Thread):
    """Asks the replay server, one question at a time, whether more games may begin.

    A yes holds until it is first used, and a moment longer. In that moment the next question is
    asked, so that nobody waits for an answer while there is room. While too many finished games
    wait to be sent, none may begin.
    """

    def __init__(
        self, replay: Replay, agent: str, uploader: Uploader, stop: threading.Event
    ) -> None:
        super().__init__(name="admission", daemon=True)
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

    def run(self) -> None:
        with suppress(Stopped):
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
