"""Checkpoints: training goes on from them as if nothing had happened, or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from muprover.config import SettingsError
from muprover.game import Game, load_game
from muprover.model.checkpoints import Checkpoints
from muprover.model.training import Training, example_batch

TINY = [
    *("network.hidden_size=8", "network.layer_size=8", "training.xla=false"),
    "training.ema_decay=0",
    *("training.batch_size=4", "training.num_unroll_steps=1"),
]


def game_with(*overrides: str) -> Game:
    return load_game("tictactoe", overrides=[*TINY, *overrides])


def at_step(game: Game, step: int) -> Training:
    """As if it had made so many steps."""
    training = Training(game, 0)
    training._optimizer.iterations.assign(step)
    return training


def train(training: Training, game: Game, steps: range) -> None:
    for step in steps:
        training.update(example_batch(game, 4, np.random.default_rng(step)))


def save(training: Training, folder: Path) -> None:
    Checkpoints(training, folder).save()


def restore(game: Game, folder: Path) -> Training:
    """A training that has nothing but the folder to go by."""
    training = Training(game, 99)
    assert Checkpoints(training, folder).restore_newest()
    return training


def steps_in(folder: Path) -> set[int]:
    return {int(path.name.split("-")[1].split(".")[0]) for path in folder.glob("training-*")}


def assert_same(one: list[np.ndarray], other: list[np.ndarray]) -> None:
    for mine, theirs in zip(one, other, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def damage(path: Path, left: int | None = None) -> None:
    """Zeros, or what is left of a file."""
    data = path.read_bytes()
    path.write_bytes(bytes(len(data)) if left is None else data[:left])


@pytest.mark.parametrize("ema_decay", [0, 0.9])
def test_a_restored_training_continues_as_if_nothing_had_happened(tmp_path: Path, ema_decay: float):
    settings = f"training.ema_decay={ema_decay}", "training.learning_rate_schedule=cosine"
    game = game_with(*settings)
    straight = Training(game, 0)
    train(straight, game, range(2))
    save(straight, tmp_path)
    train(straight, game, range(2, 4))
    resumed = restore(game, tmp_path)
    assert resumed.step == 2
    train(resumed, game, range(2, 4))
    assert resumed.learning_rate == straight.learning_rate
    assert_same(resumed.network.weights, straight.network.weights)
    assert_same(resumed.served_weights, straight.served_weights)


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path: Path):
    game = game_with()
    for step in (1, 2):
        save(at_step(game, step), tmp_path)
    [newest] = tmp_path.glob("training-2.data-*")
    damage(newest)
    assert restore(game, tmp_path).step == 1
    damage(newest, left=9)
    assert restore(game, tmp_path).step == 1
    damage(tmp_path / "training-2.index")
    resumed = Training(game, 99)
    checkpoints = Checkpoints(resumed, tmp_path)
    assert checkpoints.restore_newest() == str(tmp_path / "training-1")
    assert str(tf.train.latest_checkpoint(str(tmp_path))).endswith("training-1")
    resumed._optimizer.iterations.assign(3)
    checkpoints.save()
    assert steps_in(tmp_path) == {1, 3}  # what cannot be read is not kept in place of another


def test_the_newest_are_kept_and_listed(tmp_path: Path):
    training = Training(game_with(), 0)
    for step in (9, 10, 11):
        training._optimizer.iterations.assign(step)
        save(training, tmp_path)
    assert steps_in(tmp_path) == {10, 11}
    listed = tf.train.get_checkpoint_state(str(tmp_path)).all_model_checkpoint_paths
    assert [Path(path).name for path in listed] == ["training-10", "training-11"]
    assert str(tf.train.latest_checkpoint(str(tmp_path))).endswith("training-11")


def test_where_no_checkpoint_is_sound_nothing_begins_anew(tmp_path: Path):
    save(at_step(game_with(), 1), tmp_path)
    damage(tmp_path / "training-1.index")
    with pytest.raises(SettingsError, match=r"no checkpoint in .* move them away to begin anew"):
        restore(game_with(), tmp_path)


def test_a_first_checkpoint_that_was_not_written_to_its_end_is_none(tmp_path: Path):
    assert Checkpoints(Training(game_with(), 0), tmp_path).restore_newest() is None
    save(at_step(game_with(), 1), tmp_path)
    damage(tmp_path / "training-1.index")
    (tmp_path / "checkpoint").unlink()  # it comes last
    assert Checkpoints(Training(game_with(), 0), tmp_path).restore_newest() is None


@pytest.mark.parametrize(
    ("setting", "difference"),
    [
        ("network.layer_size=16", r"network/0 is \[18, 8\] there and \[18, 16\] here"),
        ("network.num_layers=2", r"network/\d+ is .* there and .* here; .*; and \d+ more"),
        ("training.optimizer=sgd", r"optimizer/\d+ is .* there and .* here"),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused_in_words(
    tmp_path: Path, setting: str, difference: str
):
    save(at_step(game_with(), 1), tmp_path)
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(SettingsError, match=f"training-1 was made with another .*{difference}"):
        restore(game_with(setting), tmp_path)
    assert sorted(os.listdir(tmp_path)) == before


def test_averaged_weights_begin_as_the_latest_ones(tmp_path: Path):
    training = at_step(game_with(), 3)
    save(training, tmp_path)
    resumed = restore(game_with("training.ema_decay=0.9"), tmp_path)
    assert_same(resumed.network.weights, training.network.weights)
    assert_same(resumed.served_weights, training.network.weights)


def test_without_an_average_the_latest_weights_are_gone_on_with(tmp_path: Path):
    training = at_step(game_with("training.ema_decay=0.9"), 3)
    for average in training.served_weights:
        average.assign_add(tf.ones_like(average))
    save(training, tmp_path)
    resumed = restore(game_with(), tmp_path)
    assert_same(resumed.network.weights, training.network.weights)


def test_checkpoints_are_found_whatever_their_list_says(tmp_path: Path):
    save(at_step(game_with(), 1), tmp_path)
    (tmp_path / "checkpoint").write_bytes(b"\xff\x00 model_checkpoint_path: 7")
    assert restore(game_with(), tmp_path).step == 1
    save(at_step(game_with(), 2), tmp_path)
    assert str(tf.train.latest_checkpoint(str(tmp_path))).endswith("training-2")


def test_what_is_saved_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    synced: list[str] = []
    fsync = os.fsync

    def note(descriptor: int) -> None:
        synced.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    save(at_step(game_with(), 1), tmp_path)
    assert {*os.listdir(tmp_path), tmp_path.name} <= set(synced)
