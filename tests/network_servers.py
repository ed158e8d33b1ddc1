"""Tiny networks and network servers for tests, each on free ports; and fixtures of their files."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from patience import until

from muprover.config import Config, GameConfig, MLPConfig, SearchConfig, SelfPlayConfig
from muprover.model.export import Exporter
from muprover.model.networks import MuZeroNetwork, mlp_network
from muprover.model.serving import manager as manager_module
from muprover.model.serving.errors import ServingError
from muprover.model.serving.flags import Batching, ServerOptions
from muprover.model.serving.server import NetworkServer
from muprover.policy import SearchInputs
from muprover.serving_config import ModelSettings, VersionPolicy

ROWS, ACTIONS = 4, 3
MODEL = "tiny"


def tiny_config(**search: Any) -> Config:
    """Four numbers in, three actions, searches of at most six simulations."""
    settings = {"variant": "muzero", "num_simulations": 3, "max_num_simulations": 6} | search
    return Config(
        game=GameConfig(name=MODEL, observation_shape=(4,), num_actions=ACTIONS, max_moves=9),
        search=SearchConfig(**settings),
        network=MLPConfig(hidden_size=4, layer_size=4),
        self_play=SelfPlayConfig(games_per_agent=2 * ROWS),
    )


def tiny_network(seed: int = 0, config: Config | None = None) -> MuZeroNetwork:
    """A network whose outputs differ from those of every other seed, heads included."""
    keras.utils.set_random_seed(seed)
    network = mlp_network(config or tiny_config())
    rng = np.random.default_rng(seed)
    for weight in network.weights:
        weight.assign(rng.normal(size=weight.shape).astype(np.float32))
    return network


def tiny_exporter(
    model_dir: Path, seed: int = 0, config: Config | None = None, **options: Any
) -> Exporter:
    config = config or tiny_config()
    return Exporter(tiny_network(seed, config), config, model_dir, **options)


def random_weights(seed: int) -> list[Any]:
    return [w.numpy() for w in tiny_network(seed).weights]


def search_inputs(rows: int = ROWS, seed: int = 0, simulations: int = 3) -> SearchInputs:
    rng = np.random.default_rng(seed)
    return SearchInputs(
        observation=rng.normal(size=(rows, 4)).astype(np.float32),
        legal_actions=np.ones((rows, ACTIONS), bool),
        seed=rng.integers(0, 1000, (rows, 2)).astype(np.int32),
        num_simulations=np.full(rows, simulations, np.int32),
        temperature=np.ones(rows, np.float32),
        exploration=np.ones(rows, np.float32),
    )


@contextlib.contextmanager
def network_server(
    model_dir: Path,
    num_versions: int = 2,
    *,
    wait: bool = True,
    models: list[ModelSettings] | None = None,
    batching: Batching | None = None,
    **options: Any,
) -> Iterator[NetworkServer]:
    """The embedded server in a thread of this process, serving `MODEL` (or `models`)."""
    policy = VersionPolicy(num_versions=num_versions)
    settings = ServerOptions(
        models or [ModelSettings(MODEL, str(model_dir), policy)],
        **{"port": 0, "rest_port": -1, "poll_seconds": 0.05, "host": "127.0.0.1"} | options,
        batching=batching or Batching(),
    )
    started = threading.Event()
    box: list[Any] = []

    async def main() -> None:
        stop = asyncio.Event()
        server = NetworkServer(settings)
        box.extend((server, stop, asyncio.get_running_loop()))
        await server.run(stop, lambda _: started.set())

    thread = threading.Thread(target=asyncio.run, args=(main(),), daemon=True)
    thread.start()
    assert started.wait(30), "the server did not start"
    server, stop, loop = box
    try:
        if wait:
            until(lambda: server.manager.is_ready)
        yield server
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(60)
        assert not thread.is_alive(), "the server did not end"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Exporter:
    return tiny_exporter(tmp_path_factory.mktemp("models"), keep=100)


@pytest.fixture
def exporter(shared: Exporter, tmp_path: Path) -> Exporter:
    shared._model_dir, shared._keep = tmp_path / "store" / MODEL, 100
    return shared


@pytest.fixture
def folder(exporter: Exporter) -> Path:
    return exporter._model_dir


@pytest.fixture(scope="module")
def held(shared: Exporter, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keeps the compiled program in memory, so that it is compiled once for all tests of a file."""
    programs: Any = {}
    original = manager_module.Loader.__init__

    def share(self: Any, *args: Any) -> None:
        original(self, *args)
        self._programs = programs

    patch = pytest.MonkeyPatch()
    patch.setattr(manager_module.Loader, "__init__", share)
    yield
    patch.undo()


def states(server: NetworkServer, name: str = MODEL) -> dict[int, str]:
    try:
        return {s.version: s.state.name for s in server.manager.statuses(name)}
    except ServingError:
        return {}
