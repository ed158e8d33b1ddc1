"""Environment servers for tests, each on a free port, and clients of six games."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

import grpc
import numpy as np
from prometheus_client import REGISTRY

from muprover.config import Config, GameConfig, TrainingConfig
from muprover.environment import Environment
from muprover.game import Game, load_game
from muprover.services.environment import RemoteEnvironments, serving
from muprover.v1.environment_pb2_grpc import add_EnvironmentServiceServicer_to_server

ROWS = np.arange(6)
SERVE = """
from muprover.game import load_game
from muprover.services.environment import serve
serve(load_game("tictactoe"), {port}, workers={workers}, host="localhost")
"""  # a process of its own


@contextlib.contextmanager
def environment_server(
    game: Game | str, workers: int = 1, port: int = 0, **options: Any
) -> Iterator[str]:
    """The real server, in a thread of this process; its address."""
    served = load_game(game) if isinstance(game, str) else game
    stop: list[Any] = []
    started: list[str] = []
    ready = threading.Event()

    async def main() -> None:
        stop.extend([asyncio.get_running_loop(), asyncio.Event()])
        async with serving(served, port, workers=workers, host="localhost", **options) as server:
            started.append(f"localhost:{server.port}")
            ready.set()
            await stop[1].wait()

    def run() -> None:
        try:
            asyncio.run(main())
        finally:
            ready.set()

    thread = threading.Thread(target=run)
    thread.start()
    assert ready.wait(120), "the server did not start in time"
    try:
        yield started[0]
    finally:
        stop[0].call_soon_threadsafe(stop[1].set)
        thread.join()


@contextlib.contextmanager
def plain_server(servicer: Any) -> Iterator[str]:
    """A servicer that is written with threads; its address."""
    server = grpc.server(ThreadPoolExecutor(16))
    add_EnvironmentServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("localhost:0")
    server.start()
    try:
        yield f"localhost:{port}"
    finally:
        server.stop(None)


def game_of(environment: type[Environment], **facts: Any) -> Game:
    """A game made in a test: its rules, and the facts of its settings."""
    module = ModuleType("game_of_a_test")
    module.make_environment = environment  # type: ignore[attr-defined]
    sys.modules.setdefault(module.__name__, module)
    given = {"name": "tested", "observation_shape": (1,), "num_actions": 2, "max_moves": 10}
    return Game(
        "tested", Config(game=GameConfig(**given | facts), training=TrainingConfig()), module
    )


def remote(
    address: str, game: Game | str, num_games: int = len(ROWS), **options: Any
) -> RemoteEnvironments:
    config = (load_game(game) if isinstance(game, str) else game).config
    return RemoteEnvironments(address, config, num_games, timeout=20, **options)


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Waits for what a server does by itself."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def metric(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0
