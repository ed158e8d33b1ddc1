"""The rules of our games, against brute force, Gymnasium and a solver's scores."""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache

import gymnasium
import numpy as np
import pytest
from game_lines import assert_equal, play, replay

from muprover.config import SettingsError
from muprover.environment import TimeStep
from muprover.game import load_game
from muprover.games import cartpole, connect_four, tictactoe
from muprover.gymnasium import GymnasiumEnvironment


def test_tictactoe_has_as_many_games_as_it_should() -> None:
    """255168 games: 131184 won by who begins, 77904 by the other, 46080 drawn; 5478 positions."""
    positions = set()

    @cache
    def ends(marks: tuple[int, int, int]) -> Counter[str]:
        positions.add(marks)
        game = tictactoe.TicTacToe()
        game.reset()
        found: Counter[str] = Counter()
        for action in range(9):
            game.mine, game.theirs, game.to_play = marks
            if (game.mine | game.theirs) >> action & 1:
                continue
            step = game.step(action)
            after = (game.mine, game.theirs, game.to_play)
            if step.terminated:
                positions.add(after)
                found["draw" if step.reward == 0 else f"player {marks[2]} wins"] += 1
            else:
                found += ends(after)
        return found

    assert ends((0, 0, 0)) == {"player 0 wins": 131184, "player 1 wins": 77904, "draw": 46080}
    assert len(positions) == 5478


def test_tictactoe_shows_the_marks_of_who_moves_first() -> None:
    game = tictactoe.TicTacToe()
    game.reset()
    game.step(0)
    step = game.step(4)
    assert step.to_play == 0
    assert np.argwhere(step.observation[..., 0]).tolist() == [[0, 0]]
    assert np.argwhere(step.observation[..., 1]).tolist() == [[1, 1]]
    assert game.render() == "X 1 2\n3 O 5\n6 7 8"
    game.step(1)
    assert game.render() == "X X 2\n3 O 5\n6 7 8"


def test_the_random_opponent_begins_half_of_the_games_and_plays_every_square() -> None:
    environment = load_game("random_tictactoe").make_environment()
    firsts = Counter(
        int(step.observation[..., 1].argmax()) if step.observation.any() else -1
        for step in (environment.reset(seed) for seed in range(900))
    )
    assert 400 < firsts[-1] < 500
    assert all(30 < firsts[square] < 80 for square in range(9))


def test_the_random_opponent_s_win_is_the_agent_s_loss() -> None:
    environment = load_game("random_tictactoe").make_environment()
    ends = Counter()
    for seed in range(300):
        step = play(environment, seed)[1][-1]
        mine, theirs = (step.observation[..., player].ravel() == 1 for player in (0, 1))
        lines = np.array(tictactoe.LINES)
        expected = int(mine[lines].all(axis=1).any()) - int(theirs[lines].all(axis=1).any())
        assert step.reward == expected
        assert step.terminated
        ends[step.reward] += 1
    assert min(ends[1.0], ends[-1.0], ends[0.0]) > 10


def balance(observation: np.ndarray) -> int:
    position, speed, angle, turn = observation
    return int(0.1 * position + 0.3 * speed + 3 * angle + turn > 0)


@pytest.mark.parametrize("policy", ["random", "balancing"])
def test_cartpole_is_gymnasium_s_step_for_step(policy: str) -> None:
    """No frame is skipped, none repeated; the limit of 500 steps truncates, a fall terminates."""
    rng = np.random.default_rng(0)
    ours, raw = cartpole.make_environment(), gymnasium.make("CartPole-v1")
    for seed in range(3):
        step, (observation, _) = ours.reset(seed), raw.reset(seed=seed)
        over, length = False, 0
        while not over:
            action = balance(observation) if policy == "balancing" else int(rng.integers(2))
            step = ours.step(action)
            observation, reward, terminated, truncated, _ = raw.step(action)
            over, length = terminated or truncated, length + 1
            np.testing.assert_allclose(step.observation * cartpole.SCALE, observation, rtol=1e-6)
            assert (step.reward, step.terminated, step.truncated) == (reward, terminated, truncated)
        ended = (length, step.terminated, step.truncated)
        assert ended == (500, False, True) if policy == "balancing" else step.terminated


def test_a_gymnasium_game_that_falls_at_its_limit_is_over_by_its_rules() -> None:
    class Falling:
        def step(self, action: int) -> tuple[object, ...]:
            return np.zeros(4, np.float32), 1.0, True, True, {}

    environment = GymnasiumEnvironment("CartPole-v1")
    environment._env = Falling()
    step = environment.step(0)
    assert (step.terminated, step.truncated, step.legal_actions.any()) == (True, False, False)


def test_gymnasium_games_without_discrete_actions_are_refused() -> None:
    with pytest.raises(TypeError, match=r"Pendulum-v1 has actions Box"):
        GymnasiumEnvironment("Pendulum-v1")


def test_without_gymnasium_its_games_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(SettingsError, match=r"pip install 'muprover\[gymnasium\]'"):
        load_game("cartpole").make_environment()


