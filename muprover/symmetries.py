"""Symmetries of a board, applied at random to batches for training.

Letters: G symmetries, B samples, A actions, K unroll steps, N squares of the board.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from muprover.config import GameConfig
from muprover.replay import Batch

Array = NDArray[Any]
Transform = Callable[[Array], Array]


def _mirror(board: Array) -> Array:
    """The board (rows, columns, …), or the row of columns, with its columns reversed."""
    return board[:, ::-1] if board.ndim > 1 else board[::-1]


TRANSFORMS: dict[str, list[Transform]] = {
    "none": [lambda board: board],
    "mirror": [lambda board: board, _mirror],
    "square": [
        *(lambda board, k=k: np.rot90(board, k) for k in range(4)),
        *(lambda board, k=k: np.rot90(_mirror(board), k) for k in range(4)),
    ],
}


class Symmetries:
    """Draws a symmetry for each sample of a batch and turns observations and actions by it."""

    def __init__(self, game: GameConfig) -> None:
        transforms = TRANSFORMS[game.symmetries]
        self.count = len(transforms)
        if self.count == 1:
            return
        board = game.observation_shape[:2]
        actions = game.actions_shape or ()
        self._squares = _permutations(board, transforms)  # [G, N]: new square → old square
        self._actions = _permutations(actions, transforms)  # [G, A]: new action → old action
        self._moved = np.argsort(self._actions, axis=1)  # [G, A]: old action → new action
        self._action_planes = (game.num_stacked_frames - 1) if game.stack_actions else 0

    def apply(self, batch: Batch, which: Array) -> Batch:
        """The batch with symmetry `which` `[B]` applied to each sample."""
        if self.count == 1:
            return batch
        rows = np.arange(len(which))[:, None]
        observation = batch.observation
        size = observation.shape
        squares = observation.reshape(size[0], -1, size[-1])[rows, self._squares[which]]
        self._turn_action_planes(squares, which)
        policy = np.take_along_axis(batch.target_policy, self._actions[which][:, None, :], axis=2)
        return batch._replace(
            observation=squares.reshape(size),
            actions=self._moved[which[:, None], batch.actions].astype(np.int32),
            target_policy=policy,
        )

    def draw(self, batch: Batch, rng: np.random.Generator) -> Batch:
        """The batch with a random symmetry applied to each sample."""
        return self.apply(batch, rng.integers(self.count, size=len(batch.weight)))

    def _turn_action_planes(self, squares: Array, which: Array) -> None:
        """Reorders, in place, the one-hot planes of stacked actions, the last of `[B, N, C]`."""
        size = self._actions.shape[1]
        order = self._actions[which][:, None, :]
        for frame in range(self._action_planes):
            end = squares.shape[-1] - frame * size
            planes = squares[..., end - size : end]
            planes[...] = np.take_along_axis(planes, order, axis=2)


def _permutations(shape: tuple[int, ...], transforms: list[Transform]) -> Array:
    """`[G, size]` where each entry of a transformed array of `shape` comes from."""
    places = np.arange(np.prod(shape)).reshape(shape)
    return np.stack([transform(places).reshape(-1) for transform in transforms])
