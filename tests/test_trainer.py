"""The trainer by itself: what it leaves behind, when it ends, and how it goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from muprover.game import Game, load_game
from muprover.model import trainer as trainer_module
from muprover.model.trainer import Trainer
from muprover.model.training import example_batch
from muprover.replay import Batch

TINY = [
    *("network.hidden_size=8", "network.layer_size=8", "search.max_num_simulations=32"),
    *("training.batch_size=4", "training.num_unroll_steps=1", "training.xla=false"),
]


def game_with(*overrides: str) -> Game:
    return load_game("tictactoe", overrides=[*TINY, *overrides])


class FakeReplay:
    """Batches without end; has stored one game more each time it is asked."""

    def __init__(self, game: Game) -> None:
        self._game = game
        self.games = 0
        self.priorities: list[np.ndarray] = []

    def stats(self, stop: threading.Event | None = None) -> Any:
        self.games += 1
        return SimpleNamespace(games=self.games)

    def sample(
        self, size: int, stop: threading.Event, prepare: Callable[[Batch], Batch]
    ) -> Iterator[Batch]:
        while not stop.is_set():
            yield prepare(example_batch(self._game, size, np.random.default_rng(0)))

    def update_priorities(self, key: np.ndarray, priority: np.ndarray) -> None:
        self.priorities.append(priority)


def train(game: Game, folder: Path) -> tuple[Trainer, FakeReplay]:
    """A trainer in `folder`, after its last step."""
    trainer = Trainer(game, folder / "models", folder, seed=3)
    trainer.begin()
    replay = FakeReplay(game)
    trainer.run(replay, threading.Event())  # type: ignore[arg-type]
    trainer.end()
    return trainer, replay


def versions(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in (folder / "models").iterdir() if path.name.isdigit())


def checkpoints(folder: Path) -> set[str]:
    return {path.stem for path in (folder / "checkpoints").glob("training-*.index")}


def test_it_exports_at_first_now_and_then_and_at_its_end_and_goes_on_there(tmp_path: Path) -> None:
    settings = ("training.export_interval=4", "training.checkpoint_interval=3")
    trainer, replay = train(game_with(*settings, "training.max_steps=6"), tmp_path)
    assert trainer.step == 6
    assert versions(tmp_path) == [1, 4, 6]
    assert checkpoints(tmp_path) == {"training-4", "training-6"}
    assert replay.priorities == []  # nobody asked for them

    prioritised = "replay.priority_exponent=1.0"
    trainer, replay = train(game_with(*settings, "training.max_steps=8", prioritised), tmp_path)
    assert trainer.step == 8
    assert versions(tmp_path)[-1] == 8
    assert [priority.shape for priority in replay.priorities] == [(4,), (4,)]


def test_curves_and_settings_are_for_tensorboard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer_module, "LOG_INTERVAL", 2)
    train(game_with("training.max_steps=4", "training.learning_rate=0.25"), tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard"), {"tensors": 0})
    events.Reload()
    names = {"loss/total", "loss/reward", "loss/value", "loss/policy", "learning_rate"}
    assert names <= set(events.Tags()["tensors"])
    assert [event.step for event in events.Tensors("loss/total")] == [2, 4]
    text = events.Tensors("settings")[0].tensor_proto.string_val[0].decode()
    assert '"learning_rate": 0.25' in text


def test_without_room_for_a_checkpoint_training_goes_on_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = Trainer(
        game_with("training.max_steps=3", "training.checkpoint_interval=2"),
        tmp_path / "models",
        tmp_path,
        seed=0,
    )
    trainer.begin()

    def full(step: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(trainer._checkpoints, "save", full)
    trainer.run(FakeReplay(trainer._game), threading.Event())  # type: ignore[arg-type]
    assert trainer.step == 3
    assert "without a checkpoint of step 2: [Errno 28] No space left on device" in caplog.text
    monkeypatch.undo()
    trainer.end()
    assert checkpoints(tmp_path) == {"training-0", "training-3"}


def test_it_waits_for_as_many_games_as_it_was_told(tmp_path: Path) -> None:
    trainer = Trainer(game_with(), tmp_path / "models", tmp_path, seed=0)
    replay, stop = FakeReplay(trainer._game), threading.Event()
    assert trainer.await_games(replay, 2, stop)  # type: ignore[arg-type]
    assert replay.games == 2
    stop.set()
    assert not trainer.await_games(replay, 99, stop)  # type: ignore[arg-type]
