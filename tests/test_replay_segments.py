"""Games cut into segments teach exactly what whole games do."""

from dataclasses import replace

import numpy as np
import pytest
from replay_games import make_config, make_game, same_game

from muprover.replay import ReplayBuffer
from muprover.segments import GameRecorders, Moves

STACKED = {"observation_shape": (2, 1), "num_stacked_frames": 3, "stack_actions": True}


ROW = np.array([1])  # of three games that are recorded


def record(config, game, version=0):
    """The game played again into recorders; answers its segments, and when each was ready."""
    recorders = GameRecorders(config, 3, game.agent)
    recorders.begin(ROW)
    segments, ready = [], []
    for t in range(len(game)):
        move = Moves(*(getattr(game, name)[t : t + 1] for name in Moves._fields))
        for row, segment in recorders.add(ROW, move, version):
            assert row == ROW[0]
            segments.append(segment)
            ready.append(t)
        assert recorders.num_moves(ROW[0]) == t + 1
    segments += recorders.finish(ROW[0], game.final_value, game.terminated, version)
    return segments, ready


def examples(config, games):
    """By observation, what is learned of each position; actions past the end left out."""
    buffer = ReplayBuffer(config)
    buffer.add(games)
    batch = buffer.sample(3000, np.random.default_rng(0))
    found = {}
    for b in range(3000):
        actions = np.where(batch.mask[b, :-1] > 0, batch.actions[b], -1)
        rest = (batch.target_reward[b], batch.target_value[b], batch.target_policy[b])
        found[batch.observation[b].tobytes()] = np.concatenate(
            [actions, *(array.ravel() for array in rest), batch.mask[b]]
        )
    return found


@pytest.mark.parametrize(
    ("length", "terminated"),
    [(1, True), *((n, ends) for n in (9, 10, 11, 17, 18, 27, 63) for ends in (True, False))],
)
def test_segments_teach_what_the_whole_game_does(length, terminated):
    options = {"num_unroll_steps": 3, "td_steps": 5, "discount": 0.9, "num_players": 2, **STACKED}
    config = make_config(segment_length=10, **options)
    game = make_game(
        config, length, np.random.default_rng(length), terminated=terminated, exploratory=0.1
    )
    segments, _ = record(config, game)
    assert [segment.segment for segment in segments] == list(range(len(segments)))
    assert sum(segment.size for segment in segments) == length
    whole, cut = examples(config, [game]), examples(config, segments)
    assert whole.keys() == cut.keys()
    for key, expected in whole.items():
        assert np.allclose(cut[key], expected, atol=1e-5)


def test_a_short_game_is_one_segment_and_whole():
    config = make_config(segment_length=10)
    game = make_game(config, 10, np.random.default_rng(0))
    (segment,), _ = record(config, game, version=3)
    assert same_game(replace(segment, game_id=game.game_id), game)  # which is a new one


def test_a_segment_is_ready_as_soon_as_its_targets_are_known():
    config = make_config(segment_length=10, num_unroll_steps=3, td_steps=5)
    _, ready = record(config, make_game(config, 40, np.random.default_rng(0)))
    assert ready == [17, 27, 37]  # ten positions, an unroll of 3 and 5 rewards: the 18th move


def test_a_game_broken_off_keeps_what_was_played():
    config = make_config(segment_length=10)
    game = make_game(config, 4, np.random.default_rng(0), terminated=False, final_value=0.25)
    (segment,), _ = record(config, game)
    assert (segment.final_value, segment.terminated, segment.size) == (0.25, False, 4)
    assert GameRecorders(config, 3).finish(1, 0.5, False) == []


def test_recorders_copy_and_forget():
    config = make_config(segment_length=10, num_unroll_steps=1, td_steps=1)
    recorders = GameRecorders(config, 3)
    recorders.begin(ROW)
    frame, zero = np.zeros((1, 2), np.float32), np.zeros(1, np.int32)
    legal, weights = np.ones((1, 3), np.bool_), np.full((1, 3), 1 / 3, np.float32)
    segments = []
    for t in range(500):
        frame[:] = t
        move = Moves(frame, zero, zero, zero, legal, weights, zero, np.zeros(1, np.bool_))
        segments += [segment for _, segment in recorders.add(ROW, move)]
    assert [segment.observation[0, 0] for segment in segments] == list(range(0, 490, 10))
    assert recorders._columns["action"].shape[1] <= 64  # moves held, of 500
