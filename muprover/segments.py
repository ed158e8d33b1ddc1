"""A game as it is played, cut into the `GameHistory` segments that replay keeps.

A segment of a long game overlaps with its neighbours: before its own positions it carries the
frames that the first of them is stacked with, after them what the targets of the last one need.
So each can be stored, sampled and evicted by itself, and a game is never too long to be learned
from before it ends. A short game is one segment, and whole.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from muprover.config import Config
from muprover.history import Array, GameHistory

FIRST_CAPACITY = 32  # moves; doubled as a game grows


class GameRecorder:
    """One game being played: remembers its moves, hands out segments as soon as they are ready.

    A segment is ready once its last position has its whole unroll and all its `td_steps` behind
    it; like a truncated game, it ends with the search's value of the position that follows.
    """

    def __init__(self, config: Config, game_id: int, agent: str = "") -> None:
        """`game_id`: random, 64 bits, never used twice."""
        self._game_id = game_id
        self._agent = agent
        self._length = config.replay.segment_length
        self._before = config.game.num_stacked_frames - 1
        self._after = config.training.num_unroll_steps + config.training.td_steps
        self._columns = _columns(config)  # the moves that are still needed, and room for more
        self._kept = 0  # how many these are
        self._dropped = 0  # moves before them
        self._own = 0  # where the next segment's own positions begin, counted from the game's start
        self._segment = 0
        self._version = 0

    def __len__(self) -> int:
        """Moves made so far."""
        return self._dropped + self._kept

    def add(
        self,
        observation: Array,
        action: int,
        reward: float,
        to_play: int,
        legal_actions: NDArray[np.bool_],
        action_weights: NDArray[np.float32],
        root_value: float,
        exploratory: bool = False,
        network_version: int = 0,
    ) -> list[GameHistory]:
        """Remembers a move, copied; answers the segments that became ready (mostly none).

        observation: of one frame, before the move. legal_actions, action_weights: `[A]`.
        reward: of the move, for the player `to_play` who made it.
        """
        if self._kept == len(self._columns["action"]):
            self._grow()
        columns, at = self._columns, self._kept
        columns["observation"][at] = observation
        columns["action"][at] = action
        columns["reward"][at] = reward
        columns["to_play"][at] = to_play
        columns["legal_actions"][at] = legal_actions
        columns["action_weights"][at] = action_weights
        columns["root_value"][at] = root_value
        columns["exploratory"][at] = exploratory
        self._kept += 1
        self._version = network_version or self._version
        if len(self) < self._own + self._length + self._after:
            return []
        return [self._cut(self._length, len(self) - 1, root_value, terminated=False)]

    def finish(
        self, final_value: float, terminated: bool, network_version: int = 0
    ) -> list[GameHistory]:
        """The segments that are left, at the game's end or where it is broken off.

        final_value: the search's, after the last move, for the player to move then; a game that
        was `terminated` by its rules is worth 0 there.
        """
        self._version = network_version or self._version
        value = 0.0 if terminated else final_value
        segments = []
        while self._own < len(self):
            size = min(self._length, len(self) - self._own)
            segments.append(self._cut(size, len(self), value, terminated))
        return segments

    def _cut(self, size: int, end: int, final_value: float, terminated: bool) -> GameHistory:
        """The next segment, with `size` positions of its own and what follows until `end`."""
        begin = max(0, self._own - self._before)
        moves = slice(begin - self._dropped, end - self._dropped)
        history = GameHistory(
            game_id=self._game_id,
            segment=self._segment,
            first=self._own - begin,
            size=size,
            **{name: column[moves].copy() for name, column in self._columns.items()},
            final_value=float(final_value),
            terminated=terminated,
            agent=self._agent,
            network_version=self._version,
        )
        self._own += size
        self._segment += 1
        self._forget(self._own - self._before)
        return history

    def _forget(self, before: int) -> None:
        """Drops the moves before the position `before`, which no later segment needs."""
        count = before - self._dropped
        if count <= 0:
            return
        for column in self._columns.values():
            column[: self._kept - count] = column[count : self._kept].copy()
        self._kept -= count
        self._dropped += count

    def _grow(self) -> None:
        for name, column in self._columns.items():
            self._columns[name] = np.concatenate([column, np.empty_like(column)])


def _columns(config: Config) -> dict[str, Array]:
    """The arrays of a `GameHistory`, with room for some moves."""
    game = config.game
    count = min(FIRST_CAPACITY, game.max_moves)
    return {
        "observation": np.empty((count, *game.observation_shape), game.observation_dtype),
        "action": np.empty(count, np.int32),
        "reward": np.empty(count, np.float32),
        "to_play": np.empty(count, np.int32),
        "legal_actions": np.empty((count, game.num_actions), np.bool_),
        "action_weights": np.empty((count, game.num_actions), np.float32),
        "root_value": np.empty(count, np.float32),
        "exploratory": np.empty(count, np.bool_),
    }
