"""Who plays in an evaluation: the agent, as it is evaluated, and whoever moves at random.

Letters: n positions, A actions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from muprover.config import Config
from muprover.environment import Environment
from muprover.policy import Policy, PolicyOutput, SearchInputs
from muprover.selfplay import random_actions
from muprover.symmetries import symmetric_policy

MAX_BATCH = 256  # positions of one search


class EvaluationError(RuntimeError):
    """What was asked for cannot be evaluated; the message says why."""


class View(NamedTuple):
    """n positions as players see them; none of them is over."""

    observation: NDArray[Any]  # [n, …] stacked, as the network sees it
    legal_actions: NDArray[np.bool_]  # [n, A]
    to_play: NDArray[np.int32]  # [n]
    positions: Callable[[], list[Environment]]  # n games that stand there, for who knows the rules


class Player(Protocol):
    name: str

    def choose(self, view: View) -> NDArray[np.int32]:
        """`[n]` one legal action in each position."""


class VersionChangedError(RuntimeError):
    """Another network answered than the one being evaluated."""


class AgentPlayer:
    """The agent without noise: exploration 0, temperature 0, so that equal positions get equal
    moves; of equally good ones the search takes the first.

    Remembers the network's version; another one raises `VersionChangedError`.
    """

    name = "agent"

    def __init__(self, policy: Policy, num_simulations: int, max_batch: int = MAX_BATCH) -> None:
        self._policy = policy
        self._max_batch = max_batch
        self._num_simulations = num_simulations
        self.version: int | None = None

    def choose(self, view: View) -> NDArray[np.int32]:
        size = self._max_batch
        actions = [
            self._search(view.observation[i : i + size], view.legal_actions[i : i + size])
            for i in range(0, len(view.observation), size)
        ]
        return np.concatenate(actions)

    def _search(
        self, observation: NDArray[Any], legal_actions: NDArray[np.bool_]
    ) -> NDArray[np.int32]:
        output = self._policy(evaluation_inputs(observation, legal_actions, self._num_simulations))
        self._check_version(output)
        return output.action

    def _check_version(self, output: PolicyOutput) -> None:
        if self.version not in (None, output.version):
            raise VersionChangedError(
                f"version {output.version} answered while {self.version} was being evaluated"
            )
        self.version = output.version


def as_evaluated(policy: Policy, config: Config) -> Policy:
    """The policy as `config.evaluation` wants it asked."""
    if config.evaluation.average_symmetries:
        return symmetric_policy(policy, config.game)
    return policy


def evaluation_inputs(
    observation: NDArray[Any], legal_actions: NDArray[np.bool_], num_simulations: int
) -> SearchInputs:
    """What the search is asked when it counts: of n positions, no noise, the best move."""
    n = len(observation)
    return SearchInputs(
        observation=observation,
        legal_actions=legal_actions,
        seed=np.zeros((n, 2), np.int32),
        num_simulations=np.full(n, num_simulations, np.int32),
        temperature=np.zeros(n, np.float32),
        exploration=np.zeros(n, np.float32),
    )


class RandomPlayer:
    """Any legal move, all equally likely."""

    name = "random"

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng

    def choose(self, view: View) -> NDArray[np.int32]:
        return random_actions(view.legal_actions, self._rng)
