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
from muprover.replay.checks import GameError
from muprover.replay.records import COUNTERS, GAME
from muprover.replay.store import DiskError, Record, Store
from muprover.replay.wire import game_from_proto
from muprover.tensors import TensorError
from muprover.v1 import replay_pb2

log = logging.getLogger(__name__)

MOST_COUNTED = 1 << 62  # beyond which the message of the counts would soon be full


class Added(NamedTuple):
    """What became of the games of one request."""

    games: list[GameHistory]  # new ones
    records: list[Record]  # the same, for the store
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

    def _append(self, records: Sequence[Record]) -> None:
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

    def _load(self, records: Sequence[Record]) -> int:
        """Takes records in; answers how many games are kept."""
        counted = max((i for i, (kind, _) in enumerate(records) if kind == COUNTERS), default=0)
        kept = self._keep(records[:counted])
        if records[counted][0] == COUNTERS:
            self._set_counters(records[counted][1])
        return kept + self._keep(records[counted:])

    def _keep(self, records: Sequence[Record]) -> int:
        """Adds the games among these; answers how many."""
        read = (self._read(data) for kind, data in records if kind == GAME)
        games = [game for game in read if game is not None]
        try:
            self.buffer.check(games)
        except GameError:
            games = [game for game in games if self._fits(game)]
        return self.buffer.insert(games)

    def _read(self, data: bytes) -> GameHistory | None:
        try:
            return game_from_proto(replay_pb2.GameHistory.FromString(data))
        except (TensorError, DecodeError) as error:
            log.warning("a stored game cannot be read and is left out: %s", error)
        return None

    def _fits(self, game: GameHistory) -> bool:
        try:
            self.buffer.check([game])
        except GameError as error:
            log.warning("a stored game does not fit and is left out: %s", error)
            return False
        return True

    def _set_counters(self, data: bytes) -> None:
        try:
            message = replay_pb2.ReplayCounters.FromString(data)
        except DecodeError as error:
            log.warning("stored counts cannot be read: %s", error)
            return
        counts = message.inserted_games, message.inserted_positions, message.sampled_positions
        if min(counts) >= 0 and max(counts) < MOST_COUNTED:
            self.buffer.counters = self._flushed = Counters(*counts)
        else:
            log.warning("stored counts cannot be: %s", counts)


def _counters_record(counters: Counters) -> Record:
    return COUNTERS, replay_pb2.ReplayCounters(**asdict(counters)).SerializeToString()
