"""The replay buffer: games in, batches of training examples out.

Letters: T moves, A actions, F stacked frames, B samples, K unroll steps.

A game of T moves becomes T + 2 rows: its positions, the state after the last move (to bootstrap
from), and one absorbing row of zeros, where every unroll past the end comes to rest. Targets are
computed once, as a game comes in; sampling only gathers.
"""

from __future__ import annotations

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
from muprover.replay.checks import check_game
from muprover.replay.priorities import SumTree
from muprover.replay.ring import Ring
from muprover.replay.statistics import GameStatistics, ReplayStats
from muprover.targets import n_step_returns

Array = NDArray[Any]

LEAST_PRIORITY = 1e-3  # what is predicted without any error is still sampled now and then


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

    Every position is a start to sample, but for the last K of a truncated game, whose unroll would
    pass into what nobody has seen; they are learned from as what follows earlier starts.
    """

    def __init__(self, config: Config, first_key: int = 0) -> None:
        """`first_key`: where the keys of samples begin to count."""
        self.counters = Counters()
        self.evicted = 0  # segments, ever
        self._config = config
        self._game = config.game
        self._steps = np.arange(config.training.num_unroll_steps + 1)
        self._past = np.arange(1 - config.game.num_stacked_frames, 1)
        self._max_size = config.replay.max_size
        self._rows = Ring(_row_columns(config), capacity=0)
        start_columns = {name: ((), np.int64) for name in ("row", "ahead", "past")}
        self._starts = Ring(start_columns, self._max_size, first_key)  # a start's id is its key
        self._exponent = config.replay.priority_exponent
        self._tree = SumTree(self._max_size) if self._exponent else None
        self._records: deque[_Record] = deque()
        self._keys: set[tuple[int, int]] = set()
        self._segments: Counter[int] = Counter()  # stored, by game
        self._positions = 0
        self.statistics = GameStatistics(config.game.num_players, config.replay.segment_length)
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
        for game in games:
            self.check(game)
        return self.insert(games)

    def check(self, game: GameHistory) -> None:
        """Raises `GameError` for a game that cannot be kept."""
        check_game(game, self._game, self._max_size)

    def insert(self, games: Sequence[GameHistory]) -> int:
        """As `add`, of games that have been checked."""
        added = 0
        for game in games:
            with self._lock:  # for one at a time: sampling goes on between
                added += self._insert(game)
        return added

    def sample(self, batch_size: int, rng: np.random.Generator) -> Batch:
        """Draws starts, uniformly or by priority, with replacement."""
        with self._lock:
            if not self.can_sample:
                raise ValueError(f"no batch of {batch_size}: the replay buffer is empty")
            keys, weight = self._draw(batch_size, rng)
            slots = self._starts.slots(keys)
            row = self._starts.take("row", slots)
            ahead = self._starts.take("ahead", slots)
            rows = self._rows.slots(row[:, None] + np.minimum(self._steps, ahead[:, None]))
            self.counters.sampled_positions += batch_size
            actions = self._rows.take("action", rows[:, :-1])
            over = actions < 0
            actions[over] = rng.integers(self._game.num_actions, size=np.count_nonzero(over))
            return Batch(
                observation=self._stack(row, self._starts.take("past", slots)),
                actions=actions,
                target_reward=self._rows.take("reward", rows[:, :-1]),
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

    def _insert(self, history: GameHistory) -> bool:
        if history.key in self._keys:
            return False
        while self._positions + history.size > self._max_size:
            self._evict()
        rows = _rows_of(history, self._config)
        first_row = self._append_rows(rows)
        starts = self._append_starts(history, first_row, rows)
        self._records.append(_Record(history.key, history.size, len(history) + 2, starts))
        self._keys.add(history.key)
        self._segments[history.game_id] += 1
        self._positions += history.size
        self.statistics.observe(history)
        self.counters.inserted_positions += history.size
        self.counters.inserted_games += history.segment == 0
        return True

    def _append_rows(self, rows: dict[str, Array]) -> int:
        """Adds a game's rows; memory grows to what the window needs of games like those so far."""
        count = len(rows["action"])
        needed = len(self._rows) + count
        if needed > self._rows.capacity:
            positions = max(1, self._positions)
            expected = self._max_size * len(self._rows) / positions
            self._rows.grow(max(needed, min(2 * needed, math.ceil(1.05 * expected) + count), 1024))
        return self._rows.append(rows)

    def _append_starts(self, history: GameHistory, first_row: int, rows: dict[str, Array]) -> int:
        """Makes the game's positions starts; answers how many."""
        length, first = len(history), history.first
        end = first + history.size
        if not history.terminated:
            last = length - len(self._steps) + 1  # whose unroll just reaches the final state
            end = max(first + (first == 0), min(end, last + 1))
        time = np.arange(first, end)
        key = self._starts.append(
            {"row": first_row + time, "ahead": length + 1 - time, "past": time}
        )
        if self._tree is not None:
            surprise = np.abs(history.root_value[time] - rows["value"][time])
            slots = self._starts.slots(np.arange(key, key + len(time)))
            self._tree.update(slots, self._weights(surprise))
        return len(time)

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
        return np.asarray(np.maximum(priority, LEAST_PRIORITY) ** self._exponent)

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


def _row_columns(config: Config) -> dict[str, tuple[tuple[int, ...], Any]]:
    game = config.game
    return {
        "observation": (game.observation_shape, game.observation_dtype),
        "action": ((), np.int32),  # −1 past the end
        "reward": ((), np.float32),
        "value": ((), np.float32),  # the target
        "policy": ((game.num_actions,), np.float32),
        "mask": ((), np.float32),
    }


def _rows_of(history: GameHistory, config: Config) -> dict[str, Array]:
    """A game's `[T + 2, …]` rows: its moves, its final state, and an absorbing one."""
    value = np.append(history.root_value, np.float32(history.final_value))
    returns = n_step_returns(
        history.reward,
        value,
        config.signed_discount,
        config.training.td_steps,
        history.exploratory,
    )
    return {
        "observation": _padded(history.observation),
        "action": _padded(history.action, -1),
        "reward": _padded(history.reward),
        "value": np.concatenate([returns, value[-1:], np.zeros(1, np.float32)]),
        "policy": _padded(history.action_weights),
        "mask": _padded(np.ones(len(history), np.float32)),
    }


def _padded(array: Array, fill: int = 0) -> Array:
    """`[T, …]` with two more rows of `fill`."""
    return np.concatenate([array, np.full((2, *array.shape[1:]), fill, array.dtype)])
