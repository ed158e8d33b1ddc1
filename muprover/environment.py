"""A game as self-play sees it: `TimeStep`, `Environment` (one game), `Environments` (B of them).

Letters: B games held, n of them addressed by one call, A actions.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray


class TimeStep(NamedTuple):
    """Where a game stands after a reset or a move; stacked, n games with a leading axis `[n]`.

    A reward belongs to the player who made the move that led here; it is 0 after a reset.
    `terminated`: the rules ended the game. `truncated`: something else did (a limit on moves), and
    the rules did not.
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
        observation, reward, to_play, legal_actions, terminated, truncated = zip(
            *steps, strict=True
        )
        return cls(
            observation=np.array(observation),
            reward=np.array(reward, np.float32),
            to_play=np.array(to_play, np.int32),
            legal_actions=np.array(legal_actions),
            terminated=np.array(terminated, np.bool_),
            truncated=np.array(truncated, np.bool_),
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
    """A move that the rules, or the state of its game, do not allow. The games are unchanged."""


class GameError(RuntimeError):
    """A game that breaks the contract of `Environment`."""


class Environments:
    """B games at once; checks every move, so that neither games nor callers have to.

    A game that has not ended after `max_moves` moves is truncated (None: never); what its rules
    have ended is not. Games are made when they are first reset. Games that are elsewhere override
    `_reset_games`, `_step_games` and `close`.
    """

    def __init__(
        self,
        make_environment: Callable[[], Environment],
        num_games: int,
        max_moves: int | None = None,
    ) -> None:
        self._make_environment = make_environment
        self._games: dict[int, Environment] = {}
        self._max_moves = max_moves
        self._in_play = np.zeros(num_games, np.bool_)
        self._moves = np.zeros(num_games, np.int32)
        self._legal: NDArray[np.bool_] | None = None  # [B, A] once the first game tells A

    def __len__(self) -> int:
        return len(self._in_play)

    def reset(self, rows: ArrayLike, seeds: ArrayLike) -> TimeStep:
        """Starts new games in `rows` `[n]`, seeded by `seeds` `[n]`; answers their `[n]` steps."""
        rows, seeds = self._checked_rows(rows), np.asarray(seeds)
        if seeds.shape != rows.shape or seeds.min() < 0:
            raise IllegalMoveError(
                f"a reset needs a seed of at least 0 for each of {len(rows)} rows; "
                f"given {seeds.tolist()}"
            )
        self._in_play[rows] = False  # should the resets fail
        steps = self._reset_games(rows, seeds)
        self._moves[rows] = 0
        return self._note(rows, steps)

    def step(self, rows: ArrayLike, actions: ArrayLike) -> TimeStep:
        """Makes one move in each of `rows` `[n]`; answers their `[n]` steps.

        Raises `IllegalMoveError`, and then makes none of the moves, if one is not allowed.
        """
        rows, actions = self._checked_rows(rows), np.asarray(actions)
        self._check_moves(rows, actions)
        steps = self._step_games(rows, actions)
        self._moves[rows] += 1
        truncated = steps.truncated
        if self._max_moves is not None:
            truncated = truncated | (self._moves[rows] >= self._max_moves)
        return self._note(rows, steps._replace(truncated=truncated & ~steps.terminated))

    def announce(self, rows: ArrayLike, seeds: ArrayLike) -> None:
        """Tells with which `seeds` `[n]` the games of `rows` `[n]` will be reset next.

        Games that are elsewhere then begin as soon as those before them end, and their reset is
        answered without asking again.
        """

    def close(self) -> None:
        """Frees the games."""
        while self._games:
            self._games.popitem()[1].close()
        self._in_play[:] = False

    def _reset_games(self, rows: NDArray[Any], seeds: NDArray[Any]) -> TimeStep:
        return TimeStep.stack([self._game(row).reset(seed) for row, seed in _pairs(rows, seeds)])

    def _step_games(self, rows: NDArray[Any], actions: NDArray[Any]) -> TimeStep:
        games = self._games
        return TimeStep.stack([games[row].step(action) for row, action in _pairs(rows, actions)])

    def _game(self, row: int) -> Environment:
        game = self._games.get(row)
        if game is None:
            game = self._games[row] = self._make_environment()
        return game

    def _note(self, rows: NDArray[Any], steps: TimeStep) -> TimeStep:
        """Remembers what may be done next in `rows`; `steps` with no move where a game is over."""
        over = steps.terminated | steps.truncated
        legal = steps.legal_actions
        if not (over | legal.any(axis=1)).all():
            raise GameError("a game has no legal action but neither terminated nor truncated")
        if not np.isfinite(steps.reward).all():
            raise GameError(f"a reward is not finite: {steps.reward.tolist()}")
        if over.any():
            legal = legal & ~over[:, None]
        if self._legal is None:
            self._legal = np.zeros((len(self), legal.shape[1]), np.bool_)
        self._legal[rows], self._in_play[rows] = legal, ~over
        return steps._replace(legal_actions=legal)

    def _checked_rows(self, rows: ArrayLike) -> NDArray[Any]:
        rows = np.asarray(rows)
        listed = rows.tolist()
        if rows.ndim != 1 or not listed:
            raise IllegalMoveError(f"rows must be a list of at least one game; given {listed}")
        if min(listed) < 0 or max(listed) >= len(self):
            row = next(row for row in listed if not 0 <= row < len(self))
            raise IllegalMoveError(f"no game {row}: there are {len(self)}, counted from 0")
        if len(set(listed)) < len(listed):
            raise IllegalMoveError(f"a game may be named once per request; given rows {listed}")
        return rows

    def _check_moves(self, rows: NDArray[Any], actions: NDArray[Any]) -> None:
        if actions.shape != rows.shape:
            raise IllegalMoveError(
                f"a step needs one action for each of {len(rows)} rows; given {actions.tolist()}"
            )
        if self._legal is None or not self._in_play[rows].all():
            row = rows[~self._in_play[rows]][0]
            raise IllegalMoveError(f"game {row} is over or was never started; reset it first")
        num_actions = self._legal.shape[1]
        known = (actions >= 0) & (actions < num_actions)
        if not (known.all() and self._legal[rows, actions].all()):
            legal = known & self._legal[rows, np.where(known, actions, 0)]
            row, action = rows[~legal][0], actions[~legal][0]
            raise IllegalMoveError(
                f"action {action} is illegal in game {row}; "
                f"legal: {np.flatnonzero(self._legal[row]).tolist()}"
            )


def _pairs(rows: NDArray[Any], values: NDArray[Any]) -> Iterator[tuple[int, int]]:
    return zip(rows.tolist(), values.tolist(), strict=True)
