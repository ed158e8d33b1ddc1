"""What an agent tells Prometheus."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import prometheus_client as prometheus
from numpy.typing import ArrayLike
from prometheus_client import Gauge, Histogram

from muprover.environment import Environments, TimeStep
from muprover.policy import PolicyOutput, SearchInputs
from muprover.selfplay import GameResult

GAMES = prometheus.Counter("muprover_agent_games", "Games played to their end.")
MOVES = prometheus.Counter("muprover_agent_moves", "Moves made in all games.")
SIMULATIONS = prometheus.Counter("muprover_agent_simulations", "Simulations of all searches.")
SEARCH_SECONDS = Histogram(
    "muprover_agent_search_seconds",
    "Of one search of a group's games, as the agent sees it.",
    buckets=[0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10],
)
ENVIRONMENT_SECONDS = Histogram(
    "muprover_agent_environment_seconds",
    "Of one step of a group's games, as the agent sees it.",
    buckets=[0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3],
)
WAIT_SECONDS = prometheus.Counter(
    "muprover_agent_wait_seconds", "That groups of games have waited, by what for.", ["for"]
)
ENVIRONMENT_WAIT, NETWORK_WAIT = map(WAIT_SECONDS.labels, ("environment", "network"))
NETWORK_VERSION = Gauge("muprover_agent_network_version", "That answered last.")
GAME_LENGTH = Histogram(
    "muprover_agent_game_length",
    "Moves of a game.",
    buckets=[5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000],
)
OUTCOMES = prometheus.Counter(
    "muprover_agent_outcomes", "Ends of games as each seat saw it.", ["seat", "result"]
)
POLICY_ENTROPY = Gauge("muprover_agent_policy_entropy", "Mean of the last search's policies, nats.")
QUEUED = Gauge("muprover_agent_queued_segments", "Not yet taken by the replay server.")
REFUSED = prometheus.Counter(
    "muprover_agent_refused_segments", "That the replay server would not have."
)


def count_search(inputs: SearchInputs, output: PolicyOutput) -> None:
    """Takes note of one search of a group's games."""
    SIMULATIONS.inc(int(inputs.num_simulations.sum()))
    NETWORK_VERSION.set(output.version)
    weights = output.action_weights
    entropy = -(weights * np.log(np.maximum(weights, 1e-9))).sum(-1)
    POLICY_ENTROPY.set(float(entropy.mean()))


def count_results(results: Sequence[GameResult]) -> None:
    """Takes note of games that were played to their end."""
    GAMES.inc(len(results))
    for result in results:
        GAME_LENGTH.observe(result.num_moves)
    outcomes = Counter(
        (seat, "win" if score > 0 else "loss" if score < 0 else "draw")
        for result in results
        for seat, score in enumerate(result.returns)
    )
    for (seat, outcome), count in outcomes.items():
        OUTCOMES.labels(str(seat), outcome).inc(count)


class TimedEnvironments(Environments):
    """Environments of which each call is measured."""

    def __init__(self, environments: Environments) -> None:
        self._environments = environments

    def __len__(self) -> int:
        return len(self._environments)

    def reset(self, rows: ArrayLike, seeds: ArrayLike) -> TimeStep:
        with self._timed():
            return self._environments.reset(rows, seeds)

    def step(self, rows: ArrayLike, actions: ArrayLike) -> TimeStep:
        with self._timed():
            return self._environments.step(rows, actions)

    def announce(self, rows: ArrayLike, seeds: ArrayLike) -> None:
        self._environments.announce(rows, seeds)

    def close(self) -> None:
        self._environments.close()

    @contextmanager
    def _timed(self) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - start
            ENVIRONMENT_SECONDS.observe(seconds)
            ENVIRONMENT_WAIT.inc(seconds)
