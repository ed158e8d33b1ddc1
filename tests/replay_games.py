"""Made-up games and a replay server in a process of its own, for the tests of replay."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np

from muprover.config import Config, GameConfig, ReplayConfig, TrainingConfig
from muprover.history import GameHistory
from muprover.services.replay import SERVICE, serve_until
from muprover.services.server import Server


def make_config(**settings) -> Config:
    """A game of three actions; `settings` go to whichever part knows them."""
    game = {"name": "made_up", "observation_shape": (2,), "num_actions": 3, "max_moves": 1000}
    parts: dict[str, dict] = {"game": game, "training": {"batch_size": 8}, "replay": {}}
    parts["replay"] = {"max_size": 1000, "min_size_to_sample": 1, "samples_per_insert": None}
    models = {"game": GameConfig, "training": TrainingConfig, "replay": ReplayConfig}
    for name, value in settings.items():
        part = next(part for part, model in models.items() if name in model.model_fields)
        parts[part][name] = value
    return Config(**{part: models[part](**values) for part, values in parts.items()})


def make_game(
    config: Config,
    length: int,
    rng: np.random.Generator,
    *,
    terminated: bool = True,
    exploratory: float = 0.0,
    **fields,
) -> GameHistory:
    """A game of random numbers, in which no two frames are equal."""
    game = config.game
    legal = rng.random((length, game.num_actions)) < 0.7
    action = rng.integers(game.num_actions, size=length).astype(np.int32)
    legal[np.arange(length), action] = True
    weights = legal * rng.random((length, game.num_actions)).astype(np.float32) + legal * 1e-3
    values = {
        "game_id": int(rng.integers(1 << 63)),
        "segment": 0,
        "first": 0,
        "size": length,
        "observation": rng.normal(size=(length, *game.observation_shape)).astype(
            game.observation_dtype
        ),
        "action": action,
        "reward": rng.normal(size=length).astype(np.float32),
        "to_play": (np.arange(length) % game.num_players).astype(np.int32),
        "legal_actions": legal,
        "action_weights": (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32),
        "root_value": rng.normal(size=length).astype(np.float32),
        "exploratory": rng.random(length) < exploratory,
        "final_value": 0.0 if terminated else float(np.float32(rng.normal())),
        "terminated": terminated,
        "agent": "tester",
        "network_version": 3,
    }
    return GameHistory(**(values | fields))


def make_games(config: Config, lengths, rng: np.random.Generator, **fields) -> list[GameHistory]:
    return [make_game(config, length, rng, **fields) for length in lengths]


def same_game(one: GameHistory, other: GameHistory) -> bool:
    return (
        all(np.array_equal(getattr(one, name), getattr(other, name)) for name in vars(one))
        and one.observation.dtype == other.observation.dtype
    )


def return_by_hand(
    game: GameHistory, t: int, td_steps: int, discount: float, players: int
) -> float:
    """The return of position t, worked out by who gets what: no signed discount, no arrays."""
    me, total, scale = game.to_play[t], 0.0, 1.0
    for i in range(t, t + td_steps):
        if i == len(game):  # nobody moves here; in a game of two it would be the other's turn
            mover = (game.to_play[-1] + 1) % players
            return total + scale * game.final_value * (1 if mover == me else -1)
        sign = 1 if game.to_play[i] == me else -1
        if game.exploratory[i]:
            return total + scale * sign * float(game.root_value[i])
        total += scale * sign * float(game.reward[i])
        scale *= discount
    if t + td_steps == len(game):
        mover = (game.to_play[-1] + 1) % players
        return total + scale * game.final_value * (1 if mover == me else -1)
    sign = 1 if game.to_play[t + td_steps] == me else -1
    return total + scale * sign * float(game.root_value[t + td_steps])


def free_port() -> int:
    with socket.socket(socket.AF_INET6) as listener:
        listener.bind(("::", 0))
        return listener.getsockname()[1]


GAME_FILE = """
import sys
sys.path.insert(0, {tests!r})
from replay_games import make_config as _make
def make_config():
    return _make(**{settings!r})
"""

SERVER = """
import sys
from pathlib import Path
from muprover.game import load_game
from muprover.logs import configure_logging
from muprover.services.replay import serve
configure_logging("replay")
_, game, port, logdir, metrics_port = sys.argv
serve(load_game(game), int(port), logdir=Path(logdir), metrics_port=int(metrics_port) or None)
"""


class ReplayProcess:
    """A server of `make_config(**settings)`, whose store is in `folder`."""

    def __init__(
        self, folder: Path, *, port: int = 0, metrics: bool = False, running=True, **settings
    ) -> None:
        self.folder = folder
        self.config = make_config(**settings)
        self.port = port or free_port()
        self.metrics_port = free_port() if metrics else 0
        self.log = folder / "log"
        folder.mkdir(exist_ok=True)
        self._game = folder / "made_up.py"
        tests = str(Path(__file__).parent)
        self._game.write_text(GAME_FILE.format(tests=tests, settings=settings))
        self.process = None
        if running:
            self.start()

    @property
    def address(self) -> str:
        return f"localhost:{self.port}"

    def start(self) -> None:
        arguments = [self._game, self.port, self.folder / "store", self.metrics_port]
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", SERVER, *map(str, arguments)], stderr=log
            )

    def end(self, number: int = signal.SIGTERM) -> int:
        """Sends a signal; answers the exit status."""
        os.kill(self.process.pid, number)
        return self.process.wait(20)

    def __enter__(self) -> "ReplayProcess":
        return self

    def __exit__(self, *_) -> None:
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class ReplayThread:
    """The same in a thread: quicker to start, not to be killed."""

    def __init__(self, folder: Path, **settings) -> None:
        self.config = make_config(**settings)
        self.port = 0
        self._folder = folder / "store"
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        assert self._ready.wait(20)

    @property
    def address(self) -> str:
        return f"localhost:{self.port}"

    def end(self) -> None:
        """Tells it to end, and waits for that."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(20)
            assert not self._thread.is_alive()

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server = Server([SERVICE], 0)

        def ready(port: int) -> None:
            self.port = port
            self._ready.set()

        await serve_until(self._stop, server, self.config, self._folder, seed=0, on_ready=ready)

    def __enter__(self) -> "ReplayThread":
        return self

    def __exit__(self, *_) -> None:
        self.end()
