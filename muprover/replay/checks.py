"""Whether games can be kept: what comes over a wire, or from a disk, is not trusted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from muprover.config import GameConfig
from muprover.history import GameHistory


class GameError(ValueError):
    """A game that cannot be kept; the message says what is wrong with it."""


class GameCheck:
    """Of games with one contract. Values are checked for many games at once."""

    def __init__(self, game: GameConfig, max_size: int) -> None:
        self._game = game
        self._max_size = max_size
        self._fields = [
            (name, shape, np.dtype(dtype))
            for name, shape, dtype in (
                ("observation", game.observation_shape, game.observation_dtype),
                ("action", (), "int32"),
                ("reward", (), "float32"),
                ("to_play", (), "int32"),
                ("legal_actions", (game.num_actions,), "bool"),
                ("action_weights", (game.num_actions,), "float32"),
                ("root_value", (), "float32"),
                ("exploratory", (), "bool"),
            )
        ]

    def __call__(self, games: Sequence[GameHistory]) -> None:
        """Raises `GameError` for a game that is not one of this contract, or does not fit."""
        for game in games:
            problem = self._segment_problem(game) or self._shape_problem(game)
            if problem:
                raise GameError(f"{_name(game)}: {problem}")
        if games and self._value_problem(games):
            for game in games:
                if problem := self._value_problem([game]):
                    raise GameError(f"{_name(game)}: {problem}")

    def _segment_problem(self, game: GameHistory) -> str | None:
        length, first, size = game.action.size, game.first, game.size
        if not (0 <= game.game_id < 1 << 64 and 0 <= game.segment < 1 << 31):
            return "its id must have 64 bits, and its segment 31"
        if not (first >= 0 and size >= 1 and first + size <= length):
            return f"positions [{first}, {first + size}) are no part of its {length} moves"
        if size > self._max_size:
            return f"its {size} positions are more than replay.max_size, {self._max_size}"
        needed = self._game.num_stacked_frames - 1
        if game.segment > 0 and first < needed:
            return f"a later segment begins with the {needed} frames before it, not with {first}"
        return None

    def _shape_problem(self, game: GameHistory) -> str | None:
        length = game.action.size
        for name, shape, dtype in self._fields:
            array = getattr(game, name)
            if array.shape != (length, *shape) or array.dtype != dtype:
                given = f"{list(array.shape)} {array.dtype.name}"
                return f"{name} is {given}, must be {[length, *shape]} {dtype.name}"
        return None

    def _value_problem(self, games: Sequence[GameHistory]) -> str | None:
        joined = {
            name: np.concatenate([getattr(game, name) for game in games])
            for name, _, _ in self._fields
        }
        joined["final_value"] = np.array([game.final_value for game in games])
        for name in ("observation", "reward", "action_weights", "root_value", "final_value"):
            if not np.isfinite(joined[name]).all():
                return f"{name} is not finite"
        if any(game.terminated and game.final_value for game in games):
            return "it terminated, so its final_value must be 0"
        return self._turn_problem(joined["to_play"], games) or self._move_problem(
            joined["action"], joined["legal_actions"], joined["action_weights"]
        )

    def _turn_problem(self, to_play: np.ndarray, games: Sequence[GameHistory]) -> str | None:
        players = self._game.num_players
        if to_play.min() < 0 or to_play.max() >= players:
            return f"to_play must be below {players}, and not negative"
        if players == 2:
            same = to_play[1:] == to_play[:-1]
            same[np.cumsum([len(game) for game in games[:-1]], dtype=np.int64) - 1] = False
            if same.any():
                return "the players must take turns, but one moves twice"
        return None

    def _move_problem(
        self, action: np.ndarray, legal: np.ndarray, weights: np.ndarray
    ) -> str | None:
        if action.min() < 0 or action.max() >= self._game.num_actions:
            return f"an action is not among the {self._game.num_actions}"
        if not legal[np.arange(len(action)), action].all():
            return "a move was made that is not legal by its own mask"
        if weights.min() < 0 or weights[~legal].any():
            return "action_weights must be 0 for illegal actions, and never negative"
        if np.abs(weights.sum(axis=1) - 1).max() > 1e-3:
            return "action_weights must sum to 1"
        return None


def _name(game: GameHistory) -> str:
    return f"game {game.game_id:016x}, segment {game.segment}"
