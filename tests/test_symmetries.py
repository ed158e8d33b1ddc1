"""Symmetries turn boards and moves together."""

import numpy as np
import pytest

from muprover.evaluation.players import evaluation_inputs
from muprover.game import load_game
from muprover.policy import PolicyOutput, SearchInputs
from muprover.replay import Batch
from muprover.symmetries import Symmetries, symmetric_policy

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


class ByTheFirstSquares:
    """A policy that likes what it sees: each column or square as much as it has marks; values the
    number of searches before. Counts what it is asked."""

    def __init__(self) -> None:
        self.asked: list[np.ndarray] = []

    def __call__(self, inputs, details=False):
        self.asked.append(inputs.observation)
        marks = inputs.observation[..., 0]
        liked = marks.reshape(len(marks), -1) if marks.shape[1] == 3 else marks.sum(1)
        skewed = liked + np.linspace(0, 0.1, liked.shape[1])  # not symmetric
        weights = np.where(inputs.legal_actions, skewed, 0).astype(np.float32)
        best = weights.argmax(1).astype(np.int32)
        return PolicyOutput(
            action=best,
            action_weights=weights / weights.sum(1, keepdims=True),
            value=np.full(len(best), len(self.asked), np.float32),
            visit_counts=(10 * weights).astype(np.int32) if details else None,
            q_values=weights if details else None,
            prior=weights if details else None,
            principal_variation=np.stack([best, best, -np.ones_like(best)], 1) if details else None,
            version=7,
        )


def positions(game, marked) -> SearchInputs:
    """A position for each of `marked`: the square or column that has a mark."""
    config = game.config.game
    n, actions = len(marked), config.num_actions
    batch = board_batch(game, n)
    observation = np.zeros_like(batch.observation)
    for i, action in enumerate(marked):
        if observation.shape[1] == 3:
            observation[i, action // 3, action % 3, 0] = 1
        else:
            observation[i, 0, action, 0] = 1
    legal = np.ones((n, actions), bool)
    legal[:, -1] = False
    return evaluation_inputs(observation, legal, 8)


@pytest.mark.parametrize(("name", "count"), [("tictactoe", 8), ("connect_four", 2)])
def test_an_averaged_search_asks_each_form_and_answers_in_the_positions_own_actions(name, count):
    game, policy = load_game(name), ByTheFirstSquares()
    inputs = positions(game, marked=[0, 1, 2, 3])
    output = symmetric_policy(policy, game.config.game)(inputs, details=True)
    assert len({asked.tobytes() for asked in policy.asked}) == len(policy.asked) == count
    assert output.action.tolist() == [0, 1, 2, 3]
    assert output.principal_variation[:, :2].tolist() == [[a, a] for a in range(4)]
    assert (output.visit_counts.argmax(1) == output.action).all()
    assert (output.prior.argmax(1) == output.action).all()
    assert output.q_values[0, 0] == pytest.approx(1.0, abs=0.1)
    assert output.value.tolist() == [(1 + count) / 2] * 4
    assert output.version == 7
    assert np.allclose(output.action_weights.sum(1), 1, atol=1e-6)
    assert (output.action_weights[:, -1] == 0).all()  # it is not legal


def test_an_averaged_search_treats_mirrored_positions_alike():
    game = load_game("connect_four")
    search = symmetric_policy(ByTheFirstSquares(), game.config.game)
    inputs = positions(game, marked=[1])
    inputs.legal_actions[:] = True
    mirrored = inputs._replace(observation=inputs.observation[:, :, ::-1])
    assert np.allclose(
        search(inputs).action_weights, search(mirrored).action_weights[:, ::-1], atol=1e-7
    )
    alone = ByTheFirstSquares()
    assert not np.allclose(
        alone(inputs).action_weights, alone(mirrored).action_weights[:, ::-1], atol=1e-3
    )


def test_without_symmetries_a_search_stays_as_it_is():
    policy = ByTheFirstSquares()
    assert symmetric_policy(policy, load_game("cartpole").config.game) is policy
