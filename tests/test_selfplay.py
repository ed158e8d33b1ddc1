"""Self-play: whose reward, which temperature, what ends a game and what it is worth then."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from muprover.config import Config
from muprover.environment import Environment, Environments, TimeStep
from muprover.game import Game, load_game
from muprover.history import GameHistory
from muprover.policy import PolicyOutput, SearchInputs
from muprover.selfplay import Games, play_games, random_actions, scheduled_temperature


class FirstLegal:
    """Takes the first legal action, believes that every position is worth `value`."""

    def __init__(self, value: float = 0.25, version: int = 7) -> None:
        self.value, self.version = value, version
        self.asked: list[SearchInputs] = []

    def __call__(self, inputs: SearchInputs, details: bool = False) -> PolicyOutput:
        self.asked.append(inputs)
        weights = inputs.legal_actions / inputs.legal_actions.sum(1, keepdims=True)
        return PolicyOutput(
            action=inputs.legal_actions.argmax(1).astype(np.int32),
            action_weights=weights.astype(np.float32),
            value=np.full(len(weights), self.value, np.float32),
            version=self.version,
        )


class Countdown(Environment):
    """One player, who gets 1 each move. The rules end it after `length` moves."""

    def __init__(self, length: int) -> None:
        self.length = length

    def reset(self, seed: int | None = None) -> TimeStep:
        self.moves = 0
        return self.time_step(0.0)

    def step(self, action: int) -> TimeStep:
        self.moves += 1
        return self.time_step(1.0)

    def time_step(self, reward: float) -> TimeStep:
        observation = np.array([self.moves], np.float32)
        return TimeStep(observation, reward, 0, np.ones(2, bool), self.moves == self.length, False)


def tictactoe(**self_play: Any) -> Game:
    return load_game("tictactoe", overrides=[f"self_play.{k}={v}" for k, v in self_play.items()])


def countdown_config(max_moves: int, segment_length: int = 200) -> Config:
    return Config.model_validate(
        {
            "game": {
                "name": "countdown",
                "observation_shape": (1,),
                "num_actions": 2,
                "max_moves": max_moves,
            },
            "replay": {"segment_length": segment_length},
            "training": {"num_unroll_steps": 2, "td_steps": 3, "discount": 0.5},
        }
    )


def play(
    game: Game, policy: FirstLegal, num_games: int, max_games: int, seed: int = 0
) -> list[GameHistory]:
    environments = game.make_environments(num_games)
    rng = np.random.default_rng(seed)
    return list(play_games(environments, policy, game.config, rng, max_games=max_games))


def countdown_games(
    length: int, max_moves: int, segment_length: int = 200, **options: Any
) -> tuple[Games, FirstLegal]:
    config = countdown_config(max_moves, segment_length)
    environments = Environments(lambda: Countdown(length), 1, max_moves)
    return Games(environments, config, np.random.default_rng(0), **options), FirstLegal()


def test_a_game_is_kept_as_it_was_played():
    [history] = play(tictactoe(random_opening_fraction=0), FirstLegal(), 1, 1)
    assert history.action.tolist() == [0, 1, 2, 3, 4, 5, 6]  # player 0 gets 0, 2, 4 and 6
    assert history.reward.tolist() == [0, 0, 0, 0, 0, 0, 1]  # the last mover's
    assert history.to_play.tolist() == [0, 1, 0, 1, 0, 1, 0]
    assert history.legal_actions.sum(1).tolist() == [9, 8, 7, 6, 5, 4, 3]
    assert history.observation[0].sum() == 0
    assert history.observation[1][..., 1].ravel().tolist() == [1] + [0] * 8  # seen by player 1
    assert np.allclose(history.action_weights.sum(1), 1)
    assert (history.terminated, history.final_value) == (True, 0.0)
    assert history.network_version == 7
    assert not history.exploratory.any()


def test_games_give_way_to_new_ones_until_all_are_played():
    policy = FirstLegal()
    histories = play(tictactoe(random_opening_fraction=0), policy, num_games=3, max_games=8)
    assert len(histories) == 8
    assert len({history.game_id for history in histories}) == 8
    assert [len(inputs.seed) for inputs in policy.asked] == [3] * 14 + [2] * 7


def test_seeds_are_fresh_for_each_move_and_row_and_repeat_with_the_generator():
    first, second = FirstLegal(), FirstLegal()
    for policy in (first, second):
        play(tictactoe(), policy, num_games=4, max_games=8, seed=3)
    seeds = np.concatenate([inputs.seed for inputs in first.asked])
    assert seeds.dtype == np.int32
    assert len(np.unique(seeds, axis=0)) == len(seeds)
    assert (seeds == np.concatenate([inputs.seed for inputs in second.asked])).all()


def test_game_ids_do_not_repeat_with_the_generator():
    ids = [{h.game_id for h in play(tictactoe(), FirstLegal(), 2, 4, seed=3)} for _ in range(2)]
    assert not ids[0] & ids[1]


def test_self_play_explores_with_the_settings_number_of_simulations():
    policy = FirstLegal()
    game = load_game("tictactoe", overrides=["search.num_simulations=13"])
    play(game, policy, 2, 2)
    assert {tuple(inputs.num_simulations) for inputs in policy.asked[:5]} == {(13, 13)}
    assert {tuple(inputs.exploration) for inputs in policy.asked[:5]} == {(1.0, 1.0)}


@pytest.mark.parametrize(
    ("step", "temperature"), [(0, 1.0), (99, 1.0), (100, 0.5), (999, 0.5), (1000, 0.0), (9999, 0.0)]
)
def test_temperature_follows_its_table(step, temperature):
    assert scheduled_temperature(((1000, 0.0), (0, 1.0), (100, 0.5)), step) == temperature


def test_the_table_is_read_at_the_version_that_answered_last():
    policy = FirstLegal(version=100)
    play(tictactoe(temperatures="[[0, 1.0], [100, 0.25], [200, 0]]"), policy, 1, 1)
    assert [inputs.temperature.item() for inputs in policy.asked[:3]] == [1.0, 0.25, 0.25]
    policy.version = 200
    policy.asked.clear()
    play(tictactoe(temperatures="[[0, 1.0], [100, 0.25], [200, 0]]"), policy, 1, 1)
    assert [inputs.temperature.item() for inputs in policy.asked[:3]] == [1.0, 0.0, 0.0]


def test_before_the_first_answer_the_table_is_read_at_the_version_that_is_expected():
    game = tictactoe(temperatures="[[0, 1.0], [100, 0.25]]")
    games = Games(game.make_environments(1), game.config, np.random.default_rng(0), version=100)
    assert games.search_inputs().temperature.item() == 0.25


def test_after_temperature_moves_a_game_takes_the_best_move():
    policy = FirstLegal()
    play(tictactoe(temperature_moves=3, random_opening_fraction=0), policy, 1, 2)
    expected = [1.0] * 3 + [0.0] * 4  # of each game of seven moves
    assert [inputs.temperature.item() for inputs in policy.asked] == expected * 2


def test_random_openings_are_recorded_as_such_and_only_these():
    game = tictactoe(random_opening_fraction=0.5, random_opening_moves=3)
    histories = play(game, FirstLegal(), 32, 400)
    openings = [int(history.exploratory.sum()) for history in histories]
    for history, moves in zip(histories, openings, strict=True):
        assert history.exploratory[:moves].all()
        best = history.legal_actions.argmax(1)
        assert (history.action[moves:] == best[moves:]).all()
    counts = np.bincount(openings, minlength=4)
    assert len(counts) == 4
    assert 150 < counts[0] < 250
    assert counts[1:].min() > 40
    first = [h.action[0] for h, moves in zip(histories, openings, strict=True) if moves]
    assert np.bincount(first, minlength=9).min() > 8  # all squares, about 22 times each


def test_random_actions_are_legal_and_uniform():
    legal = np.tile([[False, True, False, True, True]], (3000, 1))
    counts = np.bincount(random_actions(legal, np.random.default_rng(0)), minlength=5)
    assert counts[[0, 2]].tolist() == [0, 0]
    assert counts[[1, 3, 4]].min() > 900


def test_a_game_ended_by_its_rules_is_worth_nothing_more():
    games, policy = countdown_games(length=5, max_moves=9, max_games=1)
    histories = []
    while (inputs := games.search_inputs()) is not None:
        histories += games.advance(policy(inputs)).segments
    [history] = histories
    assert (len(history), history.terminated, history.final_value) == (5, True, 0.0)


def test_a_truncated_game_is_worth_what_one_more_search_says():
    games, policy = countdown_games(length=99, max_moves=4, max_games=1)
    for _ in range(4):
        progress = games.advance(policy(games.search_inputs()))
    assert [result.returns for result in progress.results] == [(4.0,)]
    assert progress.segments == []  # its last position is not yet known
    policy.value = 0.75
    inputs = games.search_inputs()
    assert inputs.observation.tolist() == [[4.0]]
    assert (inputs.exploration.item(), inputs.temperature.item()) == (0.0, 0.0)
    assert inputs.legal_actions.all()
    progress = games.advance(policy(inputs))
    assert progress.num_moves == 0
    [history] = progress.segments
    assert (len(history), history.terminated, history.final_value) == (4, False, 0.75)
    assert history.root_value.tolist() == [0.25] * 4
    assert games.search_inputs() is None


def test_rules_that_end_a_game_with_its_last_allowed_move_count_as_its_end():
    games, policy = countdown_games(length=4, max_moves=4, max_games=1)
    for _ in range(4):
        progress = games.advance(policy(games.search_inputs()))
    [history] = progress.segments
    assert (history.terminated, history.final_value) == (True, 0.0)


def test_long_games_come_in_segments_and_wait_to_be_let_on():
    asked: list[bool] = []
    allowed = [True]

    def may_start() -> bool:
        asked.append(allowed[0])
        return allowed[0]

    games, policy = countdown_games(99, 40, segment_length=10, may_start=may_start)
    for _ in range(15):
        progress = games.advance(policy(games.search_inputs()))
    assert asked == [True]  # for the game's beginning
    [segment] = progress.segments  # 10 positions and the 5 that their targets need
    assert (segment.segment, segment.size) == (0, 10)
    allowed[0] = False
    assert games.search_inputs() is None
    assert games.num_in_play == 1
    allowed[0] = True
    assert games.search_inputs().observation.tolist() == [[15.0]]


def test_no_game_starts_without_leave_and_those_in_play_go_on():
    leave = iter([True, False, False, False, False, False, False, False, True])
    game = tictactoe(random_opening_fraction=0)
    environments = game.make_environments(2)
    rng = np.random.default_rng(0)
    games = Games(environments, game.config, rng, may_start=lambda: next(leave), max_games=3)
    policy = FirstLegal()
    while (inputs := games.search_inputs()) is not None:
        games.advance(policy(inputs))
    assert len(policy.asked) == 7  # two games of seven moves in lock step
    assert not games.done


def test_broken_off_games_end_with_the_value_that_the_search_found():
    game = tictactoe(random_opening_fraction=0)
    games = Games(game.make_environments(2), game.config, np.random.default_rng(0))
    policy = FirstLegal()
    for _ in range(3):
        games.advance(policy(games.search_inputs()))
    policy.value = -0.5
    histories = games.break_off(policy(games.search_inputs()))
    assert [len(history) for history in histories] == [3, 3]
    assert [history.final_value for history in histories] == [-0.5, -0.5]
    assert not any(history.terminated for history in histories)
    assert games.num_in_play == 0


def test_without_a_search_they_end_with_the_value_that_was_expected():
    games, policy = countdown_games(length=99, max_moves=99)
    for _ in range(3):
        games.advance(policy(games.search_inputs()))
    [history] = games.break_off()
    # 0.25 = reward 1 + discount 0.5 × value
    assert history.final_value == pytest.approx((0.25 - 1) / 0.5)


def test_after_a_random_move_no_value_can_be_expected():
    game = tictactoe(random_opening_fraction=1, random_opening_moves=1)
    games = Games(game.make_environments(4), game.config, np.random.default_rng(0))
    games.advance(FirstLegal()(games.search_inputs()))
    assert games.break_off() == []


def test_games_whose_environment_breaks_keep_the_moves_that_were_made():
    class Breaking(Environments):
        broken = False

        def step(self, rows: Any, actions: Any) -> TimeStep:
            if self.broken:
                raise ConnectionError
            return super().step(rows, actions)

    config = countdown_config(max_moves=99)
    environments = Breaking(lambda: Countdown(99), 2, 99)
    games = Games(environments, config, np.random.default_rng(0))
    policy = FirstLegal()
    for _ in range(2):
        games.advance(policy(games.search_inputs()))
    environments.broken = True
    output = policy(games.search_inputs())
    with pytest.raises(ConnectionError):
        games.advance(output)
    assert [(len(h), h.final_value) for h in games.break_off(output)] == [(2, 0.25)] * 2
    environments.broken = False
    assert games.search_inputs().observation.tolist() == [[0.0], [0.0]]  # new games


def test_a_batch_plays_as_its_games_would_alone():
    """With the same seeds and rows apart: nothing leaks from one game into another."""

    def by_observation(inputs: SearchInputs, details: bool = False) -> PolicyOutput:
        key = (inputs.observation * np.arange(18).reshape(3, 3, 2)).sum((1, 2, 3)).astype(int)
        order = (np.arange(9) + key[:, None]) % 9
        action = np.where(inputs.legal_actions, order, -1).argmax(1).astype(np.int32)
        weights = np.eye(9, dtype=np.float32)[action]
        return PolicyOutput(action, weights, key.astype(np.float32))

    game = tictactoe(random_opening_fraction=0)

    def games(num_games: int) -> list[GameHistory]:
        environments, rng = game.make_environments(num_games), np.random.default_rng(0)
        policy: Callable[..., PolicyOutput] = by_observation
        return list(play_games(environments, policy, game.config, rng, max_games=6))

    alone, together = games(1), games(6)
    assert len(alone) == len(together) == 6
    for one, other in zip(alone, together, strict=True):
        assert one.action.tolist() == other.action.tolist()
        assert one.root_value.tolist() == other.root_value.tolist()
        assert (one.observation == other.observation).all()


def test_results_are_opposite_for_the_two_players():
    game = tictactoe(random_opening_fraction=0)
    games = Games(game.make_environments(1), game.config, np.random.default_rng(0), max_games=1)
    policy, results = FirstLegal(), []
    while (inputs := games.search_inputs()) is not None:
        results += games.advance(policy(inputs)).results
    assert [(r.num_moves, r.returns, r.terminated) for r in results] == [(7, (1.0, -1.0), True)]


def test_stacked_frames_begin_anew_with_each_game():
    game = load_game(
        "tictactoe",
        overrides=["game.num_stacked_frames=2", "self_play.random_opening_fraction=0"],
    )
    policy = FirstLegal()
    play(game, policy, 1, 2)
    first, second = policy.asked[0].observation, policy.asked[1].observation
    assert first.shape == (1, 3, 3, 4)
    assert first.sum() == 0
    assert second[0, ..., 2:].sum() == 0  # the empty board before
    assert policy.asked[7].observation.sum() == 0  # the second game's beginning
