"""What a position's value should have been, now that the game has gone on: n-step returns.

Letters: T moves, n steps. A reward belongs to the player who moved, a value to the player to move;
`discount` is the signed one, so that in a two-player game what the next player gets counts against.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def n_step_returns(
    reward: NDArray[np.floating[Any]],
    value: NDArray[np.floating[Any]],
    discount: float,
    n: int,
    stop: NDArray[np.bool_] | None = None,
) -> NDArray[np.float32]:
    """`[T]` n-step bootstrapped returns of the positions `0 … T − 1`.

    reward: `[T]` of the move made in each position, for the player who made it.
    value: `[T + 1]` to bootstrap from, of each position and of the state after the last move (0 if
        the game ended there), for the player to move.
    stop: `[T]` where no return may sum over the move, which was not what the policy would have
        done: the return bootstraps from the position's own value instead.

    A return sums up to `n` rewards, then bootstraps from the value of where it arrived:
    `G_t = Σ_{t ≤ i < h} discount^(i − t) · reward_i  +  discount^(h − t) · value_h`.
    """
    horizon = _horizons(len(reward), n, stop)
    steps = np.arange(min(n, len(reward)))
    time = np.arange(len(reward))[:, None] + steps  # [T, n]
    counted = time < horizon[:, None]
    rewards = np.where(counted, np.take(reward, time, mode="clip"), 0.0)
    powers = np.power(float(discount), np.arange(n + 1))
    length = horizon - np.arange(len(reward))
    bootstrap = powers[length] * value[horizon]
    return np.asarray(rewards @ powers[: len(steps)] + bootstrap, np.float32)


def _horizons(length: int, n: int, stop: NDArray[np.bool_] | None) -> NDArray[np.int64]:
    """`[T]` where the return of each position bootstraps: the first of n steps on, the end of the
    game, and a move that must not be counted."""
    horizon = np.minimum(np.arange(length) + n, length)
    if stop is None or not stop.any():
        return horizon
    stops = np.where(stop, np.arange(length), length)
    return np.minimum(horizon, np.minimum.accumulate(stops[::-1])[::-1])
