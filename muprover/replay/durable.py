"""The replay buffer with its games on disk: kept there before they are acknowledged, reloaded."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

from google.protobuf.message import DecodeError

from muprover.config import Config
from muprover.history import GameHistory
from muprover.replay.buffer import Counters, ReplayBuffer
from muprover.replay.records import COUNTERS, GAME
from muprover.replay.store import DiskError, Store
from muprover.replay.wire import game_from_proto
from muprover.v1 import replay_pb2

log = logging.getLogger(__name__)


class Added(NamedTuple):
    """What became of the games of one request."""

    games: list[GameHistory]  # new ones
    records: list[tuple[int, bytes]]  # the same, for the store
    duplicates: int


class DurableReplay:
    """A `ReplayBuffer` and its `Store`. One thread adds; others may sample and read meanwhile."""

    def __init__(self, config: Config, folder: Path) -> None:
        """Loads what `folder` holds; raises `StoreError` where it cannot be this store."""
        # in microseconds: ahead of all keys that an earlier process gave out
        self.buffer = ReplayBuffer(config, first_key=time.time_ns() // 1000)
        self._store = Store(folder, config.contract)
        self._flushed = Counters()
        self._disk_fails = False
        started = time.monotonic()
        try:
            self._store.load(self._load)
            self._store.forget(self.buffer.evicted)
        except BaseException:
            self._store.close()
            raise
        if len(self.buffer):
            games, seconds = self.buffer.stats().games, time.monotonic() - started
            log.info("loaded %d games, %d positions, in %.1f s", games, len(self.buffer), seconds)

    @property
    def bytes_on_disk(self) -> int:
        return self._store.nbytes

    def add(
        self, requests: Sequence[Sequence[replay_pb2.GameHistory]]
    ) -> list[Added | ValueError | DiskError]:
        """Keeps the games of several requests with one write; says of each what became of it.

        A request with a game that cannot be kept is refused whole. When the disk fails, nothing
        of any request is kept.
        """
        seen: set[tuple[int, int]] = set()
        outcomes = [self._check(request, seen) for request in requests]
        accepted = [outcome for outcome in outcomes if isinstance(outcome, Added)]
        games = [game for added in accepted for game in added.games]
        if not games:
            return list(outcomes)
        counters = self._counters_after(games)
        records = [record for added in accepted for record in added.records]
        try:
            self._append([*records, _counters_record(counters)])
        except DiskError as error:
            return [error if isinstance(outcome, Added) else outcome for outcome in outcomes]
        self._flushed = counters
        self._insert(games)
        return list(outcomes)

    def games(self) -> Iterator[replay_pb2.GameHistory]:
        """Every stored game, oldest first; others may come and go meanwhile."""
        for data in self._store.games():
            message = replay_pb2.GameHistory.FromString(data)
            if (message.game_id, message.segment) in self.buffer:
                yield message

    def flush(self) -> None:
        """Brings the counters on the disk up to date."""
        counters = replace(self.buffer.counters)
        if counters != self._flushed:
            self._append([_counters_record(counters)])
            self._flushed = counters

    def close(self) -> None:
        try:
            self.flush()
        except DiskError:
            log.error("the last counts are not on the disk")
        finally:
            self._store.close()

    def _append(self, records: Sequence[tuple[int, bytes]]) -> None:
        """As `Store.append`; says once that the disk fails, and once that it works again."""
        try:
            self._store.append(records)
        except DiskError as error:
            if not self._disk_fails:
                log.error("%s", error.strerror)
            self._disk_fails = True
            raise
        if self._disk_fails:
            log.info("the disk takes games again")
        self._disk_fails = False

    def _check(
        self, request: Sequence[replay_pb2.GameHistory], seen: set[tuple[int, int]]
    ) -> Added | ValueError:
        """What there is to keep of a request, beside the `seen` games of others."""
        added = Added([], [], 0)
        new = set()
        try:
            games = [game_from_proto(message) for message in request]
            self.buffer.check(games)
        except ValueError as error:
            return error
        for game, message in zip(games, request, strict=True):
            if game.key not in seen and game.key not in new and game.key not in self.buffer:
                new.add(game.key)
                added.games.append(game)
                added.records.append((GAME, message.SerializeToString()))
        seen |= new
        return added._replace(duplicates=len(request) - len(new))

    def _insert(self, games: Sequence[GameHistory]) -> None:
        evicted = self.buffer.evicted
        self.buffer.insert(games)
        self._store.forget(self.buffer.evicted - evicted)

    def _counters_after(self, games: Sequence[GameHistory]) -> Counters:
        now = self.buffer.counters
        return Counters(
            inserted_games=now.inserted_games + sum(game.segment == 0 for game in games),
            inserted_positions=now.inserted_positions + sum(game.size for game in games),
            sampled_positions=now.sampled_positions,
        )

    def _load(self, kind: int, data: bytes) -> bool:
        """Takes a record in; True for a game that is kept."""
        try:
            if kind == GAME:
                game = game_from_proto(replay_pb2.GameHistory.FromString(data))
                return self.buffer.add(game) == 1
            if kind == COUNTERS:
                message = replay_pb2.ReplayCounters.FromString(data)
                self.buffer.counters = self._flushed = Counters(
                    message.inserted_games, message.inserted_positions, message.sampled_positions
                )
        except (ValueError, DecodeError) as error:
            log.warning("a stored game does not fit and is left out: %s", error)
        return False


def _counters_record(counters: Counters) -> tuple[int, bytes]:
    return COUNTERS, replay_pb2.ReplayCounters(**asdict(counters)).SerializeToString()
