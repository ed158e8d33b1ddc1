"""A game as it is played, cut into the `GameHistory` segments that replay keeps.

A segment of a long game overlaps with its neighbours: before its own positions it carries the
frames that the first of them is stacked with, after them what the targets of the last one need.
So each can be stored, sampled and evicted by itself, and a game is never too long to be learned
from before it ends. A short game is one segment, and whole.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from muprover.config import Config
from muprover.history import GameHistory


class _Move(NamedTuple):
    """A position and what was done in it; fields as in `GameHistory`, one row of each."""

    observation: NDArray[Any]
    action: int
    reward: float
    to_play: int
    legal_actions: NDArray[np.bool_]
    action_weights: NDArray[np.float32]
    root_value: float
    exploratory: bool


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
        self._dtype = config.game.observation_dtype
        self._moves: list[_Move] = []  # those still needed
        self._dropped = 0  # moves before them
        self._own = 0  # where the next segment's own positions begin, counted from the game's start
        self._segment = 0
        self._version = 0

    def __len__(self) -> int:
        """Moves made so far."""
        return self._dropped + len(self._moves)

    def add(
        self,
        observation: NDArray[Any],
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
        self._version = network_version or self._version
        self._moves.append(
            _Move(
                np.array(observation, self._dtype),
                int(action),
                float(reward),
                int(to_play),
                np.array(legal_actions, np.bool_),
                np.array(action_weights, np.float32),
                float(root_value),
                bool(exploratory),
            )
        )
        if len(self) < self._own + self._length + self._after:
            return []
        return [self._cut(self._length, len(self) - 1, self._moves[-1].root_value, False)]

    def finish(
        self, final_value: float, terminated: bool, network_version: int = 0
    ) -> list[GameHistory]:
        """The segments that are left, at the game's end or where it is broken off.

        final_value: the search's, after the last move, for the player to move then; a game that
        was `terminated` by its rules is worth 0 there.
        """
        self._version = network_version or self._version
        value = 0.0 if terminated else float(final_value)
        segments = []
        while self._own < len(self):
            size = min(self._length, len(self) - self._own)
            segments.append(self._cut(size, len(self), value, terminated))
        return segments

    def _cut(self, size: int, end: int, final_value: float, terminated: bool) -> GameHistory:
        """The next segment, with `size` positions of its own and what follows until `end`."""
        begin = max(0, self._own - self._before)
        moves = self._moves[begin - self._dropped : end - self._dropped]
        history = GameHistory(
            game_id=self._game_id,
            segment=self._segment,
            first=self._own - begin,
            size=size,
            observation=np.stack([move.observation for move in moves]),
            action=np.array([move.action for move in moves], np.int32),
            reward=np.array([move.reward for move in moves], np.float32),
            to_play=np.array([move.to_play for move in moves], np.int32),
            legal_actions=np.stack([move.legal_actions for move in moves]),
            action_weights=np.stack([move.action_weights for move in moves]),
            root_value=np.array([move.root_value for move in moves], np.float32),
            exploratory=np.array([move.exploratory for move in moves], np.bool_),
            final_value=final_value,
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
        count = max(0, before - self._dropped)
        del self._moves[:count]
        self._dropped += count
