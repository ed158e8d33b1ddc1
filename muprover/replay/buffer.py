"""The replay buffer: games in, batches of training examples out.

Letters: T moves, A actions, F stacked frames, B samples, K unroll steps.

Targets are computed once, as games come in; sampling only gathers.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from muprover.config import Config
from muprover.history import GameHistory, stack_frames
from muprover.replay.checks import GameCheck
from muprover.replay.layout import EXTRA_ROWS, row_columns, rows_of, starts_of
from muprover.replay.priorities import SumTree
from muprover.replay.ring import Ring
from muprover.replay.statistics import GameStatistics, ReplayStats

Array = NDArray[Any]

log = logging.getLogger(__name__)

GAMES_AT_ONCE = 64  # stored while nothing can be sampled
LEAST_PRIORITY = 1e-3  # what is predicted without any error is still sampled now and then
MOST_PRIORITY = 1e6


class Batch(NamedTuple):
    """B training examples, each a position and the K moves that followed it."""

    observation: Array  # [B, …] stacked
    actions: NDArray[np.int32]  # [B, K]; random past the end of the game
    target_reward: NDArray[np.float32]  # [B, K] of these actions, for who made them
    target_value: NDArray[np.float32]  # [B, K + 1] for the player to move
    target_policy: NDArray[np.float32]  # [B, K + 1, A]
    mask: NDArray[np.float32]  # [B, K + 1] 1 where the game still went on: there is a policy
    weight: NDArray[np.float32]  # [B] importance
    key: NDArray[np.int64]  # [B] to update priorities with; never used again for another position


@dataclass
class Counters:
    """Of all time, over restarts."""

    inserted_games: int = 0
    inserted_positions: int = 0
    sampled_positions: int = 0


class _Record(NamedTuple):
    """A stored segment, for when it is evicted."""

    key: tuple[int, int]
    positions: int
    rows: int
    starts: int


class ReplayBuffer:
    """The newest `replay.max_size` positions, in memory. Threads may share it.

    Which positions are sampled is `starts_of`'s business.
    """

    def __init__(self, config: Config, first_key: int = 0) -> None:
        """`first_key`: where the keys of samples begin to count."""
        self.counters = Counters()
        self.evicted = 0  # segments, ever
        self._config = config
        self._game = config.game
        self._check = GameCheck(config.game, config.replay.max_size)
        self._steps = np.arange(config.training.num_unroll_steps + 1)
        self._past = np.arange(1 - config.game.num_stacked_frames, 1)
        self._max_size = config.replay.max_size
        self._rows = Ring(row_columns(config), capacity=0)
        start_columns = {name: ((), np.int64) for name in ("row", "ahead", "past")}
        self._starts = Ring(start_columns, self._max_size, first_key)  # a start's id is its key
        self._exponent = config.replay.priority_exponent
        self._tree = SumTree(self._max_size) if self._exponent else None
        self._records: deque[_Record] = deque()
        self._keys: set[tuple[int, int]] = set()
        self._segments: Counter[int] = Counter()  # stored, by game
        self._positions = 0
        self.statistics = GameStatistics(config.game.num_players, config.replay.segment_length)
        self._has_said_so = False  # that nothing can be sampled
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Positions stored."""
        return self._positions

    def __contains__(self, key: tuple[int, int]) -> bool:
        """Whether the segment with this `GameHistory.key` is stored."""
        return key in self._keys

    @property
    def can_sample(self) -> bool:
        return len(self._starts) > 0

    @property
    def nbytes(self) -> int:
        """Of memory, once all of it is in use."""
        return self._rows.nbytes + self._starts.nbytes

    def add(self, games: GameHistory | Sequence[GameHistory]) -> int:
        """Copies games in, and evicts the oldest ones beyond `max_size` positions.

        Answers how many were new: a key that is stored already is ignored. Raises `GameError` for
        a game that cannot be kept, before any of them is.
        """
        games = [games] if isinstance(games, GameHistory) else games
        self.check(games)
        return self.insert(games)

    def check(self, games: Sequence[GameHistory]) -> None:
        """Raises `GameError` for a game that cannot be kept."""
        self._check(games)

    def insert(self, games: Sequence[GameHistory]) -> int:
        """As `add`, of games that have been checked."""
        new = {game.key: game for game in games if game.key not in self._keys}
        for group in self._groups(list(new.values())):
            with self._lock:  # for some at a time: sampling goes on between
                self._insert(group)
        return len(new)

    def sample(self, batch_size: int, rng: np.random.Generator) -> Batch:
        """Draws starts, uniformly or by priority, with replacement."""
        with self._lock:
            if not self.can_sample:
                raise ValueError(f"no batch of {batch_size}: there is nothing to sample")
            keys, weight = self._draw(batch_size, rng)
            slots = self._starts.slots(keys)
            row = self._starts.take("row", slots)
            ahead = self._starts.take("ahead", slots)
            rows = self._rows.slots(row[:, None] + np.minimum(self._steps, ahead[:, None]))
            moves = np.ascontiguousarray(rows[:, :-1])
            self.counters.sampled_positions += batch_size
            actions = self._rows.take("action", moves)
            over = actions < 0
            actions[over] = rng.integers(self._game.num_actions, size=np.count_nonzero(over))
            return Batch(
                observation=self._stack(row, self._starts.take("past", slots)),
                actions=actions,
                target_reward=self._rows.take("reward", moves),
                target_value=self._rows.take("value", rows),
                target_policy=self._rows.take("policy", rows),
                mask=self._rows.take("mask", rows),
                weight=weight,
                key=keys,
            )

    def batches(self, batch_size: int, rng: np.random.Generator) -> Iterator[Batch]:
        """Samples without end."""
        while True:
            yield self.sample(batch_size, rng)

    def update_priorities(self, key: Array, priority: Array) -> int:
        """New priorities `[n]` of sampled keys `[n]`; answers how many are still stored."""
        key, priority = np.asarray(key), np.asarray(priority)
        if key.shape != priority.shape or not (np.isfinite(priority) & (priority >= 0)).all():
            raise ValueError(
                f"priorities must be finite, not negative, and one for each key; given "
                f"{list(key.shape)} keys and {list(priority.shape)} priorities"
            )
        with self._lock:
            stored = (key >= self._starts.tail) & (key < self._starts.head)
            if self._tree is not None:
                self._tree.update(self._starts.slots(key[stored]), self._weights(priority[stored]))
            return int(np.count_nonzero(stored))

    def stats(self) -> ReplayStats:
        counters, statistics = self.counters, self.statistics
        return ReplayStats(
            games=len(self._segments),
            positions=self._positions,
            inserted_games=counters.inserted_games,
            inserted_positions=counters.inserted_positions,
            sampled_positions=counters.sampled_positions,
            samples_per_insert=counters.sampled_positions / max(1, counters.inserted_positions),
            newest_network_version=statistics.newest_network_version,
            mean_game_length=statistics.mean_game_length,
            newest_game_age_seconds=statistics.newest_game_age_seconds,
            unique_games_ratio=statistics.unique_games_ratio,
        )

    def _groups(self, games: Sequence[GameHistory]) -> Iterator[list[GameHistory]]:
        """The games, in groups that may be stored at once."""
        group: list[GameHistory] = []
        size = 0
        for game in games:
            if group and (size + game.size > self._max_size or len(group) == GAMES_AT_ONCE):
                yield group
                group, size = [], 0
            group.append(game)
            size += game.size
        if group:
            yield group

    def _insert(self, games: Sequence[GameHistory]) -> None:
        """Stores games that are new, and no more than fit at once."""
        while len(self) + sum(game.size for game in games) > self._max_size:
            self._evict()
        rows = rows_of(games, self._config)
        first_row = self._append_rows(rows)
        starts = starts_of(games, len(self._steps) - 1)
        key = self._starts.append(
            {"row": first_row + starts.row, "ahead": starts.ahead, "past": starts.past}
        )
        if self._tree is not None:
            slots = self._starts.slots(np.arange(key, self._starts.head))
            self._tree.update(slots, self._weights(rows["surprise"][starts.row]))
        for game, count in zip(games, starts.counts, strict=True):
            self._remember(game, count)
        if not self.can_sample and len(self) >= self._config.replay.min_size_to_sample:
            self._say_that_nothing_can_be_sampled()

    def _remember(self, game: GameHistory, starts: int) -> None:
        self._records.append(_Record(game.key, game.size, len(game) + EXTRA_ROWS, starts))
        self._keys.add(game.key)
        self._segments[game.game_id] += 1
        self._positions += game.size
        self.counters.inserted_positions += game.size
        self.counters.inserted_games += game.segment == 0
        self.statistics.observe(game)

    def _say_that_nothing_can_be_sampled(self) -> None:
        """Once."""
        if not self._has_said_so:
            log.warning(
                "%d positions are stored, but none can be sampled: all games were cut off before "
                "move %d. Lower training.num_unroll_steps or raise game.max_moves",
                *(len(self), self._config.training.num_unroll_steps),
            )
        self._has_said_so = True

    def _append_rows(self, rows: dict[str, Array]) -> int:
        """Adds games' rows; memory grows to what the window needs of games like those so far."""
        count = len(rows["action"])
        needed = len(self._rows) + count
        if needed > self._rows.capacity:
            expected = self._max_size * len(self._rows) / max(1, len(self))
            self._rows.grow(max(needed, min(2 * needed, math.ceil(1.05 * expected) + count), 1024))
        return self._rows.append(rows)

    def _evict(self) -> None:
        """Drops the oldest segment."""
        record = self._records.popleft()
        if self._tree is not None:
            oldest = np.arange(self._starts.tail, self._starts.tail + record.starts)
            self._tree.update(self._starts.slots(oldest), np.zeros(record.starts))
        self._rows.drop(record.rows)
        self._starts.drop(record.starts)
        self._keys.remove(record.key)
        game_id = record.key[0]
        self._segments[game_id] -= 1
        if not self._segments[game_id]:
            del self._segments[game_id]
        self._positions -= record.positions
        self.evicted += 1

    def _draw(self, count: int, rng: np.random.Generator) -> tuple[Array, Array]:
        """Keys `[count]` and their importance weights `[count]`."""
        tail, head = self._starts.tail, self._starts.head
        if self._tree is None:
            return rng.integers(tail, head, count), np.ones(count, np.float32)
        slots = self._tree.draw(count, rng)
        share = self._tree.weights(slots) * (head - tail) / self._tree.total  # 1 if uniform
        weight = share**-self._config.replay.importance_exponent
        keys = tail + (slots - tail) % self._starts.capacity
        return keys, (weight / weight.max()).astype(np.float32)

    def _weights(self, priority: Array) -> Array:
        """Of the draw, up to a factor."""
        bounded = np.clip(np.asarray(priority, np.float64), LEAST_PRIORITY, MOST_PRIORITY)
        return np.asarray(bounded**self._exponent)

    def _stack(self, row: Array, past: Array) -> Array:
        """`[B, …]` what the network sees at `row` `[B]`, `past` `[B]` positions into its game."""
        if len(self._past) == 1:
            return self._rows.take("observation", self._rows.slots(row))
        slots = self._rows.slots(row[:, None] + self._past)  # [B, F], oldest first
        missing = past[:, None] + self._past < 0
        frames = self._rows.take("observation", slots)
        frames[missing] = 0
        actions = self._rows.take("action", slots[:, :-1])
        actions[missing[:, :-1]] = -1
        return stack_frames(frames, actions, self._game)
