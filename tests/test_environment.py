"""`Environments`: many games at once, with every move checked."""

from __future__ import annotations

import numpy as np
import pytest

from muprover.environment import (
    Environment,
    Environments,
    GameError,
    IllegalMoveError,
    TimeStep,
)


class Countdown(Environment):
    """Two actions, of which action 1 is legal on even counts only; ends at 0."""

    made = closed = 0

    def __init__(self) -> None:
        Countdown.made += 1

    def reset(self, seed: int | None = None) -> TimeStep:
        self.left = seed or 0
        return self.time_step()

    def step(self, action: int) -> TimeStep:
        self.left -= 1 + action
        return self.time_step(reward=float(action))

    def time_step(self, reward: float = 0.0) -> TimeStep:
        over = self.left <= 0
        legal_actions = np.array([True, self.left % 2 == 0])  # though the game may be over
        return TimeStep(np.float32([self.left]), reward, 0, legal_actions, over, False)

    def close(self) -> None:
        Countdown.closed += 1


@pytest.fixture
def games() -> Environments:
    Countdown.made = Countdown.closed = 0
    return Environments(Countdown, 4, max_moves=5)


def test_steps_come_stacked_in_the_order_of_the_rows(games: Environments) -> None:
    steps = games.reset([2, 0], [7, 4])
    assert steps.observation.tolist() == [[7], [4]]
    assert steps.legal_actions.tolist() == [[True, False], [True, True]]
    steps = games.step([0, 2], [1, 0])
    assert steps.observation.tolist() == [[2], [6]]
    assert steps.reward.tolist() == [1, 0]
    kinds = [field.dtype.name for field in steps]
    assert kinds == ["float32", "float32", "int32", "bool", "bool", "bool"]


def test_a_game_that_is_over_has_no_legal_action(games: Environments) -> None:
    games.reset([0, 1], [2, 3])
    steps = games.step([0, 1], [1, 0])
    assert steps.terminated.tolist() == [True, False]
    assert steps.legal_actions.tolist() == [[False, False], [True, True]]


def test_a_game_of_max_moves_is_truncated_but_not_if_it_has_ended() -> None:
    games = Environments(Countdown, 2, max_moves=3)
    games.reset([0, 1], [3, 9])
    for _ in range(2):
        steps = games.step([0, 1], [0, 0])
        assert not (steps.terminated | steps.truncated).any()
    steps = games.step([0, 1], [0, 0])
    assert steps.terminated.tolist() == [True, False]
    assert steps.truncated.tolist() == [False, True]
    assert not steps.legal_actions.any()
    with pytest.raises(IllegalMoveError, match="game 1 is over"):
        games.step([1], [0])
    games.reset([1], [9])
    assert not games.step([1], [0]).truncated.any()


@pytest.mark.parametrize("max_moves", [None, 9])
def test_a_game_that_is_ended_by_its_rules_and_cut_off_at_once_has_ended(max_moves) -> None:
    games = Environments(Broken, 1, max_moves)
    steps = games.reset([0], [4])
    Broken.fault = TimeStep(*(field[0] for field in steps))._replace(
        terminated=True, truncated=True
    )
    steps = games.step([0], [0])
    assert (steps.terminated.tolist(), steps.truncated.tolist()) == ([True], [False])


@pytest.mark.parametrize(
    ("rows", "actions", "sentence"),
    [
        ([0, 1], [0, 1], r"action 1 is illegal in game 1; legal: \[0\]"),
        ([0], [2], r"action 2 is illegal in game 0; legal: \[0, 1\]"),
        ([0], [-1], r"action -1 is illegal in game 0"),
        ([0, 2], [0, 0], "game 2 is over or was never started; reset it first"),
        ([0, 4], [0, 0], "no game 4: there are 4, counted from 0"),
        ([0, -1], [0, 0], "no game -1"),
        ([0, 0], [0, 0], r"named once per request; given rows \[0, 0\]"),
        ([0, 1], [0], r"one action for each of 2 rows; given \[0\]"),
        ([], [], "at least one game"),
    ],
)
def test_a_step_that_is_not_allowed_moves_no_game(
    games: Environments, rows: list[int], actions: list[int], sentence: str
) -> None:
    games.reset([0, 1], [4, 5])
    with pytest.raises(IllegalMoveError, match=sentence):
        games.step(np.array(rows, int), np.array(actions, int))
    assert games.step([0, 1], [0, 0]).observation.tolist() == [[3], [4]]


@pytest.mark.parametrize(
    ("rows", "seeds", "sentence"),
    [
        ([0, 1], [1], "a seed of at least 0 for each of 2 rows"),
        ([0], [-1], r"given \[-1\]"),
        ([4], [1], "no game 4"),
        ([1, 1], [1, 1], "named once"),
    ],
)
def test_a_reset_that_is_not_allowed_starts_no_game(
    games: Environments, rows: list[int], seeds: list[int], sentence: str
) -> None:
    games.reset([0, 1], [4, 5])
    with pytest.raises(IllegalMoveError, match=sentence):
        games.reset(rows, seeds)
    assert games.step([0, 1], [0, 0]).observation.tolist() == [[3], [4]]


def test_seed_zero_row_zero_and_action_zero_are_given_ones(games: Environments) -> None:
    assert games.reset([0], [0]).observation.tolist() == [[0]]
    games.reset([0], [4])
    assert games.step([0], [0]).observation.tolist() == [[3]]


def test_games_are_made_when_they_are_reset_and_closed_once(games: Environments) -> None:
    assert Countdown.made == 0
    games.reset([1, 3], [4, 4])
    games.reset([1], [5])
    assert Countdown.made == 2
    games.close()
    games.close()
    assert Countdown.closed == 2
    with pytest.raises(IllegalMoveError, match="never started"):
        games.step([1], [0])


class Broken(Countdown):
    fault: TimeStep

    def step(self, action: int) -> TimeStep:
        return self.fault


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ({"legal_actions": np.zeros(2, np.bool_)}, "no legal action but neither terminated nor"),
        ({"reward": float("nan")}, r"a reward is not finite: \[nan\]"),
        ({"reward": float("inf")}, "a reward is not finite"),
    ],
)
def test_a_game_that_makes_no_sense_is_an_error(fault: dict[str, object], sentence: str) -> None:
    games = Environments(Broken, 1)
    step = games.reset([0], [4])
    sound = TimeStep(*(field[0] for field in step))
    Broken.fault = sound._replace(**fault)
    with pytest.raises(GameError, match=sentence):
        games.step([0], [0])


def test_a_copy_is_a_game_of_its_own() -> None:
    game = Countdown()
    game.reset(5)
    twin = game.copy()
    game.step(0)
    assert (game.left, twin.left) == (4, 5)
    assert (game.render(), game.action_name(1)) == ("", "1")
