"""Searches to be tested: their settings, networks that look answers up, and inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from muprover.config import SearchConfig
from muprover.policy import NetworkOutput, SearchInputs

GUMBEL = SearchConfig(max_num_considered_actions=16, max_num_simulations=10_000)
RAW = GUMBEL.model_copy(update={"rescale_values": False, "value_scale": 0.3})
PUCT = SearchConfig(variant="muzero", max_num_simulations=10_000)
TREE = SearchConfig(variant="muzero", normalization="tree", max_num_simulations=10_000)
BOTH = pytest.mark.parametrize("config", [GUMBEL, PUCT], ids=["gumbel", "muzero"])
ALL = pytest.mark.parametrize("config", [GUMBEL, PUCT, TREE], ids=["gumbel", "muzero", "tree"])


class TableNetwork:
    """A network that looks its answers up: positions are numbers, `rules` says what follows.

    `rules(position, action)` answers (next position, reward); `opinion(position)` answers (value,
    logits `[A]`). All of it is exact, so batches of any size give the same bits.
    """

    def __init__(self, rules: Callable, opinion: Callable) -> None:
        self.rules, self.opinion = rules, opinion
        self.asked: list[tuple[int, int]] = []

    def initial_inference(self, observation: Any) -> NetworkOutput:
        return self._answer(observation[:, 0].astype(np.int64), np.zeros(len(observation)))

    def recurrent_inference(self, hidden_state: Any, action: Any) -> NetworkOutput:
        self.asked += zip(hidden_state[:, 0].tolist(), action.tolist(), strict=True)
        pairs = [
            self.rules(int(h), int(a)) for h, a in zip(hidden_state[:, 0], action, strict=True)
        ]
        return self._answer(np.array([p[0] for p in pairs]), [p[1] for p in pairs])

    def _answer(self, positions: Any, rewards: Any) -> NetworkOutput:
        opinions = [self.opinion(int(p)) for p in positions]
        return NetworkOutput(
            np.asarray(positions)[:, None],
            np.array(rewards, np.float32),
            np.array([value for value, _ in opinions], np.float32),
            np.array([logits for _, logits in opinions], np.float32),
        )


def make_inputs(
    positions: Any,
    legal: Any,
    num_simulations: Any = 50,
    temperature: Any = 0,
    exploration: Any = 0,
) -> SearchInputs:
    n = len(positions)
    fill = lambda value, kind: np.broadcast_to(np.asarray(value, kind), (n,)).copy()  # noqa: E731
    return SearchInputs(
        np.asarray(positions, np.float64)[:, None],
        np.asarray(legal, bool),
        np.stack([np.arange(n), np.arange(n) + 7], -1).astype(np.int32),
        fill(num_simulations, np.int32),
        fill(temperature, np.float32),
        fill(exploration, np.float32),
    )
