"""What every game must do; a file dropped into `games/` is covered with no further line."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from environment_servers import environment_server
from game_lines import assert_equal, play, replay

from muprover.environment import TimeStep
from muprover.game import Game, game_names, load_game
from muprover.services.environment_check import check


@pytest.fixture(params=game_names())
def game(request: pytest.FixtureRequest) -> Game:
    return load_game(request.param)


def test_the_four_games_are_there() -> None:
    assert {"cartpole", "connect_four", "random_tictactoe", "tictactoe"} <= set(game_names())


def test_its_name_is_its_file_s(game: Game) -> None:
    assert game.name == game.source


def test_its_steps_are_as_its_settings_say(game: Game) -> None:
    facts = game.config.game
    environment = game.make_environment()
    for seed in range(20):
        for step in play(environment, seed)[1]:
            assert step.observation.shape == facts.observation_shape
            assert step.observation.dtype == facts.observation_dtype
            assert np.isfinite(step.observation).all()
            assert step.legal_actions.shape == (facts.num_actions,)
            assert step.legal_actions.dtype == np.bool_
            assert type(step.reward) is float
            assert type(step.to_play) is int
            assert type(step.terminated) is bool
            assert type(step.truncated) is bool
            assert step.to_play in range(facts.num_players)
            assert not (step.terminated and step.truncated)
            assert step.legal_actions.any() != (step.terminated or step.truncated)


def test_it_begins_with_no_reward_and_ends_in_time(game: Game) -> None:
    environment = game.make_environment()
    for seed in range(20):
        actions, steps = play(environment, seed)
        assert steps[0].reward == 0
        assert 1 <= len(actions) <= game.config.game.max_moves
        assert steps[-1].terminated or steps[-1].truncated


def test_players_take_turns(game: Game) -> None:
    for seed in range(5):
        seats = [step.to_play for step in play(game.make_environment(), seed)[1]]
        for before, after in itertools.pairwise(seats):
            assert after == (before + 1) % game.config.game.num_players


def test_its_rewards_and_returns_fit_its_supports(game: Game) -> None:
    network, discount = game.config.network, game.config.training.discount
    for seed in range(20):
        rewards = [step.reward for step in play(game.make_environment(), seed)[1]]
        assert max(map(abs, rewards)) <= network.reward_support.limit
        returned = sum(reward * discount**t for t, reward in enumerate(rewards))
        assert abs(returned) <= network.value_support.limit


def test_equal_seeds_and_moves_make_equal_games(game: Game) -> None:
    environment = game.make_environment()
    for seed in (0, 1, 2**40):
        actions, steps = play(environment, seed)
        assert_equal(replay(game.make_environment(), seed, actions), steps)
        assert_equal(replay(environment, seed, actions), steps)


def test_what_it_has_answered_never_changes(game: Game) -> None:
    environment = game.make_environment()
    rng = np.random.default_rng(0)
    step = environment.reset(0)
    while step.legal_actions.any():
        before = TimeStep(*(np.copy(field) for field in step))
        following = environment.step(int(rng.choice(np.flatnonzero(step.legal_actions))))
        assert_equal([step], [before])
        step = following


def test_a_copy_goes_on_by_itself(game: Game) -> None:
    for seed in range(5):
        actions, steps = play(game.make_environment(), seed)
        half = len(actions) // 2
        original = game.make_environment()
        replay(original, seed, actions[:half])
        twin = original.copy()
        for one in (twin, original):
            assert_equal([one.step(action) for action in actions[half:]], steps[half + 1 :])
        assert_equal(replay(twin, seed, actions), steps)


def test_it_can_be_shown_to_people(game: Game) -> None:
    environment = game.make_environment()
    environment.reset(0)
    assert isinstance(environment.render(), str)
    names = [environment.action_name(action) for action in range(game.config.game.num_actions)]
    assert len(set(names)) == len(names)
    environment.close()


def test_its_server_keeps_the_protocol(game: Game) -> None:
    with environment_server(game) as address:
        assert check(address, game) == []
