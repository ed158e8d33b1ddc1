"""The trainer by itself: what it leaves behind, when it ends, and how it goes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from replay_games import ReplayThread, make_games
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from muprover.game import Game, load_game
from muprover.model import trainer as trainer_module
from muprover.model.trainer import Trainer, await_games, update_priorities
from muprover.model.training import example_batch
from muprover.replay import Batch, ReplayStats
from muprover.services.client import ServiceError
from muprover.services.remote_replay import RemoteReplayBuffer

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
        self.failure: ServiceError | None = None  # of new priorities

    def stats(self, stop: threading.Event | None = None) -> ReplayStats:
        self.games += 1
        return ReplayStats(games=self.games)

    def sample(
        self, size: int, stop: threading.Event, prepare: Callable[[Batch], Batch]
    ) -> Iterator[Batch]:
        while not stop.is_set():
            yield prepare(example_batch(self._game, size, np.random.default_rng(0)))

    def update_priorities(
        self, key: np.ndarray, priority: np.ndarray, stop: threading.Event
    ) -> None:
        assert not stop.is_set()
        if self.failure:
            raise self.failure
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


def test_versions_go_up_though_training_begins_again_behind_them(tmp_path: Path) -> None:
    """The network server serves the highest number: lower ones would never be played with."""
    settings = ("training.export_interval=2", "training.checkpoint_interval=2")
    train(game_with(*settings, "training.max_steps=4"), tmp_path)
    assert versions(tmp_path) == [1, 2, 4]
    (tmp_path / "models" / "4").rename(tmp_path / "models" / "1000")
    trainer, _ = train(game_with(*settings, "training.max_steps=8"), tmp_path)
    assert trainer.step == 8
    assert versions(tmp_path) == [2, 1000, 1001, 1002, 1003]  # of steps 4, 6 and 8


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

    def full() -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(trainer._checkpoints, "save", full)
    trainer.run(FakeReplay(trainer._game), threading.Event())  # type: ignore[arg-type]
    assert trainer.step == 3
    assert "without a checkpoint of step 2: [Errno 28] No space left on device" in caplog.text
    monkeypatch.undo()
    trainer.end()
    assert checkpoints(tmp_path) == {"training-0", "training-3"}


def test_priorities_that_cannot_be_sent_are_dropped_and_training_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    game = game_with("training.max_steps=2", "replay.priority_exponent=1.0")
    trainer = Trainer(game, tmp_path / "models", tmp_path, seed=0)
    trainer.begin()
    replay = FakeReplay(game)
    replay.failure = ServiceError(grpc.StatusCode.UNAVAILABLE, "replay is away")
    trainer.run(replay, threading.Event())  # type: ignore[arg-type]
    assert trainer.step == 2
    trainer.end()
    assert caplog.text.count("4 new priorities are lost: replay is away") == 2
    replay.failure = ServiceError(grpc.StatusCode.INVALID_ARGUMENT, "no such key")
    with pytest.raises(ServiceError, match="no such key"):
        update_priorities(replay, np.zeros(4), np.zeros(4), threading.Event())  # type: ignore[arg-type]


def test_it_waits_for_as_many_games_as_it_was_told() -> None:
    game, stop = game_with(), threading.Event()
    replay = FakeReplay(game)
    assert await_games(replay, 2, game.config, stop)  # type: ignore[arg-type]
    assert replay.games == 2
    stop.set()
    assert not await_games(replay, 99, game.config, stop)  # type: ignore[arg-type]


def test_it_does_not_wait_for_games_that_the_rate_limit_never_lets_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(trainer_module, "STANDSTILL_SECONDS", 0.6)
    rng = np.random.default_rng(0)
    with ReplayThread(tmp_path, samples_per_insert=1.0, min_size_to_sample=20) as server:
        replay = RemoteReplayBuffer(server.address, server.config)
        replay.add(make_games(server.config, [5] * 5, rng))
        assert replay.admit("agent")  # 25 positions, of 28 that the tolerance allows
        stop, answers = threading.Event(), []
        wait = lambda: answers.append(await_games(replay, 2000, server.config, stop))  # noqa: E731
        waiting = threading.Thread(target=wait)
        waiting.start()
        time.sleep(2)
        assert not answers  # more may come
        replay.add(make_games(server.config, [5], rng))
        assert not replay.admit("agent", 0.1)
        waiting.join(20)
        assert answers == [True]
        replay.close()
    assert "the rate limit lets in no more games than 6 of the 2000 of --min-games" in caplog.text


def test_it_does_not_wait_for_more_games_than_the_window_holds(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with ReplayThread(tmp_path, max_size=20, segment_length=5) as server:
        replay = RemoteReplayBuffer(server.address, server.config)
        replay.add(make_games(server.config, [5] * 8, np.random.default_rng(0)))
        assert await_games(replay, 8, server.config, threading.Event())
        replay.close()
    assert "20 positions, holds no more than 4 of the 8 games of --min-games" in caplog.text
