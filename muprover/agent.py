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
import os
import platform
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack

import numpy as np

from muprover.agent_metrics import (
    ENVIRONMENT_WAIT,
    MOVES,
    NETWORK_WAIT,
    SEARCH_SECONDS,
    TimedEnvironments,
    count_results,
    count_search,
)
from muprover.agent_replay import GLANCE_SECONDS, Admission, Replay, Uploader, Worker
from muprover.config import Config
from muprover.environment import Environments
from muprover.game import Game
from muprover.policy import Policy, PolicyOutput, SearchInputs
from muprover.selfplay import Games
from muprover.services.client import ServiceError
from muprover.services.health import HealthPort
from muprover.services.server import start_metrics
from muprover.services.waiting import Patience, Stopped, passes, persist, stop_on_signals

log = logging.getLogger(__name__)

QUEUED_PER_GAME = 4  # segments that may wait to be sent, for each game in play
ATTEMPT_SECONDS = 2.0  # of a call to a server that is away, before the agent looks around
RESERVE_SECONDS = 10.0  # of the grace, for what is no waiting


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
    search_signature: str = "search",
    grace: float = 60.0,
    max_games_total: int | None = None,
) -> int:
    """Plays until SIGTERM or SIGINT, or until `max_games_total` are played; answers an exit status.

    num_games: played at once; None: as the settings say. groups: that these are played in.
    environment_timeout: seconds after which a server that answers nothing is taken for lost.
    grace: seconds in which it has to end once told to.
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
            policy, version = connect_network(
                network, model_name, config, stop, clients, search_signature, grace
            )
            agent = Agent(
                config,
                name,
                policy=policy,
                version=version,
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
                ending_seconds=ending_seconds(grace),
            )
            log.info("agent %s plays %d games at once, in %d groups", name, sum(sizes), len(sizes))
            return agent.run(health.set_serving if health else None)
        except Stopped:
            return 0
        except ServiceError as error:
            log.error("%s", error)
            return 1


def ending_seconds(grace: float) -> float:
    """What is left of the grace for waiting: for searches, and for replay to take the games."""
    return max(grace / 2, grace - RESERVE_SECONDS)


def connect_network(
    address: str,
    model_name: str,
    config: Config,
    stop: threading.Event,
    clients: ExitStack,
    signature: str = "search",
    grace: float = 60.0,
) -> tuple[Policy, int]:
    """The search of the settings' placement, once the server has a model for it; and the version
    of that."""
    from muprover.services.network import RemoteNetwork, remote_search_policy

    network = RemoteNetwork(
        address,
        model_name,
        config,
        signature=signature,
        timeout=0.9 * ending_seconds(grace),  # no search outlasts the agent
        patience=ATTEMPT_SECONDS,
    )
    clients.callback(network.close)
    version = persist(lambda: network.wait_until_ready(ATTEMPT_SECONDS), stop).version
    if config.search.placement == "agent":
        return remote_search_policy(network, config), version
    return network.policy, version


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
        version: int = 0,
        ending_seconds: float = 50.0,
    ) -> None:
        """version: of the network that is served at the start, if that is known."""
        num_groups = len(environments)
        self._stop = stop
        self._ending_seconds = ending_seconds
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
                version,
            )
            group = Group(f"group-{number}", play, policy, self._uploader, self._admission, stop)
            self._groups.append(group)

    def run(self, set_serving: Callable[[bool], None] | None = None) -> int:
        """Plays until told to stop or done, then sends all there is; answers an exit status."""
        workers = (self._uploader, self._admission, *self._groups)
        for worker in workers:
            worker.start()
        if set_serving:
            set_serving(True)
        while any(group.is_alive() for group in self._groups):
            if self._stop.wait(GLANCE_SECONDS):
                break
            if any(worker.failed for worker in workers):
                self._stop.set()
        if set_serving:
            set_serving(False)
        deadline = time.monotonic() + self._ending_seconds
        for group in self._groups:
            group.join(max(0.0, deadline - time.monotonic()))
            if group.is_alive():
                log.error("%s still waits for an answer: its unfinished games are lost", group.name)
        unsent = self._uploader.flush(max(0.0, deadline - time.monotonic()))
        if unsent:
            log.error("%d finished games are lost: the replay server took them not in time", unsent)
        failed = any(worker.failed for worker in workers)
        return 1 if failed or unsent or self._uploader.refused else 0


class Group(Worker):
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
        super().__init__(name)
        self._games = games
        self._policy = policy
        self._uploader = uploader
        self._admission = admission
        self._stop_event = stop
        self._network_patience = Patience(stop)
        self._environment_patience = Patience(stop)

    def work(self) -> None:
        try:
            while not self._games.done and self._lock_step():
                pass
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
