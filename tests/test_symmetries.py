"""Symmetries turn boards and moves together."""

import numpy as np
import pytest

from muprover.game import load_game
from muprover.replay import Batch
from muprover.symmetries import Symmetries

RNG = np.random.default_rng(0)


def board_batch(game, size: int) -> Batch:
    """Observations whose first plane marks the square of the first action, and nothing else."""
    shape, actions = game.config.game.network_observation_shape, game.config.game.num_actions
    move = RNG.integers(actions, size=(size, 3)).astype(np.int32)
    observation = np.zeros((size, *shape), np.float32)
    for i in range(size):
        if shape[:2] == (3, 3):
            observation[i, move[i, 0] // 3, move[i, 0] % 3, 0] = 1
        else:
            observation[i, :, move[i, 0], 0] = 1
    policy = np.eye(actions, dtype=np.float32)[np.concatenate([move, move[:, :1]], axis=1)]
    zeros = np.zeros((size, 4), np.float32)
    weight, key = np.ones(size, np.float32), np.arange(size)
    return Batch(observation, move, zeros[:, :3], zeros, policy, zeros + 1, weight, key)


@pytest.mark.parametrize(("name", "count"), [("tictactoe", 8), ("connect_four", 2)])
def test_marks_actions_and_policies_stay_together(name, count):
    game = load_game(name)
    symmetries = Symmetries(game.config.game)
    assert symmetries.count == count
    batch = board_batch(game, 64)
    turned = symmetries.draw(batch, RNG)
    assert not np.array_equal(turned.actions, batch.actions)
    for i in range(64):
        action = turned.actions[i, 0]
        plane = turned.observation[i, ..., 0]
        marked = plane.reshape(-1)[action] if name == "tictactoe" else plane[:, action].all()
        assert marked == 1
        assert plane.sum() == batch.observation[i, ..., 0].sum()
    assert (turned.target_policy[:, :3].argmax(-1) == turned.actions).all()


def test_the_eight_of_a_square_are_different():
    symmetries = Symmetries(load_game("tictactoe").config.game)
    batch = board_batch(load_game("tictactoe"), 1)
    batch = batch._replace(actions=np.array([[0, 1, 5]], np.int32))
    turned = {
        tuple(symmetries.apply(batch, np.array([g])).actions[0]) for g in range(symmetries.count)
    }
    assert len(turned) == 8
    assert (2, 1, 3) in turned  # mirrored


def test_the_first_is_the_identity():
    for name in ("tictactoe", "connect_four", "cartpole"):
        game = load_game(name)
        if game.config.game.symmetries == "none":
            continue
        batch = board_batch(game, 4)
        same = Symmetries(game.config.game).apply(batch, np.zeros(4, np.int64))
        for mine, theirs in zip(batch, same, strict=True):
            np.testing.assert_array_equal(mine, theirs)


def test_planes_of_stacked_actions_are_turned_too():
    game = load_game(
        "tictactoe", overrides=["game.num_stacked_frames=2", "game.stack_actions=true"]
    )
    symmetries = Symmetries(game.config.game)
    observation = np.zeros((1, 3, 3, 13), np.float32)  # 2 frames of 2 planes, 9 of the action
    observation[..., 4 + 0] = 1  # the last action was 0, a corner
    batch = board_batch(load_game("tictactoe"), 1)._replace(observation=observation)
    corners = {
        int(symmetries.apply(batch, np.array([g])).observation[0, 1, 1, 4:].argmax())
        for g in range(8)
    }
    assert corners == {0, 2, 6, 8}
