"""Value targets: against hand-worked games, a brute force over players, and rlax."""

import importlib
import importlib.util
import sys
import types

import numpy as np
import pytest
from replay_games import make_config, make_game, return_by_hand

from muprover.targets import n_step_returns


def returns(game, td_steps, discount, players=2):
    """Of every position, with the signed discount that the number of players asks for."""
    signed = -discount if players == 2 else discount
    return n_step_returns(
        np.append(game.reward, 0),
        np.append(game.root_value, game.final_value),
        signed,
        td_steps,
        stop=np.append(game.exploratory, False),
    )[:-1]


def board_game(length: int, last_reward: float):
    """A game of two in which only the last move, by whoever made it, is rewarded."""
    reward = np.zeros(length, np.float32)
    reward[-1] = last_reward
    config = make_config(num_players=2)
    return make_game(config, length, np.random.default_rng(0), reward=reward)


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (5, [1, -1, 1, -1, 1]),  # player 0 wins with the fifth move
        (6, [-1, 1, -1, 1, -1, 1]),  # player 1 with the sixth
        (7, [1, -1, 1, -1, 1, -1, 1]),
    ],
)
def test_who_wins_is_worth_1_at_each_of_their_turns(length, expected):
    assert returns(board_game(length, 1), td_steps=9, discount=1.0).tolist() == expected


def test_a_draw_is_worth_0_for_both_seats():
    assert not returns(board_game(9, 0), td_steps=9, discount=1.0).any()


def test_two_steps_of_two_players_by_hand():
    game = board_game(3, 1.0)
    game.root_value[:] = [0.1, 0.2, 0.4]
    # t = 0: two moves without reward, then 0.4 for the same player; t = 1: the other wins
    assert np.allclose(returns(game, 2, 0.5), [0.25 * 0.4, -0.5, 1.0])


@pytest.mark.parametrize("num_players", [1, 2])
@pytest.mark.parametrize("terminated", [True, False])
@pytest.mark.parametrize("exploratory", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("td_steps", [1, 2, 3, 7, 8, 9, 50])
def test_every_start_equals_brute_force(num_players, terminated, exploratory, td_steps):
    config = make_config(num_players=num_players)
    for seed in range(5):
        rng = np.random.default_rng(seed)
        game = make_game(config, 8, rng, terminated=terminated, exploratory=exploratory)
        expected = [return_by_hand(game, t, td_steps, 0.9, num_players) for t in range(len(game))]
        assert np.allclose(returns(game, td_steps, 0.9, num_players), expected, atol=1e-6)


def test_an_exploratory_move_is_worth_what_the_search_thought():
    game = make_game(make_config(num_players=2), 6, np.random.default_rng(1))
    game.exploratory[:] = [True, True, False, False, True, False]
    values = returns(game, 10, 1.0)
    assert values[[0, 1, 4]].tolist() == game.root_value[[0, 1, 4]].tolist()
    assert values[3] == pytest.approx(game.reward[3] - game.root_value[4])


def test_truncation_bootstraps_and_termination_does_not():
    """CartPole's last step, and the boundary at exactly `td_steps`."""
    config = make_config()
    ones = np.ones(4, np.float32)
    rng = np.random.default_rng(0)
    truncated = make_game(config, 4, rng, terminated=False, reward=ones, final_value=100.0)
    terminated = make_game(config, 4, rng, reward=ones)
    assert (
        returns(truncated, 4, 1.0, players=1)[0] == 104
    )  # the fourth step arrives at the final state
    assert returns(truncated, 5, 1.0, players=1)[0] == 104
    assert returns(truncated, 3, 1.0, players=1)[0] == 3 + truncated.root_value[3]
    assert returns(truncated, 4, 1.0, players=1)[3] == 101
    assert returns(terminated, 4, 1.0, players=1).tolist() == [4, 3, 2, 1]
    assert returns(terminated, 3, 1.0, players=1)[0] == 3 + terminated.root_value[3]


def test_games_end_to_end_equal_each_by_itself():
    config = make_config(num_players=2)
    rng = np.random.default_rng(0)
    games = [
        make_game(config, n, rng, terminated=n % 2 == 0, exploratory=0.2) for n in (1, 4, 9, 2)
    ]
    ends = np.cumsum([len(game) + 1 for game in games]) - 1
    joined = n_step_returns(
        np.concatenate([np.append(game.reward, 0) for game in games]),
        np.concatenate([np.append(game.root_value, game.final_value) for game in games]),
        -0.9,
        3,
        stop=np.concatenate([np.append(game.exploratory, False) for game in games]),
        end=np.repeat(ends, [len(game) + 1 for game in games]),
    )
    alone = [np.append(returns(game, 3, 0.9), game.final_value) for game in games]
    assert np.allclose(joined, np.concatenate(alone))


@pytest.fixture
def multistep(monkeypatch):
    """rlax's returns, without the rest of rlax, whose import takes half a minute."""
    found = importlib.util.find_spec("rlax")
    if found is None:
        pytest.skip("rlax is not installed")
    package = types.ModuleType("rlax")
    package.__path__ = list(found.submodule_search_locations or [])
    monkeypatch.setitem(sys.modules, "rlax", package)
    return importlib.import_module("rlax._src.multistep")


@pytest.mark.parametrize("td_steps", [1, 4, 10, 30])
def test_equal_to_rlax(td_steps, multistep):
    game = make_game(make_config(num_players=2), 12, np.random.default_rng(3), terminated=False)
    values = np.append(game.root_value, game.final_value).astype(np.float32)
    oracle = multistep.n_step_bootstrapped_returns(
        game.reward, np.full(12, -0.95, np.float32), values[1:], td_steps
    )
    assert np.allclose(returns(game, td_steps, 0.95), oracle, atol=1e-5)
