"""The replay service's client: `RemoteReplayBuffer`, which answers what a `ReplayBuffer` does while
the games are elsewhere.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from muprover.config import Config
from muprover.history import GameHistory
from muprover.replay import Batch, ReplayStats
from muprover.replay.wire import game_from_proto, game_to_proto, stats_from_proto
from muprover.services.client import ServiceError, check_contract, open_channel
from muprover.services.common import MAX_MESSAGE_BYTES
from muprover.services.replay_calls import PatientCalls, SampleStream, as_it_is
from muprover.services.waiting import Stopped
from muprover.tensors import to_tensor
from muprover.v1 import replay_pb2, replay_pb2_grpc

Array = NDArray[Any]

ADMIT_SECONDS = 20.0  # of one long poll
ADD_BYTES = 8 << 20  # of one message's games, unless a single one has more


class RemoteReplayBuffer:
    """The `ReplayBuffer` on the server at `address`. Threads may share it.

    The contract of `config` must hold there, else `ContractError`. Calls wait for a server that is
    not up (yet, or again) for at most `timeout` seconds, then raise a `ServiceError`; adding is
    idempotent, so nothing is lost or stored twice on the way.
    """

    def __init__(self, address: str, config: Config, *, timeout: float = 300.0) -> None:
        self._address = address
        self._config = config
        self._channel = open_channel(address)
        self._stub = replay_pb2_grpc.ReplayServiceStub(self._channel)
        self._calls = PatientCalls("replay", address, timeout)
        self._streams: list[SampleStream] = []
        self._is_connected = False
        self._lock = threading.Lock()

    def connect(self, stop: threading.Event | None = None) -> None:
        """Waits for the server, and compares contracts; the first call does so if nobody has.

        Here and elsewhere, setting `stop` ends the waiting, with `Stopped`.
        """
        with self._lock:
            if self._is_connected:
                return
            answer = self._calls(self._stub.Contract, replay_pb2.ContractRequest(), stop=stop)
            mine, theirs = self._config.contract, dict(answer.contract)
            check_contract("replay", self._address, mine, theirs)
            self._is_connected = True

    def add(
        self, games: GameHistory | Sequence[GameHistory], stop: threading.Event | None = None
    ) -> int:
        """Returns when the games are on the server's disk; answers how many were new."""
        self.connect(stop)
        games = [games] if isinstance(games, GameHistory) else games
        messages = [_sendable(game_to_proto(game)) for game in games]
        return sum(
            self._calls(self._stub.Add, replay_pb2.AddRequest(games=some), stop=stop).added
            for some in _message_groups(messages)
        )

    def admit(
        self, agent: str, timeout: float = ADMIT_SECONDS, stop: threading.Event | None = None
    ) -> bool:
        """Whether the agent may start more games; waits for room. False after `timeout` seconds,
        at `stop`, and while the server is away: ask again."""
        try:
            self.connect(stop)
            request = replay_pb2.AdmitRequest(agent=agent)
            answer = self._calls(self._stub.Admit, request, within=timeout, stop=stop)
        except Stopped:
            return False
        except ServiceError as error:
            if error.is_transient:
                return False
            raise
        return bool(answer.admitted)

    def sample(
        self,
        batch_size: int,
        prefetch: int = 2,
        stop: threading.Event | None = None,
        prepare: Callable[[Batch], Batch] = as_it_is,
    ) -> SampleStream:
        """Batches without end (or until `stop`), each as soon as the rate limit allows it and
        `prefetch` of them ahead, `prepare` done; an iterator to be closed, or left to `close()`."""
        self.connect(stop)
        stream = SampleStream(self._stub.Sample, self._calls, batch_size, prefetch, stop, prepare)
        self._streams.append(stream)
        return stream

    def update_priorities(
        self, key: Array, priority: Array, stop: threading.Event | None = None
    ) -> int:
        """As `ReplayBuffer.update_priorities`."""
        self.connect(stop)
        request = replay_pb2.UpdatePrioritiesRequest(
            key=to_tensor(np.asarray(key, np.int64)),
            priority=to_tensor(np.asarray(priority, np.float32)),
        )
        answer = self._calls(self._stub.UpdatePriorities, request, stop=stop)
        return int(answer.updated)

    def stats(self, stop: threading.Event | None = None) -> ReplayStats:
        self.connect(stop)
        return stats_from_proto(self._calls(self._stub.Stats, replay_pb2.StatsRequest(), stop=stop))

    def backup(self) -> Iterator[GameHistory]:
        """Every stored game, oldest first."""
        self.connect()
        with self._calls.in_words():
            for message in self._stub.Backup(replay_pb2.BackupRequest()):
                yield game_from_proto(message)

    def restore(self, games: Iterable[GameHistory]) -> tuple[int, int]:
        """Stores the games of a backup; answers how many were new, and how many not."""
        self.connect()
        failures: list[Exception] = []
        with self._calls.in_words():
            answer = self._stub.Restore(_until_failure(games, failures))
        if failures:
            raise failures[0]
        return answer.added, answer.duplicates

    def close(self) -> None:
        """Ends all calls."""
        for stream in self._streams:
            stream.close()
        self._calls.close()
        self._channel.close()


def _until_failure(
    games: Iterable[GameHistory], failures: list[Exception]
) -> Iterator[replay_pb2.GameHistory]:
    """The games' messages, up to where `games` fails; gRPC would hide why."""
    try:
        yield from (game_to_proto(game) for game in games)
    except Exception as error:
        failures.append(error)


def _sendable(game: replay_pb2.GameHistory) -> replay_pb2.GameHistory:
    if game.ByteSize() > MAX_MESSAGE_BYTES - (1 << 10):
        raise ServiceError(
            grpc.StatusCode.INVALID_ARGUMENT,
            f"a segment of {game.size} positions has {game.ByteSize()} bytes, a message at most "
            f"{MAX_MESSAGE_BYTES}; lower replay.segment_length",
        )
    return game


def _message_groups(
    games: Sequence[replay_pb2.GameHistory],
) -> Iterator[list[replay_pb2.GameHistory]]:
    """The games, in groups that fit into one message each."""
    group: list[replay_pb2.GameHistory] = []
    size = 0
    for game in games:
        if group and size + game.ByteSize() > ADD_BYTES:
            yield group
            group, size = [], 0
        group.append(game)
        size += game.ByteSize() + 16
    if group:
        yield group
