"""Games as rows of numpy columns, many games at once: what the buffer stores and samples.

Letters: T moves of a game, N rows of some games, A actions, K unroll steps.

A game of T moves becomes T + 2 rows: its positions, the state after the last move (to bootstrap
from), and one absorbing row of zeros, where every unroll past the end comes to rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from muprover.config import Config
from muprover.history import Array, GameHistory
from muprover.targets import n_step_returns

EXTRA_ROWS = 2  # of a game, after its moves


def row_columns(config: Config) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Shape and dtype of one row's entry in each column."""
    game = config.game
    return {
        "observation": (game.observation_shape, game.observation_dtype),
        "action": ((), np.int32),  # −1 past the end
        "reward": ((), np.float32),
        "value": ((), np.float32),  # the target
        "policy": ((game.num_actions,), np.float32),
        "mask": ((), np.float32),
    }


def rows_of(games: Sequence[GameHistory], config: Config) -> dict[str, Array]:
    """`[N, …]` rows of the games, end to end, with their targets; and `surprise`, how far the
    search's value was from each target."""
    lengths = np.array([len(game) for game in games])
    end = np.cumsum(lengths + EXTRA_ROWS) - EXTRA_ROWS  # [games] of the final states
    row = np.arange(end[-1] + EXTRA_ROWS)
    value = _padded([game.root_value for game in games])
    value[end] = [game.final_value for game in games]
    reward = _padded([game.reward for game in games])
    ends = np.maximum(np.repeat(end, lengths + EXTRA_ROWS), row)  # absorbing rows are their own
    mask = np.ones(len(row), np.float32)
    mask[end] = mask[end + 1] = 0
    target = n_step_returns(
        reward,
        value,
        config.signed_discount,
        config.training.td_steps,
        stop=_padded([game.exploratory for game in games]),
        end=ends,
    )
    return {
        "observation": _padded([game.observation for game in games]),
        "action": _padded([game.action for game in games], fill=-1),
        "reward": reward,
        "value": target,
        "policy": _padded([game.action_weights for game in games]),
        "mask": mask,
        "surprise": np.abs(value - target),
    }


class Starts(NamedTuple):
    """Positions to sample, of some games: S in all."""

    row: Array  # [S] counted from the games' first row
    ahead: Array  # [S] rows from there to the absorbing one
    past: Array  # [S] moves made before it
    counts: list[int]  # of each game


def starts_of(games: Sequence[GameHistory], num_unroll_steps: int) -> Starts:
    """The games' own positions, but for the last K of a truncated game: their unroll would pass
    into what nobody has seen. They are learned from as what follows earlier starts; a game that
    was cut off before its Kth move has no start."""
    counts = [_count_starts(game, num_unroll_steps) for game in games]
    lengths = np.array([len(game) for game in games])
    offset = np.cumsum(lengths + EXTRA_ROWS) - lengths - EXTRA_ROWS
    before = np.cumsum(counts) - counts
    past = np.arange(sum(counts)) + np.repeat([game.first for game in games] - before, counts)
    return Starts(
        row=np.repeat(offset, counts) + past,
        ahead=np.repeat(lengths + 1, counts) - past,
        past=past,
        counts=counts,
    )


def _count_starts(game: GameHistory, num_unroll_steps: int) -> int:
    if game.terminated:
        return game.size
    whole_unrolls = len(game) - num_unroll_steps + 1 - game.first
    return max(0, min(game.size, whole_unrolls))


def _padded(arrays: Sequence[Array], fill: int = 0) -> Array:
    """`[N, …]` the arrays of some games, each with its extra rows of `fill`."""
    extra = np.full((EXTRA_ROWS, *arrays[0].shape[1:]), fill, arrays[0].dtype)
    return np.concatenate([part for array in arrays for part in (array, extra)])
