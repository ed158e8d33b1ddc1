"""Lines of play for tests of games: random ones, the same again, and whether they are equal."""

from __future__ import annotations

import numpy as np

from muprover.environment import Environment, TimeStep

Line = tuple[list[int], list[TimeStep]]  # T moves and T + 1 time steps


def play(environment: Environment, seed: int, num_moves: int = 10_000) -> Line:
    """Random moves until the end, or `num_moves` of them."""
    rng = np.random.default_rng(seed)
    actions, steps = [], [environment.reset(seed)]
    while len(actions) < num_moves and steps[-1].legal_actions.any():
        actions.append(int(rng.choice(np.flatnonzero(steps[-1].legal_actions))))
        steps.append(environment.step(actions[-1]))
    return actions, steps


def replay(environment: Environment, seed: int, actions: list[int]) -> list[TimeStep]:
    return [environment.reset(seed), *(environment.step(action) for action in actions)]


def assert_equal(one: list[TimeStep], other: list[TimeStep]) -> None:
    for a, b in zip(one, other, strict=True):
        for name in TimeStep._fields:
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name), name)
