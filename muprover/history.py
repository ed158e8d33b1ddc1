"""What self-play remembers of a game: `GameHistory`; and how frames are stacked for the network.

Letters: T moves, A actions, F stacked frames.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from muprover.config import GameConfig

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class GameHistory:
    """A game, or a segment of a long one; never changed once made.

    Positions `first … first + size − 1` are the segment's own, to be sampled; the others overlap
    with its neighbours, for stacked frames before and for targets after. A whole game has
    `first == 0` and `size == T`.
    """

    game_id: int  # random, 64 bits
    segment: int  # counted from 0
    first: int
    size: int
    observation: Array  # [T, …] before each move, single frames
    action: NDArray[np.int32]  # [T]
    reward: NDArray[np.float32]  # [T] of each move, for the player who made it
    to_play: NDArray[np.int32]  # [T]
    legal_actions: NDArray[np.bool_]  # [T, A]
    action_weights: NDArray[np.float32]  # [T, A] the search's
    root_value: NDArray[np.float32]  # [T] the search's, for the player to move
    exploratory: NDArray[np.bool_]  # [T] the move was random, not the search's choice
    final_value: float  # after the last move, for the player to move then; 0 if terminated
    terminated: bool  # the last move ended the game by its rules
    agent: str = ""
    network_version: int = 0

    @property
    def key(self) -> tuple[int, int]:
        return self.game_id, self.segment

    def __len__(self) -> int:
        return len(self.action)


def stack_frames(frames: Array, actions: Array, game: GameConfig) -> Array:
    """What the network sees of the newest of some frames: `[…]`, or `[n, …]` for n games.

    frames: `[…, F, *observation_shape]`, oldest first, zeros where the game had not begun.
    actions: `[…, F − 1]`, the one that led from each frame to the next; −1 where there was none.

    The frames come newest first along the last axis, then (with `game.stack_actions`) the actions,
    newest first, each one-hot: over a board, as planes that are constant.
    """
    shape = game.observation_shape
    lead = frames.shape[: frames.ndim - len(shape) - 1]
    past = game.num_stacked_frames
    newest_first = [frames.take(-1 - i, axis=-1 - len(shape)) for i in range(past)]
    if not game.stack_actions or past == 1:
        return newest_first[0] if past == 1 else np.concatenate(newest_first, axis=-1)
    one_hot = (actions[..., ::-1, None] == np.arange(game.num_actions)).astype(frames.dtype)
    if game.observation_dtype == "uint8":
        one_hot *= 255  # the network divides by it
    planes = one_hot.reshape(*lead, *[1] * (len(shape) - 1), -1)
    planes = np.broadcast_to(planes, (*lead, *shape[:-1], planes.shape[-1]))
    return np.concatenate([*newest_first, planes], axis=-1)


class FrameStack:
    """The last frames and actions of each of B games being played."""

    def __init__(self, num_games: int, game: GameConfig) -> None:
        past = game.num_stacked_frames
        self._game = game
        self._frames = np.zeros((num_games, past, *game.observation_shape), game.observation_dtype)
        self._actions = np.full((num_games, past - 1), -1, np.int32)

    def reset(self, rows: Array, observation: Array) -> None:
        """Begins games in `rows` `[n]` with their first frames `[n, …]`."""
        self._frames[rows] = 0
        self._actions[rows] = -1
        self._frames[rows, -1] = observation

    def step(self, rows: Array, actions: Array, observation: Array) -> None:
        """Adds what `actions` `[n]` led to in `rows` `[n]`: frames `[n, …]`."""
        if self._game.num_stacked_frames > 1:
            self._frames[rows, :-1] = self._frames[rows, 1:]
            self._actions[rows] = np.concatenate(
                [self._actions[rows, 1:], np.asarray(actions)[:, None]], axis=1
            )
        self._frames[rows, -1] = observation

    def observation(self, rows: Array) -> Array:
        """`[n, …]` what the network sees of `rows`."""
        return stack_frames(self._frames[rows], self._actions[rows], self._game)
