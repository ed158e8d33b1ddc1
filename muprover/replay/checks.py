"""Whether a game can be kept: what comes over a wire, or from a disk, is not trusted."""

from __future__ import annotations

import numpy as np

from muprover.config import GameConfig
from muprover.history import GameHistory


class GameError(ValueError):
    """A game that cannot be kept; the message says what is wrong with it."""


def check_game(history: GameHistory, game: GameConfig, max_size: int) -> None:
    """Raises `GameError` unless `history` is one of this game, and fits into the buffer."""
    name = f"game {history.game_id:016x}/{history.segment}"
    problem = (
        _segment_problem(history, game, max_size)
        or _shape_problem(history, game)
        or _value_problem(history, game)
    )
    if problem:
        raise GameError(f"{name}: {problem}")


def _segment_problem(history: GameHistory, game: GameConfig, max_size: int) -> str | None:
    length, first, size = len(history), history.first, history.size
    if not (0 <= history.game_id < 1 << 64 and 0 <= history.segment < 1 << 31):
        return "its id must have 64 bits, and its segment 31"
    if not (first >= 0 and size >= 1 and first + size <= length):
        return f"positions [{first}, {first + size}) are no part of its {length} moves"
    if size > max_size:
        return f"its {size} positions are more than replay.max_size, {max_size}"
    needed = game.num_stacked_frames - 1
    if history.segment > 0 and first < needed:
        return f"a later segment begins with the {needed} frames before it, not with {first}"
    return None


def _shape_problem(history: GameHistory, game: GameConfig) -> str | None:
    length, actions = len(history), game.num_actions
    wanted = {
        "observation": ((length, *game.observation_shape), game.observation_dtype),
        "action": ((length,), "int32"),
        "reward": ((length,), "float32"),
        "to_play": ((length,), "int32"),
        "legal_actions": ((length, actions), "bool"),
        "action_weights": ((length, actions), "float32"),
        "root_value": ((length,), "float32"),
        "exploratory": ((length,), "bool"),
    }
    for name, (shape, dtype) in wanted.items():
        array = getattr(history, name)
        if array.shape != shape or array.dtype != np.dtype(dtype):
            return (
                f"{name} is {list(array.shape)} {array.dtype.name}, must be {list(shape)} {dtype}"
            )
    return None


def _value_problem(history: GameHistory, game: GameConfig) -> str | None:
    action, weights = history.action, history.action_weights
    for name in ("observation", "reward", "action_weights", "root_value", "final_value"):
        if not np.isfinite(getattr(history, name)).all():
            return f"{name} is not finite"
    if history.terminated and history.final_value:
        return f"it terminated, so its final_value must be 0, not {history.final_value:g}"
    if history.to_play.min() < 0 or history.to_play.max() >= game.num_players:
        return f"to_play must be below {game.num_players}, and not negative"
    if action.min() < 0 or action.max() >= game.num_actions:
        return f"an action is not among the {game.num_actions}"
    if not history.legal_actions[np.arange(len(action)), action].all():
        return "a move was made that is not legal by its own mask"
    if weights.min() < 0 or weights[~history.legal_actions].any():
        return "action_weights must be 0 for illegal actions, and never negative"
    if np.abs(weights.sum(axis=1) - 1).max() > 1e-3:
        return "action_weights must sum to 1"
    return None
