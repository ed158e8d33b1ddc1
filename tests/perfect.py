"""Policies for tic-tac-toe that need no network: one that knows everything, one that knows nothing.

Their answers have the form of a search's, so they stand in for an agent.
"""

from __future__ import annotations

import numpy as np

from muprover.evaluation.oracles import exam_of_all_positions
from muprover.game import Game
from muprover.policy import PolicyOutput, SearchInputs


class PerfectPolicy:
    """Takes the first of the optimal moves, found by negamax over all positions."""

    def __init__(self, game: Game, version: int = 1) -> None:
        exam = exam_of_all_positions(game)
        keys = [observation.tobytes() for observation in exam.view.observation]
        self._optimal = dict(zip(keys, exam.optimal, strict=True))
        self.version = version
        self.asked: list[SearchInputs] = []

    def __call__(self, inputs: SearchInputs, details: bool = False) -> PolicyOutput:
        self.asked.append(inputs)
        optimal = np.stack([self._optimal[o.tobytes()] for o in inputs.observation])
        return answer(optimal, self.version)


def first_legal(inputs: SearchInputs, details: bool = False) -> PolicyOutput:
    return answer(inputs.legal_actions, version=1)


def answer(good: np.ndarray, version: int) -> PolicyOutput:
    """The search's answer when the moves `good` `[n, A]` are equally good."""
    weights = (good / good.sum(1, keepdims=True)).astype(np.float32)
    n = len(good)
    return PolicyOutput(
        action=good.argmax(1).astype(np.int32),
        action_weights=weights,
        value=np.zeros(n, np.float32),
        visit_counts=np.asarray(good * 10, np.int32),
        q_values=np.where(good, 0.5, 0).astype(np.float32),
        prior=weights,
        principal_variation=np.stack([good.argmax(1), np.full(n, -1)], 1).astype(np.int32),
        version=version,
    )
