"""What the games that come in are like: lengths, outcomes, variety, age."""

from __future__ import annotations

import time
import zlib
from collections import Counter, deque
from typing import NamedTuple

from muprover.history import GameHistory

RECENT_GAMES = 1000  # that means and shares are taken over


class ReplayStats(NamedTuple):
    """A replay buffer in numbers; those of waiting and of disks are 0 for one in memory alone."""

    games: int = 0  # stored now
    positions: int = 0  # stored now
    inserted_games: int = 0  # ever
    inserted_positions: int = 0  # ever
    sampled_positions: int = 0  # ever
    samples_per_insert: float = 0.0  # of these, since sampling began
    sample_wait_seconds: float = 0.0  # the trainer has waited for data
    admit_wait_seconds: float = 0.0  # agents have waited for room, summed over them
    connected_agents: int = 0
    bytes_on_disk: int = 0
    newest_network_version: int = 0
    mean_game_length: float = 0.0  # of the last games
    newest_game_age_seconds: float = 0.0  # since the last one came in
    unique_games_ratio: float = 0.0  # share of different lines of play among the last games


def game_length(history: GameHistory, segment_length: int) -> int | None:
    """Moves of the whole game, if this is its last segment."""
    if history.first + history.size < len(history):
        return None
    return history.segment * segment_length + history.size


class GameStatistics:
    """Of the last games."""

    def __init__(self, num_players: int, segment_length: int) -> None:
        self.outcomes: Counter[tuple[int, str]] = Counter()  # of two: by seat, win, draw or loss
        self.newest_network_version = 0
        self._num_players = num_players
        self._segment_length = segment_length
        self._lengths: deque[int] = deque(maxlen=RECENT_GAMES)
        self._lines: deque[int] = deque(maxlen=RECENT_GAMES)
        self._newest = time.monotonic()

    def observe(self, history: GameHistory) -> None:
        self._newest = time.monotonic()
        self.newest_network_version = max(self.newest_network_version, history.network_version)
        if history.segment == 0:
            self._lines.append(zlib.crc32(history.action.tobytes()))
        length = game_length(history, self._segment_length)
        if length is not None:
            self._lengths.append(length)
            if history.terminated and self._num_players == 2:
                self._count_outcome(history)

    def _count_outcome(self, history: GameHistory) -> None:
        """By the sign of what each player got, which is decided at the end."""
        score = float(history.reward @ (1 - 2 * history.to_play))
        for seat, sign in ((0, 1), (1, -1)):
            result = "draw" if score == 0 else "win" if sign * score > 0 else "loss"
            self.outcomes[seat, result] += 1

    @property
    def mean_game_length(self) -> float:
        return sum(self._lengths) / max(1, len(self._lengths))

    @property
    def unique_games_ratio(self) -> float:
        return len(set(self._lines)) / max(1, len(self._lines))

    @property
    def newest_game_age_seconds(self) -> float:
        return time.monotonic() - self._newest
