"""Symmetries of a board: applied at random to batches for training, and all at once in play.

Letters: G symmetries, B samples or positions, A actions, K unroll steps, N squares of the board.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from muprover.config import GameConfig
from muprover.policy import Policy, PolicyOutput, SearchInputs
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
    """Those of a game; they turn observations and actions together."""

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
        policy = np.take_along_axis(batch.target_policy, self._actions[which][:, None, :], axis=2)
        return batch._replace(
            observation=self._turn(batch.observation, which),
            actions=self._moved[which[:, None], batch.actions].astype(np.int32),
            target_policy=policy,
        )

    def draw(self, batch: Batch, rng: np.random.Generator) -> Batch:
        """The batch with a random symmetry applied to each sample."""
        return self.apply(batch, rng.integers(self.count, size=len(batch.weight)))

    def form(self, inputs: SearchInputs, g: int) -> SearchInputs:
        """The B positions turned by symmetry `g`."""
        which = np.full(len(inputs.seed), g)
        return inputs._replace(
            observation=self._turn(inputs.observation, which),
            legal_actions=inputs.legal_actions[:, self._actions[g]],
        )

    def weights_of_form(self, weights: Array, g: int) -> Array:
        """`[B, A]` what was said of each action in form `g`, turned back."""
        turned: Array = weights[:, self._moved[g]]
        return turned

    def actions_of_form(self, actions: Array, g: int) -> Array:
        """Actions in form `g`, turned back; −1 stays."""
        return np.where(actions < 0, actions, self._actions[g][actions]).astype(np.int32)

    def _turn(self, observation: Array, which: Array) -> Array:
        """`[B, …]` observations turned by the symmetries `which` `[B]`."""
        rows, size = np.arange(len(which))[:, None], observation.shape
        squares = observation.reshape(size[0], -1, size[-1])[rows, self._squares[which]]
        self._turn_action_planes(squares, which)
        return squares.reshape(size)

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


def symmetric_policy(policy: Policy, game: GameConfig) -> Policy:
    """Searches each position in all its forms, and chooses the action that they prefer together:
    the one of the greatest mean weight, of equals the first. For play without temperature.

    Weights, values and priors are means over the forms, visits are sums; the line of play is that
    of a form which would have chosen the same action.
    """
    symmetries = Symmetries(game)
    if symmetries.count == 1:
        return policy

    def search(inputs: SearchInputs, details: bool = False) -> PolicyOutput:
        outputs = [
            _turned_back(policy(symmetries.form(inputs, g), details), symmetries, g)
            for g in range(symmetries.count)
        ]
        weights = np.mean([output.action_weights for output in outputs], axis=0)
        action = np.where(inputs.legal_actions, weights, -1).argmax(1).astype(np.int32)
        together = PolicyOutput(
            action=action,
            action_weights=weights,
            value=np.mean([output.value for output in outputs], axis=0),
            version=outputs[-1].version,
        )
        return _with_details(together, outputs) if details else together

    return search


def _turned_back(output: PolicyOutput, symmetries: Symmetries, g: int) -> PolicyOutput:
    """What a search of form `g` answered, of the actions as they are."""
    by_action = ("action_weights", "visit_counts", "q_values", "prior")
    actions = ("action", "principal_variation")
    turned: dict[str, Any] = {}
    for name, array in output._asdict().items():
        if name in by_action and array is not None:
            turned[name] = symmetries.weights_of_form(array, g)
        elif name in actions and array is not None:
            turned[name] = symmetries.actions_of_form(array, g)
    return output._replace(**turned)


def _with_details(together: PolicyOutput, outputs: Sequence[PolicyOutput]) -> PolicyOutput:
    def all_forms(name: str) -> Array:
        return np.stack([getattr(output, name) for output in outputs])

    visits, q_values = all_forms("visit_counts"), all_forms("q_values")  # [G, B, A]
    lines = all_forms("principal_variation")  # [G, B, D]
    agree = lines[:, :, 0] == together.action
    line = lines[agree.argmax(0), np.arange(len(together.action))]
    line[~agree.any(0)] = -1
    line[:, 0] = together.action
    return together._replace(
        visit_counts=visits.sum(0),
        q_values=(visits * q_values).sum(0) / np.maximum(visits.sum(0), 1),
        prior=all_forms("prior").mean(0),
        principal_variation=line,
    )
