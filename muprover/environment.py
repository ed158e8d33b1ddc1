"""A game as self-play sees it: `TimeStep`, `Environment` (one game), `Environments` (B of them).

Letters: B games held, n of them addressed by one call, A actions.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray


class TimeStep(NamedTuple):
    """Where a game stands after a reset or a move; stacked, n games with a leading axis `[n]`.

    A reward belongs to the player who made the move that led here; it is 0 after a reset.
    `terminated`: the rules ended the game. `truncated`: something else did (a limit on moves).
    """

    observation: NDArray[Any]  # [...]: as `game.observation_shape` says
    reward: Any  # float, or [n] float32
    to_play: Any  # int, or [n] int32: whose turn it is, 0 or 1
    legal_actions: NDArray[np.bool_]  # [A]; all false once the game is over
    terminated: Any  # bool, or [n] bool
    truncated: Any  # bool, or [n] bool

    @classmethod
    def stack(cls, steps: Sequence[TimeStep]) -> TimeStep:
        """`[n, …]` time steps of n games."""
        return cls(
            observation=np.stack([s.observation for s in steps]),
            reward=np.array([s.reward for s in steps], np.float32),
            to_play=np.array([s.to_play for s in steps], np.int32),
            legal_actions=np.stack([s.legal_actions for s in steps]),
            terminated=np.array([s.terminated for s in steps], np.bool_),
            truncated=np.array([s.truncated for s in steps], np.bool_),
        )


class Environment(ABC):
    """One game. Authors write `reset` and `step`; legality is checked by whoever holds the mask."""

    @abstractmethod
    def reset(self, seed: int | None = None) -> TimeStep:
        """Starts a game; equal seeds start equal games (and equal chance events in them)."""

    @abstractmethod
    def step(self, action: int) -> TimeStep:
        """Makes the move of the player to play. `action` is legal and the game is not over."""

    def close(self) -> None:  # noqa: B027 - most games hold nothing
        """Frees what the game holds outside Python's memory."""

    def copy(self) -> Self:
        """The same position, to be played on independently (for searches with the true rules)."""
        return copy.deepcopy(self)

    def render(self) -> str:
        """The position as text, for people; empty where the game has no picture of itself."""
        return ""

    def action_name(self, action: int) -> str:
        """What a person calls the action."""
        return str(action)


class IllegalMoveError(ValueError):
    """A move that the rules, or the state of its game, do not allow. The game is unchanged."""


class Environments:
    """B games at once; checks every move, so that neither games nor callers have to.

    A game that has not ended after `max_moves` moves is truncated (None: never).
    """

    def __init__(
        self,
        make_environment: Callable[[], Environment],
        num_games: int,
        max_moves: int | None = None,
    ) -> None:
        self._games = [make_environment() for _ in range(num_games)]
        self._legal: list[NDArray[np.bool_] | None] = [None] * num_games  # None: not in play
        self._moves = [0] * num_games
        self._max_moves = max_moves

    def __len__(self) -> int:
        return len(self._games)

    def reset(self, rows: NDArray[np.integer], seeds: NDArray[np.integer]) -> TimeStep:
        """Starts new games in `rows` `[n]`, seeded by `seeds` `[n]`; answers their `[n]` steps."""
        steps = []
        for row, seed in zip(rows, seeds, strict=True):
            step = self._games[self._checked_row(row)].reset(int(seed))
            self._legal[row], self._moves[row] = step.legal_actions, 0
            steps.append(step)
        return TimeStep.stack(steps)

    def step(self, rows: NDArray[np.integer], actions: NDArray[np.integer]) -> TimeStep:
        """Makes one move in each of `rows` `[n]`; answers their `[n]` steps.

        Raises `IllegalMoveError`, and then makes none of the moves, if one is not allowed.
        """
        if len({int(row) for row in rows}) < len(rows):
            raise IllegalMoveError(f"a game may move once per step; given rows {list(rows)}")
        for row, action in zip(rows, actions, strict=True):
            self._check_move(self._checked_row(row), int(action))
        steps = []
        for row, action in zip(rows, actions, strict=True):
            step = self._games[row].step(int(action))
            self._moves[row] += 1
            if self._moves[row] == self._max_moves and not step.terminated:
                step = step._replace(truncated=True)
            over = step.terminated or step.truncated
            self._legal[row] = None if over else step.legal_actions
            steps.append(step)
        return TimeStep.stack(steps)

    def close(self) -> None:
        for game in self._games:
            game.close()

    def _checked_row(self, row: Any) -> int:
        if not 0 <= row < len(self._games):
            raise IllegalMoveError(f"no game {row}: there are {len(self._games)}, counted from 0")
        return int(row)

    def _check_move(self, row: int, action: int) -> None:
        legal = self._legal[row]
        if legal is None:
            raise IllegalMoveError(f"game {row} is over or was never started; reset it first")
        if not (0 <= action < len(legal) and legal[action]):
            raise IllegalMoveError(
                f"action {action} is illegal in game {row}; legal: {np.flatnonzero(legal).tolist()}"
            )
