"""What is sampled: against brute force for every start, before and after eviction."""

import numpy as np
import pytest
from replay_games import make_config, make_game, make_games, return_by_hand

from muprover.config import Config
from muprover.replay import Batch, GameError, ReplayBuffer
from muprover.replay.priorities import SumTree

K = 3


def starts(games, num_unroll_steps=K):
    """(game, position) of each start, in the order of their keys."""
    found = []
    for game in games:
        for t in range(game.first, game.first + game.size):
            if game.terminated or t + num_unroll_steps <= len(game):
                found.append((game, t))
    return found


def check_sample(batch: Batch, b: int, game, t: int, config: Config) -> None:
    """Row b of the batch is position t of the game, and what followed, by hand."""
    for k in range(K + 1):
        inside = t + k < len(game)
        assert batch.mask[b, k] == inside
        policy = game.action_weights[t + k] if inside else np.zeros(3)
        assert np.array_equal(batch.target_policy[b, k], policy)
        if inside:
            training, players = config.training, config.game.num_players
            td_steps, discount = training.td_steps, training.discount
            value = return_by_hand(game, t + k, td_steps, discount, players)
        else:
            value = game.final_value if t + k == len(game) else 0.0
        assert batch.target_value[b, k] == pytest.approx(value, abs=1e-5)
    for k in range(K):
        inside = t + k < len(game)
        assert batch.target_reward[b, k] == (game.reward[t + k] if inside else 0)
        assert not inside or batch.actions[b, k] == game.action[t + k]
        assert 0 <= batch.actions[b, k] < 3


@pytest.mark.parametrize("num_players", [1, 2])
@pytest.mark.parametrize("td_steps", [1, 4, 20])
def test_every_start_is_sampled_and_right(num_players, td_steps):
    config = make_config(
        num_players=num_players, num_unroll_steps=K, td_steps=td_steps, discount=0.9
    )
    rng = np.random.default_rng(td_steps)
    games = make_games(config, [1, 2, 5, 9, 4], rng, exploratory=0.2)
    games += make_games(config, [1, 2, 3, 9], rng, terminated=False)
    buffer = ReplayBuffer(config)
    assert buffer.add(games) == len(games)
    batch = buffer.sample(2000, rng)
    all_starts = starts(games)
    assert set(batch.key.tolist()) == set(range(len(all_starts)))
    for b in range(200):
        game, t = all_starts[batch.key[b]]
        assert np.array_equal(batch.observation[b], game.observation[t])
        check_sample(batch, b, game, t, config)


def test_after_the_end_nothing_is_learned():
    config = make_config(num_unroll_steps=5, num_players=2)
    buffer = ReplayBuffer(config)
    buffer.add(make_game(config, 1, np.random.default_rng(0)))
    batch = buffer.sample(300, np.random.default_rng(0))
    assert batch.mask[0].tolist() == [1, 0, 0, 0, 0, 0]
    assert not batch.target_value[:, 1:].any()
    assert not batch.target_reward[:, 1:].any()
    assert not batch.target_policy[:, 1:].any()
    drawn = np.bincount(batch.actions[:, 1:].ravel(), minlength=3)
    assert drawn.min() > 300  # of 1200 actions past the end: all three, anew for each sample


def test_no_unroll_passes_the_end_of_a_truncated_game():
    """What would follow is unknown: CartPole's reward at step 501 is not 0."""
    config = make_config(num_unroll_steps=5)
    game = make_game(config, 20, np.random.default_rng(0), terminated=False)
    buffer = ReplayBuffer(config)
    buffer.add(game)
    batch = buffer.sample(500, np.random.default_rng(0))
    assert batch.key.max() == 15  # its unroll ends at the final state, of which the value is known
    last = np.argmax(batch.key)
    assert batch.target_value[last, 5] == np.float32(game.final_value)
    assert batch.mask[:, :5].all()


