"""Games as they are played, cut into the `GameHistory` segments that replay keeps.

A segment of a long game overlaps with its neighbours: before its own positions it carries the
frames that the first of them is stacked with, after them what the targets of the last one need.
So each can be stored, sampled and evicted by itself, and a game is never too long to be learned
from before it ends. A short game is one segment, and whole.

Letters: B games, n of them moved at once, A actions, C moves that there is room for.
"""

from __future__ import annotations

import secrets
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from muprover.config import Config
from muprover.history import Array, GameHistory

FIRST_CAPACITY = 32  # moves; doubled as games grow


class Moves(NamedTuple):
    """A move in each of n games, as a `GameHistory` keeps it."""

    observation: Array  # [n, …] before the move, single frames
    action: NDArray[np.int32]  # [n]
    reward: NDArray[np.float32]  # [n] for the player who moved
    to_play: NDArray[np.int32]  # [n]
    legal_actions: NDArray[np.bool_]  # [n, A]
    action_weights: NDArray[np.float32]  # [n, A]
    root_value: NDArray[np.float32]  # [n]
    exploratory: NDArray[np.bool_]  # [n]


class GameRecorders:
    """B games being played: remembers their moves, hands out segments as soon as they are ready.

    A segment is ready once its last position has its whole unroll and all its `td_steps` behind
    it; like a truncated game, it ends with the search's value of the position that follows.
    """

    def __init__(self, config: Config, num_games: int, agent: str = "") -> None:
        self._config = config
        self._agent = agent
        self._length = config.replay.segment_length
        self._before = config.game.num_stacked_frames - 1
        self._after = config.training.num_unroll_steps + config.training.td_steps
        capacity = min(FIRST_CAPACITY, config.game.max_moves)
        self._columns = _columns(config, num_games, capacity)  # the moves that are still needed
        self._kept = np.zeros(num_games, np.int64)  # how many these are
        self._dropped = np.zeros(num_games, np.int64)  # moves before them
        self._own = np.zeros(num_games, np.int64)  # where the next segment's own positions begin
        self._segment = [0] * num_games
        self._game_id = [0] * num_games
        self._version = np.zeros(num_games, np.int64)  # the newest that chose a move

    def begin(self, rows: NDArray[np.intp]) -> None:
        """New games in `rows` `[n]`."""
        for counts in (self._kept, self._dropped, self._own, self._version):
            counts[rows] = 0
        for row in rows.tolist():
            self._segment[row] = 0
            # not from a seed: an agent that starts again must not use an id twice
            self._game_id[row] = secrets.randbits(64)

    def num_moves(self, row: int) -> int:
        return int(self._dropped[row] + self._kept[row])

    def add(
        self, rows: NDArray[np.intp], moves: Moves, network_version: int = 0
    ) -> list[tuple[int, GameHistory]]:
        """Remembers a move, copied, of each of `rows` `[n]`; answers the segments that became ready
        with their rows (mostly none)."""
        at = self._kept[rows]
        if at.max(initial=0) == self._columns["action"].shape[1]:
            self._grow()
        for name, values in zip(Moves._fields, moves, strict=True):
            self._columns[name][rows, at] = values
        self._kept[rows] += 1
        if network_version:
            self._version[rows] = network_version
        made = self._dropped[rows] + self._kept[rows]
        ready = np.flatnonzero(made >= self._own[rows] + self._length + self._after)
        return [
            (int(rows[i]), self._cut(int(rows[i]), self._length, int(made[i]) - 1, value, False))
            for i, value in zip(ready.tolist(), moves.root_value[ready].tolist(), strict=True)
        ]

    def finish(
        self, row: int, final_value: float, terminated: bool, network_version: int = 0
    ) -> list[GameHistory]:
        """The segments that are left of a game, at its end or where it is broken off.

        final_value: the search's, after the last move, for the player to move then; a game that
        was `terminated` by its rules is worth 0 there.
        """
        self._version[row] = network_version or self._version[row]
        value = 0.0 if terminated else final_value
        made, segments = self.num_moves(row), []
        while (left := made - int(self._own[row])) > 0:
            segments.append(self._cut(row, min(self._length, left), made, value, terminated))
        return segments

    def _cut(
        self, row: int, size: int, end: int, final_value: float, terminated: bool
    ) -> GameHistory:
        """The next segment, with `size` positions of its own and what follows until `end`."""
        own, dropped = int(self._own[row]), int(self._dropped[row])
        begin = max(0, own - self._before)
        history = GameHistory(
            game_id=self._game_id[row],
            segment=self._segment[row],
            first=own - begin,
            size=size,
            **{
                name: column[row, begin - dropped : end - dropped].copy()
                for name, column in self._columns.items()
            },
            final_value=float(final_value),
            terminated=terminated,
            agent=self._agent,
            network_version=int(self._version[row]),
        )
        self._own[row] += size
        self._segment[row] += 1
        if own + size < end:
            self._forget(row, own + size - self._before)
        return history

    def _forget(self, row: int, before: int) -> None:
        """Drops the moves before the position `before`, which no later segment needs."""
        count, kept = before - int(self._dropped[row]), int(self._kept[row])
        if count <= 0:
            return
        for column in self._columns.values():
            column[row, : kept - count] = column[row, count:kept].copy()
        self._kept[row] -= count
        self._dropped[row] += count

    def _grow(self) -> None:
        for name, column in self._columns.items():
            self._columns[name] = np.concatenate([column, np.empty_like(column)], axis=1)


def _columns(config: Config, num_games: int, capacity: int) -> dict[str, Array]:
    """`[B, C, …]` the arrays of a `GameHistory` for each game."""
    game, size = config.game, (num_games, capacity)
    return {
        "observation": np.empty((*size, *game.observation_shape), game.observation_dtype),
        "action": np.empty(size, np.int32),
        "reward": np.empty(size, np.float32),
        "to_play": np.empty(size, np.int32),
        "legal_actions": np.empty((*size, game.num_actions), np.bool_),
        "action_weights": np.empty((*size, game.num_actions), np.float32),
        "root_value": np.empty(size, np.float32),
        "exploratory": np.empty(size, np.bool_),
    }
