"""What a position's value should have been, now that the game has gone on: n-step returns.

Letters: N states, of games laid end to end, each with its positions and then the state after its
last move; n steps. A reward belongs to the player who moved, a value to the player to move;
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
    end: NDArray[np.integer[Any]] | None = None,
) -> NDArray[np.float32]:
    """`[N]` n-step bootstrapped returns.

    reward: `[N]` of the move made in each state, for the player who made it; 0 where none was.
    value: `[N]` to bootstrap from, for the player to move; 0 in a terminal state.
    stop: `[N]` where no return may sum over the move, which was not what the policy would have
        done: the return bootstraps from the state's own value instead.
    end: `[N]` index of the state after the last move of each state's game; None: one game, N − 1.

    A return sums up to `n` rewards, then bootstraps from the value of where it arrived:
    `G_t = Σ_{t ≤ i < h} discount^(i − t) · reward_i  +  discount^(h − t) · value_h`.
    """
    time = np.arange(len(reward))
    horizon = _horizons(time, n, stop, len(reward) - 1 if end is None else end)
    longest = int((horizon - time).max(initial=0))
    powers = np.power(float(discount), np.arange(longest + 1))
    steps = time[:, None] + np.arange(longest)  # [N, longest]
    rewards = np.where(steps < horizon[:, None], np.take(reward, steps, mode="clip"), 0.0)
    returns = rewards @ powers[:-1] + powers[horizon - time] * value[horizon]
    return np.asarray(returns, np.float32)


def _horizons(
    time: NDArray[np.int64],
    n: int,
    stop: NDArray[np.bool_] | None,
    end: NDArray[np.integer[Any]] | int,
) -> NDArray[np.int64]:
    """`[N]` where the return of each state bootstraps: the first of n steps on, the end of the
    game, and a move that must not be counted."""
    horizon = np.minimum(time + n, end)
    if stop is None or not stop.any():
        return horizon
    stops = np.where(stop, time, len(time))
    return np.minimum(horizon, np.minimum.accumulate(stops[::-1])[::-1])