def test_of_a_game_cut_off_before_an_unroll_is_over_nothing_is_learned(caplog):
    """What its first position's unroll would teach, that all is over and worth 0, is not so."""
    config = make_config(
        num_unroll_steps=5, max_size=50, min_size_to_sample=20, priority_exponent=1.0
    )
    rng = np.random.default_rng(0)
    buffer = ReplayBuffer(config)
    buffer.add(make_games(config, [4] * 4, rng, terminated=False))
    assert "cut off" not in caplog.text  # the usual ones may be still to come
    for _ in range(20):
        buffer.add(make_game(config, 4, rng, terminated=False))
    assert len(buffer) == 48
    assert not buffer.can_sample
    with pytest.raises(ValueError, match="there is nothing to sample"):
        buffer.sample(4, rng)
    told = "20 positions are stored, but none can be sampled: all games were cut off before move 5"
    assert caplog.text.count("cut off") == caplog.text.count(told) == 1
    buffer.add(make_game(config, 5, rng, terminated=False))
    batch = buffer.sample(10, rng)
    assert set(batch.key.tolist()) == {0}
    assert batch.mask[:, :5].all()


def test_stacks_at_the_start_of_a_game():
    config = make_config(
        observation_shape=(2, 1), num_stacked_frames=3, stack_actions=True, num_unroll_steps=1
    )
    frames = np.array([[[1], [2]], [[3], [4]], [[5], [6]], [[7], [8]]], np.float32)
    action = np.array([2, 0, 1, 1], np.int32)
    legal = np.ones((4, 3), np.bool_)
    rng = np.random.default_rng(0)
    game = make_game(config, 4, rng, observation=frames, action=action, legal_actions=legal)
    other = make_game(config, 6, rng)  # must not show in the stacks
    buffer = ReplayBuffer(config)
    buffer.add([other, game, other])
    batch = buffer.sample(300, rng)
    seen = {int(key) - 6: batch.observation[b].tolist() for b, key in enumerate(batch.key)}
    # newest frame first, then the action that led to it, then the one before, each one-hot
    assert seen[0] == [[1, 0, 0, 0, 0, 0, 0, 0, 0], [2, 0, 0, 0, 0, 0, 0, 0, 0]]
    assert seen[1] == [[3, 1, 0, 0, 0, 1, 0, 0, 0], [4, 2, 0, 0, 0, 1, 0, 0, 0]]
    assert seen[2] == [[5, 3, 1, 1, 0, 0, 0, 0, 1], [6, 4, 2, 1, 0, 0, 0, 0, 1]]
    assert seen[3] == [[7, 5, 3, 0, 1, 0, 1, 0, 0], [8, 6, 4, 0, 1, 0, 1, 0, 0]]


def test_large_observations_keep_their_type():
    config = make_config(observation_shape=(4, 4, 2), observation_dtype="uint8")
    buffer = ReplayBuffer(config)
    game = make_game(config, 5, np.random.default_rng(0))
    buffer.add(game)
    batch = buffer.sample(4, np.random.default_rng(0))
    assert batch.observation.dtype == np.uint8
    assert batch.observation.shape == (4, 4, 4, 2)


def test_the_window_slides_and_memory_stays_flat():
    config = make_config(max_size=100, num_unroll_steps=K, td_steps=2)
    rng = np.random.default_rng(0)
    buffer = ReplayBuffer(config)
    stored: list = []
    sizes = []
    for _ in range(300):
        game = make_game(config, int(rng.integers(1, 12)), rng)
        buffer.add(game)
        stored.append(game)
        while sum(len(g) for g in stored) > 100:
            stored.pop(0)
        assert len(buffer) == sum(len(g) for g in stored) <= 100
        assert buffer.stats().games == len(stored)
        sizes.append(buffer.nbytes)
    assert sizes[-1] == sizes[100]
    batch = buffer.sample(300, rng)
    first = batch.key.min()
    window = starts(stored)
    for b in range(100):
        game, t = window[batch.key[b] - first]
        assert np.array_equal(batch.observation[b], game.observation[t])
        check_sample(batch, b, game, t, config)


def test_later_writes_do_not_change_the_past():
    config = make_config()
    game = make_game(config, 6, np.random.default_rng(0))
    buffer = ReplayBuffer(config)
    buffer.add(game)
    before = buffer.sample(16, np.random.default_rng(1))
    for array in (game.observation, game.reward, game.action_weights, game.root_value):
        array[:] = 77
    batch = buffer.sample(16, np.random.default_rng(1))
    for one, other in zip(before, batch, strict=True):
        assert np.array_equal(one, other)
    for array in batch:
        array[:] = 5
    again = buffer.sample(16, np.random.default_rng(1))
    for one, other in zip(before, again, strict=True):
        assert np.array_equal(one, other)


