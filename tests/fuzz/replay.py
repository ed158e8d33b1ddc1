"""The replay service's calls, in this process, with its store in a folder of its own."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from replay_games import make_config, make_games

from fuzz.mutate import join, message, several, split
from fuzz.target import AsyncCall, Feed, Loop, Target, answers, parsed, stream
from muprover.config import Config
from muprover.replay.durable import DurableReplay
from muprover.replay.wire import game_to_proto
from muprover.services.replay import ReplayServicer
from muprover.tensors import to_tensor
from muprover.v1 import replay_pb2

SERVICE = replay_pb2.DESCRIPTOR.services_by_name["ReplayService"]


class Replay:
    """A servicer with some games."""

    def __init__(self, folder: Path) -> None:
        self.run = Loop()
        replay = DurableReplay(config(), folder / "store")
        self.servicer = ReplayServicer(config(), replay, np.random.default_rng(0))
        self.run.start(self.servicer.write())
        self._add(list(games()))

    def _add(self, some: list[Any]) -> None:
        assert self.run(self.servicer.Add(replay_pb2.AddRequest(games=some), AsyncCall()))


def config() -> Config:
    return make_config(priority_exponent=0.5, num_players=2)


def games(seed: int = 0) -> list[replay_pb2.GameHistory]:
    made = make_games(config(), [1, 2, 5, 9], np.random.default_rng(seed))
    return [game_to_proto(game) for game in made]


def unary(name: str, kind: Any) -> Callable[[Path], Feed]:
    """Calls the method with a message; the answer must be one that can be sent."""

    def open_target(folder: Path) -> Feed:
        replay = Replay(folder)

        def feed(data: bytes) -> None:
            for request in parsed(kind, [data]):
                answer = replay.run(getattr(replay.servicer, name)(request, AsyncCall()))
                if answer is not None:
                    answer.SerializeToString()

        return feed

    return open_target


def streaming(name: str, kind: Any) -> Callable[[Path], Feed]:
    """Streams messages to the method, and takes what it streams back."""

    def open_target(folder: Path) -> Feed:
        replay = Replay(folder)

        def feed(data: bytes) -> None:
            requests, context = stream(parsed(kind, split(data))), AsyncCall()
            replay.run(answers(getattr(replay.servicer, name)(requests, context), context))

        return feed

    return open_target


def open_restore(folder: Path) -> Feed:
    replay = Replay(folder)

    def feed(data: bytes) -> None:
        games = stream(parsed(replay_pb2.GameHistory, split(data)))
        replay.run(replay.servicer.Restore(games, AsyncCall()))

    return feed


def open_backup(folder: Path) -> Feed:
    """Backs up, every so often, what garbage has left in the store."""
    replay, number = Replay(folder), count()

    def feed(data: bytes) -> None:
        request = replay_pb2.AddRequest(games=parsed(replay_pb2.GameHistory, [data]))
        replay.run(replay.servicer.Add(request, AsyncCall()))
        if next(number) % 16 == 0:
            context = AsyncCall()
            backup = replay.servicer.Backup(replay_pb2.BackupRequest(), context)
            assert replay.run(answers(backup, context))

    return feed


def add_requests() -> list[bytes]:
    several_games = replay_pb2.AddRequest(games=games(1))
    one = replay_pb2.AddRequest(games=games(2)[:1])
    return [several_games.SerializeToString(), one.SerializeToString(), b""]


def priorities() -> list[bytes]:
    request = replay_pb2.UpdatePrioritiesRequest(
        key=to_tensor(np.arange(5)), priority=to_tensor(np.ones(5, np.float32))
    )
    return [request.SerializeToString(), b""]


def sample_requests() -> list[bytes]:
    sizes = [[1], [8, 3], [0], [64]]
    made = [[replay_pb2.SampleRequest(batch_size=n).SerializeToString() for n in s] for s in sizes]
    return [join(parts) for parts in made]


def agents() -> list[bytes]:
    return [replay_pb2.AdmitRequest(agent=name).SerializeToString() for name in ("", "agent-1")]


def of(name: str, kind: str, seeds: Callable[[], list[bytes]], share: float = 1.0) -> Target:
    """The target of a unary method."""
    request = getattr(replay_pb2, kind)
    return Target(f"replay.{name}", unary(name, request), seeds, message(request), share)


Game = replay_pb2.GameHistory
TARGETS = [
    of("Contract", "ContractRequest", lambda: [b""], 0.3),
    of("Add", "AddRequest", add_requests),
    Target(
        "replay.AddStream",
        streaming("AddStream", replay_pb2.AddRequest),
        lambda: [join(add_requests())],
        several(message(replay_pb2.AddRequest)),
    ),
    of("Admit", "AdmitRequest", agents, 0.3),
    Target(
        "replay.Sample",
        streaming("Sample", replay_pb2.SampleRequest),
        sample_requests,
        several(message(replay_pb2.SampleRequest)),
        0.3,
    ),
    of("UpdatePriorities", "UpdatePrioritiesRequest", priorities),
    of("Stats", "StatsRequest", lambda: [b""], 0.3),
    Target(
        "replay.Backup",
        open_backup,
        lambda: [game.SerializeToString() for game in games(3)],
        message(Game),
        0.5,
    ),
    Target(
        "replay.Restore",
        open_restore,
        lambda: [join([game.SerializeToString() for game in games(4)])],
        several(message(Game)),
    ),
]
