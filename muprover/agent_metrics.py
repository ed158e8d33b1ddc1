"""What an agent tells Prometheus."""

from __future__ import annotations

import numpy as np
from prometheus_client import Counter, Gauge, Histogram

from muprover.policy import PolicyOutput, SearchInputs
from muprover.selfplay import GameResult

GAMES = Counter("muprover_agent_games", "Games played to their end.")
MOVES = Counter("muprover_agent_moves", "Moves made in all games.")
SIMULATIONS = Counter("muprover_agent_simulations", "Simulations of all searches.")
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
WAIT_SECONDS = Counter(
    "muprover_agent_wait_seconds", "That groups of games have waited, by what for.", ["for"]
)
NETWORK_VERSION = Gauge("muprover_agent_network_version", "That answered last.")
GAME_LENGTH = Histogram(
    "muprover_agent_game_length",
    "Moves of a game.",
    buckets=[5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000],
)
OUTCOMES = Counter(
    "muprover_agent_outcomes", "Ends of games as each seat saw it.", ["seat", "result"]
)
POLICY_ENTROPY = Gauge("muprover_agent_policy_entropy", "Mean of the last search's policies, nats.")
QUEUED = Gauge("muprover_agent_queued_segments", "Not yet taken by the replay server.")
REFUSED = Counter("muprover_agent_refused_segments", "That the replay server would not have.")


def count_search(inputs: SearchInputs, output: PolicyOutput) -> None:
    """Takes note of one search of a group's games."""
    SIMULATIONS.inc(int(inputs.num_simulations.sum()))
    NETWORK_VERSION.set(output.version)
    weights = output.action_weights
    entropy = -(weights * np.log(np.maximum(weights, 1e-9))).sum(-1)
    POLICY_ENTROPY.set(float(entropy.mean()))


def count_result(result: GameResult) -> None:
    """Takes note of a game that was played to its end."""
    GAMES.inc()
    GAME_LENGTH.observe(result.num_moves)
    for seat, score in enumerate(result.returns):
        name = "win" if score > 0 else "loss" if score < 0 else "draw"
        OUTCOMES.labels(str(seat), name).inc()