def test_a_game_is_stored_once():
    config = make_config()
    game = make_game(config, 5, np.random.default_rng(0))
    buffer = ReplayBuffer(config)
    assert buffer.add(game)
    assert not buffer.add(game)
    assert buffer.add([game, game]) == 0
    assert len(buffer) == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reward": np.zeros(4, np.float32)}, r"reward is \[4\] float32, must be \[5\] float32"),
        ({"reward": np.zeros(5)}, r"reward is \[5\] float64, must be \[5\] float32"),
        ({"observation": np.zeros((5, 3), np.float32)}, r"observation is \[5, 3\]"),
        ({"root_value": np.full(5, np.nan, np.float32)}, "root_value is not finite"),
        ({"final_value": float("inf"), "terminated": False}, "final_value is not finite"),
        ({"final_value": 0.5}, "terminated, so its final_value must be 0"),
        ({"action": np.full(5, 3, np.int32)}, "an action is not among the 3"),
        ({"action": np.full(5, -1, np.int32)}, "an action is not among the 3"),
        ({"to_play": np.ones(5, np.int32)}, "to_play must be below 1"),
        ({"legal_actions": np.zeros((5, 3), np.bool_)}, "not legal by its own mask"),
        ({"action_weights": np.zeros((5, 3), np.float32)}, "must"),
        ({"first": 1}, r"positions \[1, 6\) are no part of its 5 moves"),
        ({"size": 0}, r"positions \[0, 0\) are no part"),
        ({"game_id": -1}, "64 bits"),
    ],
)
def test_wrong_games_are_refused_by_name(change, message):
    config = make_config()
    rng = np.random.default_rng(0)
    buffer = ReplayBuffer(config)
    wrong = make_game(config, 5, rng, **change)
    with pytest.raises(GameError, match=message):
        buffer.add([make_game(config, 4, rng), wrong])
    assert len(buffer) == 0  # nothing of it


def test_players_take_turns():
    config = make_config(num_players=2)
    rng = np.random.default_rng(0)
    twice = make_game(config, 3, rng, to_play=np.array([0, 1, 1], np.int32))
    buffer = ReplayBuffer(config)
    with pytest.raises(GameError, match="the players must take turns"):
        buffer.add(twice)
    # either may begin, and the next game with whoever ended the last
    buffer.add(
        [
            make_game(config, n, rng, to_play=np.arange(1, n + 1, dtype=np.int32) % 2)
            for n in (1, 3, 2)
        ]
    )


def test_a_game_larger_than_the_window_is_refused():
    config = make_config(max_size=10)
    with pytest.raises(GameError, match=r"11 positions are more than replay\.max_size, 10"):
        ReplayBuffer(config).add(make_game(config, 11, np.random.default_rng(0)))


def test_an_empty_buffer_says_so():
    with pytest.raises(ValueError, match="no batch of 4: there is nothing to sample"):
        ReplayBuffer(make_config()).sample(4, np.random.default_rng(0))


