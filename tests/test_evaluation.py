"""Evaluation: the proof, shares of optimal moves, matches; against numbers known by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from perfect import PerfectPolicy, first_legal

from muprover.evaluation import AgentPlayer, Evaluation, EvaluationError
from muprover.evaluation.matches import Match, Score, play_episodes, play_match
from muprover.evaluation.mcts import MCTSPlayer
from muprover.evaluation.oracles import (
    Exam,
    Lines,
    count_lines,
    exam_of_all_positions,
    exam_of_scored_positions,
    keeps_best_outcome,
    optimal_share,
)
from muprover.evaluation.players import RandomPlayer, VersionChangedError, View
from muprover.evaluation.statistics import elo, mean, share
from muprover.game import Game, load_game

GAME = load_game("tictactoe")


@pytest.fixture(scope="module")
def perfect() -> PerfectPolicy:
    return PerfectPolicy(GAME)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


class Nobody:
    """Refuses to be asked."""

    name = "nobody"

    def choose(self, view: View) -> np.ndarray:
        raise AssertionError("asked")


def test_tictactoe_has_the_positions_that_everybody_counts():
    exam = exam_of_all_positions(GAME)
    assert len(exam.optimal) == 4520  # of 5478, 958 are ends
    empty = exam.view.observation.sum((1, 2, 3)) == 0
    assert exam.optimal[empty].all()  # any first move draws
    assert (exam.optimal <= exam.view.legal_actions).all()
    assert exam.optimal.any(1).all()


def test_after_the_centre_only_corners_hold_the_draw():
    exam = exam_of_all_positions(GAME)
    centre = np.zeros((3, 3, 2), np.float32)
    centre[1, 1, 1] = 1  # the other's
    [row] = np.flatnonzero((exam.view.observation == centre).all((1, 2, 3)))
    assert np.flatnonzero(exam.optimal[row]).tolist() == [0, 2, 6, 8]


def test_no_one_to_answer_means_every_line_of_play():
    """Both seats moved by the opponent: all the games of tic-tac-toe."""
    lines = count_lines(GAME, Nobody(), seat=7)
    assert lines.total == 255_168
    assert lines.drawn == 46_080


def test_a_perfect_player_loses_no_line(perfect):
    player = AgentPlayer(perfect, 25)
    first, second = count_lines(GAME, player, 0), count_lines(GAME, player, 1)
    assert (first.lost, second.lost) == (0, 0)
    assert first.total == first.won + first.drawn > 50
    assert second.total > first.total
    assert optimal_share(player, exam_of_all_positions(GAME)) == 1.0


def test_merging_equal_positions_counts_the_same_lines(monkeypatch):
    player = AgentPlayer(first_legal, 25)
    merged = [count_lines(GAME, player, seat) for seat in (0, 1)]
    assert merged == [brute_force(seat) for seat in (0, 1)]
    assert merged[1].lost > 0


def brute_force(seat: int) -> Lines:
    """Depth-first, one position at a time, against `first_legal`."""
    ends = [0, 0, 0]

    def walk(environment, step, score):
        if step.terminated:
            ends[1 - int(np.sign(score))] += 1
            return
        mine = step.to_play == seat
        actions = np.flatnonzero(step.legal_actions)
        for action in actions[:1] if mine else actions:
            after = environment.copy()
            next_step = after.step(int(action))
            walk(after, next_step, score + (1 if mine else -1) * next_step.reward)

    environment = GAME.make_environment()
    walk(environment, environment.reset(0), 0.0)
    return Lines(*ends)


def test_the_agent_is_evaluated_without_noise_and_with_the_stated_simulations(perfect):
    """Row 29 of the traps."""
    perfect.asked.clear()
    game = load_game("tictactoe", overrides=["evaluation.num_simulations=33"])
    Evaluation(game).run(perfect, ["lost_lines"])
    for inputs in perfect.asked:
        assert not inputs.exploration.any()
        assert not inputs.temperature.any()
        assert (inputs.num_simulations == 33).all()
        assert not inputs.seed.any()


def test_without_a_stated_number_it_searches_as_in_self_play():
    overrides = ["search.num_simulations=17", "evaluation.num_simulations=null"]
    game = load_game("connect_four", overrides=overrides)
    assert game.config.evaluation_simulations == 17


def test_an_evaluation_mixes_no_versions(perfect):
    player = AgentPlayer(perfect, 25)
    view = exam_of_all_positions(GAME).view
    player.choose(view)
    perfect.version = 2
    with pytest.raises(VersionChangedError, match="version 2 answered while 1"):
        player.choose(view)
    perfect.version = 1


def test_large_batches_are_asked_in_pieces(perfect):
    perfect.asked.clear()
    AgentPlayer(perfect, 25).choose(exam_of_all_positions(GAME).view)
    sizes = [len(inputs.seed) for inputs in perfect.asked]
    assert max(sizes) == 256
    assert sum(sizes) == 4520


def test_a_game_too_large_is_refused_in_words():
    connect_four = load_game("connect_four")
    with pytest.raises(EvaluationError, match="too many positions"):
        exam_of_all_positions(connect_four, max_positions=500)
    with pytest.raises(EvaluationError, match="too many lines"):
        count_lines(connect_four, AgentPlayer(first_legal, 1), 0, max_positions=500)
    with pytest.raises(EvaluationError, match="one player"):
        count_lines(load_game("random_tictactoe"), AgentPlayer(first_legal, 1), 0)


def test_a_move_is_optimal_if_it_keeps_the_best_outcome():
    scores = np.array([[3, 1, 0, -2], [np.nan, 0, 0, -1], [-5, -1, np.nan, np.nan]], np.float32)
    assert keeps_best_outcome(scores).tolist() == [
        [True, True, False, False],
        [False, True, True, False],
        [True, True, False, False],
    ]


def test_scored_positions_of_connect_four_are_what_their_readme_says(rng):
    exam = exam_of_scored_positions(load_game("connect_four"))
    assert len(exam.optimal) == 1000
    shares = [optimal_share(RandomPlayer(rng), exam) for _ in range(5)]
    assert np.mean(shares) == pytest.approx(0.35, abs=0.02)
    central = [3, 2, 4, 1, 5, 0, 6]
    legal = exam.view.legal_actions[:, central]
    actions = np.take(central, legal.argmax(1))
    assert exam.optimal[np.arange(1000), actions].mean() == pytest.approx(0.56, abs=0.005)


def test_mcts_finds_as_many_optimal_moves_as_it_should(rng):
    exam = exam_of_scored_positions(load_game("connect_four"))
    some = np.arange(0, 1000, 10)
    positions = exam.view.positions()
    view = View(
        *(column[some] for column in exam.view[:3]), lambda: [positions[i].copy() for i in some]
    )
    found = optimal_share(MCTSPlayer(100, rng, 42), Exam(view, exam.optimal[some]))
    assert 0.53 < found < 0.81  # 67 % over all of them; the standard error here is 4.7 %


def test_mcts_wins_at_once_and_blocks(rng):
    player = MCTSPlayer(200, rng, 9)
    assert moved_after(player, [0, 3, 1, 4]) == 2  # completes the row
    assert moved_after(player, [0, 4, 1]) == 2  # or it is lost


def moved_after(player: MCTSPlayer, moves: list[int]) -> int:
    environment = GAME.make_environment()
    environment.reset(0)
    for move in moves:
        step = environment.step(move)
    view = View(
        step.observation[None],
        step.legal_actions[None],
        np.array([step.to_play], np.int32),
        lambda: [environment.copy()],
    )
    return int(player.choose(view)[0])


def test_perfect_play_beats_random_play_and_never_loses(perfect, rng):
    game = load_game("tictactoe", overrides=["evaluation.random_opening_moves=0"])
    match = play_match(game, AgentPlayer(perfect, 1), RandomPlayer(rng), 100, rng)
    assert [seat.games for seat in match.seats] == [50, 50]
    assert match.total.lost == 0
    assert match.seats[0].won > 40
    assert match.total.won + match.total.drawn == 100


def test_two_perfect_players_draw(perfect, rng):
    """Row 15: a draw is half a point for both, and no loss."""
    game = load_game("tictactoe", overrides=["evaluation.random_opening_moves=0"])
    player = AgentPlayer(perfect, 1)
    match = play_match(game, player, player, 10, rng)
    assert match.total == Score(won=0, drawn=10, lost=0)
    assert match.total.score.value == 0.5


def test_pairs_share_an_opening_with_seats_swapped(rng):
    class Recorder(RandomPlayer):
        def __init__(self, rng: np.random.Generator) -> None:
            super().__init__(rng)
            self.first: View | None = None

        def choose(self, view: View) -> np.ndarray:
            self.first = self.first or view
            return super().choose(view)

    one, other = Recorder(rng), Recorder(rng)
    game = load_game("tictactoe", overrides=["evaluation.random_opening_moves=2"])
    play_match(game, one, other, 40, rng)
    assert one.first is not None
    assert other.first is not None
    assert len(one.first.observation) == len(other.first.observation) == 20
    mine = sorted(board.tobytes() for board in one.first.observation)
    theirs = sorted(board.tobytes() for board in other.first.observation)
    assert mine == theirs
    marks = one.first.observation.sum((1, 2, 3))
    assert set(marks) == {0, 1, 2}  # openings of every length
    assert len(set(mine)) > 5  # and not the same game every time


def test_players_see_the_true_position(rng):
    class Checking(RandomPlayer):
        def choose(self, view: View) -> np.ndarray:
            for environment, legal in zip(view.positions(), view.legal_actions, strict=True):
                taken = environment.mine | environment.theirs  # type: ignore[attr-defined]
                assert [not taken >> a & 1 for a in range(9)] == legal.tolist()
            return super().choose(view)

    play_match(GAME, Checking(rng), Checking(rng), 10, rng)


def test_a_match_is_counted_by_seat():
    first, second = Score(3, 1, 0), Score(1, 1, 2)
    match = Match("random", (first, second))
    assert match.total == Score(4, 2, 2)
    assert match.total.score.value == 5 / 8


def test_returns_are_of_whole_episodes(rng):
    returns = play_episodes(load_game("cartpole"), RandomPlayer(rng), 50, rng)
    assert len(returns) == 50
    assert returns.min() >= 8
    assert 15 < returns.mean() < 35  # of random play, as Gymnasium users know
    assert len(set(returns)) > 5


def test_equal_seeds_make_equal_evaluations():
    game = load_game("random_tictactoe", overrides=["evaluation.num_episodes=30"])
    results = [Evaluation(game, seed).run(first_legal, ["mean_return"]) for seed in (1, 1, 2)]
    assert results[0].metrics == results[1].metrics
    assert results[0].mean_return != results[2].mean_return


def test_each_evaluation_plays_fresh_episodes():
    evaluation = Evaluation(load_game("cartpole", overrides=["evaluation.num_episodes=30"]))
    first, second = (evaluation.run(first_legal, ["mean_return"]) for _ in range(2))
    assert first.mean_return != second.mean_return


def test_what_is_measured_depends_on_the_game():
    assert Evaluation(GAME).measures == ("lost_lines", "match_mcts", "optimal_moves", "win_rate")
    assert Evaluation(GAME).main_measure == "lost_lines"
    assert Evaluation(load_game("cartpole")).measures == ("mean_return",)
    connect_four = Evaluation(load_game("connect_four"))
    assert connect_four.measures == ("match_mcts", "optimal_moves", "win_rate")
    assert connect_four.main_measure == "optimal_moves"


def test_a_whole_evaluation_as_json(perfect):
    game = load_game(
        "tictactoe", overrides=["evaluation.num_episodes=10", "evaluation.mcts_simulations=10"]
    )
    evaluation = Evaluation(game)
    result = evaluation.run(perfect, evaluation.measures)
    found = json.loads(json.dumps(result.to_json()))
    assert found["metrics"]["lost_lines"] == 0
    assert found["metrics"]["optimal_moves"] == 1.0
    assert found["num_positions"] == 4520
    assert [seat["lost"] for seat in found["lines"]] == [0, 0]
    assert {match["opponent"] for match in found["matches"]} == {
        "random",
        "MCTS with 10 simulations",
    }
    assert all(match["lost"] == 0 for match in found["matches"])
    assert found["version"] == 1


def test_rules_elsewhere_are_enough_for_matches_against_random_play(perfect):
    class NoRules:
        pass

    game = load_game("tictactoe", overrides=["evaluation.random_opening_moves=0"])
    remote = Game(game.source, game.config, NoRules())  # type: ignore[arg-type]
    evaluation = Evaluation(remote, make_environments=GAME.make_environments)
    assert evaluation.measures == ("lost_lines", "win_rate")  # the former as the goal asks for it
    assert evaluation.run(perfect, ["win_rate"]).matches[0].total.lost == 0
    with pytest.raises(EvaluationError, match="on an environment server only"):
        evaluation.run(perfect, ["lost_lines"])


def test_wilson_intervals():
    assert share(0, 10) == pytest.approx((0, 0, 0.2775), abs=1e-3)
    assert share(50, 100) == pytest.approx((0.5, 0.4038, 0.5962), abs=1e-3)
    assert share(10, 10) == pytest.approx((1, 0.7225, 1), abs=1e-3)


def test_mean_and_elo():
    assert mean([1, 2, 3]) == pytest.approx((2, 2 - 1.1316, 2 + 1.1316), abs=1e-3)
    assert elo(0.5) == 0
    assert elo(0.75) == pytest.approx(190.8, abs=0.1)
    assert elo(1.0) == math.inf