def test_the_longest_return_of_cartpole_fits_its_support() -> None:
    config = load_game("cartpole").config
    longest = sum(config.training.discount**t for t in range(config.game.max_moves))
    assert 49 < longest < config.network.value_support.limit


FOURS = [
    [(row + i * down, column + i * right) for i in range(4)]
    for row, column in itertools.product(range(6), range(7))
    for down, right in [(0, 1), (1, 0), (1, 1), (1, -1)]
    if row + 3 * down < 6 and 0 <= column + 3 * right < 7
]


def brute_force(actions: list[int]) -> Iterator[TimeStep]:
    """Connect Four on an array, row 0 at the top, all lines looked at after each move."""
    board = np.zeros((6, 7), int)  # 1 and 2: discs of players 0 and 1
    won = False
    for moves in range(len(actions) + 1):
        if moves > 0:
            column = actions[moves - 1]
            player = 1 + (moves - 1) % 2
            board[np.flatnonzero(board[:, column] == 0)[-1], column] = player
            won = any(all(board[square] == player for square in four) for four in FOURS)
        mover = moves % 2
        over = won or (board > 0).all()
        yield TimeStep(
            observation=np.stack([board == 1 + mover, board == 2 - mover], -1).astype(np.float32),
            reward=float(won),
            to_play=mover,
            legal_actions=(board[0] == 0) & (not over),
            terminated=bool(over),
            truncated=False,
        )


def test_connect_four_has_69_lines() -> None:
    assert len(FOURS) == 69
    for four in FOURS:
        squares = sum(1 << 8 * column + 5 - row for row, column in four)
        assert connect_four.has_four(squares)
        for missing in four:
            assert not connect_four.has_four(squares & ~(1 << 8 * missing[1] + 5 - missing[0]))


def test_connect_four_equals_brute_force() -> None:
    environment = connect_four.ConnectFour()
    ends: Counter[tuple[float, int]] = Counter()
    for seed in range(150):
        actions, steps = play(environment, seed)
        assert_equal(steps, list(brute_force(actions)))
        ends[steps[-1].reward, len(actions) % 2] += 1
    assert ends[1.0, 0] > 20  # won by who moves second
    assert ends[1.0, 1] > 20


def test_connect_four_finds_lines_on_random_boards() -> None:
    rng = np.random.default_rng(0)
    seen = Counter()
    for _ in range(1000):
        board = rng.random((6, 7)) < 0.4
        squares = sum(1 << 8 * int(column) + 5 - int(row) for row, column in np.argwhere(board))
        expected = any(all(board[square] for square in four) for four in FOURS)
        assert connect_four.has_four(squares) == expected
        seen[expected] += 1
    assert min(seen.values()) > 200


def test_a_full_connect_four_board_is_a_draw() -> None:
    columns = "461547114517541355666172452242736227373363"
    steps = replay(connect_four.ConnectFour(), 0, [int(column) - 1 for column in columns])
    assert (steps[-1].reward, steps[-1].terminated, steps[-1].to_play) == (0, True, 0)
    assert not any(step.terminated for step in steps[:-1])
    assert steps[-1].observation.sum() == 42


def test_connect_four_is_shown_with_numbered_columns() -> None:
    environment = connect_four.ConnectFour()
    environment.reset()
    for action in (3, 3, 2):
        environment.step(action)
    assert environment.render().splitlines()[-3:] == [
        "· · · O · · ·",
        "· · X X · · ·",
        "1 2 3 4 5 6 7",
    ]
    assert [environment.action_name(action) for action in (0, 6)] == ["1", "7"]


def test_scored_positions_are_consistent() -> None:
    positions = load_game("connect_four").scored_positions()
    assert len(positions) == 1000
    best: Counter[float] = Counter()
    shares = []
    for position in positions:
        step = list(replay(connect_four.ConnectFour(), 0, list(position.moves)))[-1]
        assert not step.terminated
        assert np.isnan(position.scores).tolist() == (~step.legal_actions).tolist()
        results = np.sign(position.scores[step.legal_actions])
        best[float(results.max())] += 1
        shares.append((results == results.max()).mean())
        assert len(set(results)) > 1  # the outcome depends on the move
    assert best == {1.0: 832, 0.0: 168}
    assert np.mean(shares) == pytest.approx(0.35, abs=0.005)  # of random moves that are optimal


def test_a_move_that_wins_at_once_has_the_best_score_there_can_be() -> None:
    """A score counts the discs that the winner still has after it, and one more."""
    won = 0
    for position in load_game("connect_four").scored_positions():
        game = connect_four.ConnectFour()
        replay(game, 0, list(position.moves))
        highest = (43 - len(position.moves)) // 2
        for action in np.flatnonzero(~np.isnan(position.scores)):
            twin = game.copy()
            if twin.step(int(action)).reward == 1:
                assert position.scores[action] == highest
                won += 1
            else:
                assert position.scores[action] < highest
    assert won == 50