def test_equal_seeds_draw_equal_batches():
    config = make_config()
    buffer = ReplayBuffer(config)
    buffer.add(make_games(config, [5] * 20, np.random.default_rng(0)))
    one, other = (next(buffer.batches(8, np.random.default_rng(5))) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def prioritised(**settings):
    config = make_config(priority_exponent=1.0, importance_exponent=1.0, **settings)
    buffer = ReplayBuffer(config)
    buffer.add(make_games(config, [4, 4], np.random.default_rng(0)))
    return config, buffer


def test_priorities_set_the_odds_and_the_weights_undo_them():
    _, buffer = prioritised()
    buffer.update_priorities(np.arange(8), np.array([1, 1, 1, 1, 1, 1, 2, 8.0]))
    batch = buffer.sample(16_000, np.random.default_rng(0))
    share = np.bincount(batch.key, minlength=8) / 16_000
    assert np.allclose(share, np.array([1, 1, 1, 1, 1, 1, 2, 8]) / 16, atol=0.015)
    weights = [float(batch.weight[batch.key == key][0]) for key in (0, 6, 7)]
    assert weights == pytest.approx([1, 1 / 2, 1 / 8])


def test_priorities_of_what_is_gone_change_nothing():
    config, buffer = prioritised(max_size=8)
    batch = buffer.sample(64, np.random.default_rng(0))
    old = np.unique(batch.key)
    buffer.add(make_games(config, [4, 4], np.random.default_rng(1)))  # evicts all of the first
    before = buffer.sample(200, np.random.default_rng(2))
    assert buffer.update_priorities(old, np.full(len(old), 1e6)) == 0
    after = buffer.sample(200, np.random.default_rng(2))
    assert np.array_equal(before.key, after.key)
    assert np.array_equal(before.weight, after.weight)
    assert before.key.min() == 8  # keys are never used again


def test_without_any_error_all_stay_sampleable():
    _, buffer = prioritised()
    buffer.update_priorities(np.arange(8), np.zeros(8))
    batch = buffer.sample(500, np.random.default_rng(0))
    assert set(batch.key.tolist()) == set(range(8))
    assert np.array_equal(batch.weight, np.ones(500))


@pytest.mark.parametrize("priority", [np.nan, np.inf, -1.0])
def test_senseless_priorities_are_refused(priority):
    _, buffer = prioritised()
    with pytest.raises(ValueError, match="finite, not negative"):
        buffer.update_priorities(np.arange(2), np.array([1.0, priority]))
    with pytest.raises(ValueError, match=r"given \[2\] keys and \[1\] priorities"):
        buffer.update_priorities(np.arange(2), np.array([1.0]))


def test_new_positions_are_sampled_by_how_wrong_the_search_was():
    config = make_config(priority_exponent=1.0, td_steps=1, num_unroll_steps=1)
    game = make_game(config, 2, np.random.default_rng(0))
    game.reward[:] = [0, 1]
    game.root_value[:] = [0.25, 0.25]  # targets 0.25 and 1
    buffer = ReplayBuffer(config)
    buffer.add(game)
    batch = buffer.sample(1000, np.random.default_rng(0))
    assert np.mean(batch.key == 1) > 0.99


@pytest.mark.parametrize("capacity", [1, 2, 7, 64, 1000])
def test_the_sum_tree_draws_what_it_holds(capacity):
    rng = np.random.default_rng(capacity)
    tree = SumTree(capacity)
    slots = np.flatnonzero(rng.random(capacity) < 0.5) if capacity > 2 else np.array([0])
    weights = rng.random(len(slots)) * 10.0 ** rng.integers(-12, 12, len(slots))
    tree.update(slots, weights)
    assert tree.total == pytest.approx(weights.sum())
    assert set(tree.draw(1000, rng).tolist()) <= set(slots.tolist())
    tree.update(slots, np.zeros(len(slots)))
    tree.update(slots[[0, 0]], np.array([5.0, 2.0]))
    assert tree.total == 2  # the last of two counts
    assert set(tree.draw(10, rng).tolist()) == {slots[0]}


def test_statistics_of_games():
    config = make_config(num_players=2)
    rng = np.random.default_rng(0)
    zeros = np.zeros(4, np.float32)
    win = np.array([0, 0, 0, 1], np.float32)  # the fourth move is player 1's
    games = [make_game(config, 4, rng, reward=zeros), make_game(config, 4, rng, reward=win)]
    buffer = ReplayBuffer(config)
    buffer.add(
        [
            *games,
            make_game(
                config,
                4,
                rng,
                reward=win,
                action=games[1].action,
                legal_actions=games[1].legal_actions,
                action_weights=games[1].action_weights,
            ),
        ]
    )
    stats = buffer.stats()
    assert (stats.games, stats.positions, stats.inserted_games) == (3, 12, 3)
    assert stats.mean_game_length == 4
    assert stats.unique_games_ratio == pytest.approx(2 / 3)
    assert stats.newest_network_version == 3
    assert buffer.statistics.outcomes == {
        (0, "draw"): 1,
        (1, "draw"): 1,
        (0, "loss"): 2,
        (1, "win"): 2,
    }
