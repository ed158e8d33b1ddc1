"""The evaluator: each new version once, none mixed with another, and when the goal is met."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from environment_servers import environment_server
from fake_network import FakeNetwork
from perfect import PerfectPolicy, first_legal

from muprover.evaluation import AgentPlayer, Evaluation
from muprover.evaluation.oracles import exam_of_all_positions
from muprover.evaluation.report import Record, report, summary
from muprover.evaluator import (
    Evaluator,
    Served,
    ServedAgents,
    choose_measures,
    remote_environments,
    run,
)
from muprover.game import load_game
from muprover.policy import PolicyOutput, SearchInputs
from muprover.services import waiting
from muprover.services.client import ContractError, ServiceError

GAME = load_game("tictactoe")


@pytest.fixture(scope="module")
def perfect() -> PerfectPolicy:
    return PerfectPolicy(GAME)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(waiting, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr("muprover.evaluator.POLL_SECONDS", 0.001)


class FakeAgents:
    """Versions that follow each other, one each time it is looked; the last one stays and is told
    to stop after it was looked at often enough."""

    def __init__(self, stop: threading.Event, *served: Served | ServiceError) -> None:
        self.stop = stop
        self.served = list(served)
        self.looks_left = 5

    def newest(self) -> Served:
        if len(self.served) == 1:
            self.looks_left -= 1
            if not self.looks_left:
                self.stop.set()
        now = self.served[0] if len(self.served) == 1 else self.served.pop(0)
        if isinstance(now, ServiceError):
            raise now
        return now


def version_of(policy, version: int) -> Served:
    def pinned(inputs: SearchInputs, details: bool = False) -> PolicyOutput:
        return policy(inputs)._replace(version=version)

    return Served(version, 100 * version, pinned)


def watch(tmp_path: Path, *served: Served | ServiceError) -> list[dict]:
    """What is written down of the versions `served`; each is looked at twice."""
    stop = threading.Event()
    agents = FakeAgents(stop, *[one for one in served for _ in range(2)])
    output = tmp_path / "evaluations.jsonl"
    Evaluator(GAME, Evaluation(GAME), ["lost_lines"], agents, stop, output).watch()
    return [json.loads(line) for line in output.read_text().splitlines()]


def test_each_version_is_evaluated_once_and_the_goal_counts_in_a_row(perfect, tmp_path):
    records = watch(
        tmp_path,
        version_of(perfect, 1),
        version_of(first_legal, 2),
        version_of(perfect, 3),
        version_of(perfect, 4),
    )
    assert [record["version"] for record in records] == [1, 2, 3, 4]
    assert [record["training_step"] for record in records] == [100, 200, 300, 400]
    assert [record["metrics"]["lost_lines"] > 0 for record in records] == [
        False,
        True,
        False,
        False,
    ]
    assert [record["in_a_row"] for record in records] == [1, 0, 1, 2]
    assert [record["goal_met"] for record in records] == [False, False, False, True]
    assert records[0]["goal"] == "lost_lines ≤ 0, 2 times in a row"
    assert all(record["seconds"] > 0 for record in records)


def test_it_waits_for_the_first_version(perfect, tmp_path):
    nothing = ServiceError(grpc.StatusCode.NOT_FOUND, "Servable not found")
    away = ServiceError(grpc.StatusCode.UNAVAILABLE, "cannot reach it")
    records = watch(tmp_path, away, nothing, version_of(perfect, 5))
    assert [record["version"] for record in records] == [5]


def test_a_version_dropped_in_the_middle_is_not_mixed_with_the_next(perfect, tmp_path):
    calls = []

    def dropped(inputs: SearchInputs, details: bool = False) -> PolicyOutput:
        calls.append(1)
        if len(calls) == 3:
            raise ServiceError(grpc.StatusCode.NOT_FOUND, "version 1 is gone")
        return first_legal(inputs)

    records = watch(tmp_path, version_of(dropped, 1), version_of(perfect, 2))
    assert [(record["version"], record["metrics"]["lost_lines"]) for record in records] == [(2, 0)]


def test_a_version_that_changes_in_the_middle_is_begun_anew(perfect, tmp_path):
    versions = iter([1, 1, 2])

    def changing(inputs: SearchInputs, details: bool = False) -> PolicyOutput:
        return perfect(inputs)._replace(version=next(versions, 2))

    records = watch(tmp_path, Served(1, 10, changing), Served(2, 20, changing))
    assert [record["version"] for record in records] == [2]


def test_a_partner_with_another_game_ends_it(tmp_path):
    with pytest.raises(ContractError, match="chess"):
        watch(tmp_path, ContractError("network server does not fit: game.name is chess there"))


def test_told_to_stop_it_asks_no_more(perfect):
    stop = threading.Event()
    asked = []

    def stopping(inputs: SearchInputs, details: bool = False) -> PolicyOutput:
        asked.append(1)
        stop.set()
        return perfect(inputs)

    agents = FakeAgents(stop, version_of(stopping, 1), version_of(stopping, 1))
    evaluator = Evaluator(GAME, Evaluation(GAME), ["lost_lines"], agents, stop)
    with pytest.raises(waiting.Stopped):
        evaluator.evaluate_newest()
    assert len(asked) == 1


def test_a_watch_measures_the_goal_only_and_a_single_look_everything():
    evaluation = Evaluation(GAME)
    assert choose_measures(evaluation, watch=True) == ("lost_lines",)
    assert choose_measures(evaluation, watch=False) == evaluation.measures
    assert choose_measures(evaluation, watch=True, matches=True) == evaluation.measures
    assert choose_measures(evaluation, watch=False, matches=False) == (
        "lost_lines",
        "optimal_moves",
    )


def test_games_of_two_players_are_played_here_if_their_rules_are():
    assert remote_environments(GAME, "localhost:1") is None
    assert remote_environments(load_game("cartpole"), None) is None
    assert remote_environments(load_game("cartpole"), "localhost:1") is not None


def record_of(policy, *measures: str) -> Record:
    overrides = ["evaluation.num_episodes=6", "evaluation.mcts_simulations=5"]
    game = load_game("tictactoe", overrides=overrides)
    result = Evaluation(game).run(policy, measures)
    return Record("2026-01-01T00:00:00+00:00", 700, game.config.evaluation.goal, 2, result)


def test_people_read_what_was_found(perfect):
    record = record_of(perfect, "lost_lines", "optimal_moves", "win_rate", "match_mcts")
    page = report(record)
    assert "no line is lost: proven" in page
    assert "optimal moves: 100.00% of 4520 positions" in page
    assert "against random" in page
    assert "against MCTS with 5 simulations" in page
    assert "goal: lost_lines ≤ 0, 2 times in a row: met" in page
    assert summary(record).startswith("version 1 (step 700): lost lines 0, optimal moves 1,")


def test_lost_lines_are_named():
    record = record_of(first_legal, "lost_lines")
    assert f"{record.result.metrics['lost_lines']} lines are lost" in report(record)


def test_the_served_agent_is_evaluated_over_the_wire(perfect, tmp_path, capsys):
    output = tmp_path / "evaluations.jsonl"
    with FakeNetwork(perfect, GAME.config, version=4) as network, ThreadPoolExecutor() as pool:
        options = {"network": network.address, "matches": False}
        assert pool.submit(run, GAME, output=output, **options).result(60) == 0
        assert "no line is lost: proven" in capsys.readouterr().out
        assert pool.submit(run, GAME, as_json=True, **options).result(60) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["version"] == 4
    assert record["training_step"] == 40
    assert record["metrics"] == {"lost_lines": 0, "optimal_moves": 1.0}
    assert json.loads(output.read_text())["metrics"] == record["metrics"]


def test_searches_name_the_version_they_are_of(perfect):
    with FakeNetwork(perfect, GAME.config, version=4) as network:
        agents = ServedAgents(network.address, "muprover", GAME.config)
        served = agents.newest()
        network.version = 5  # and 4 is gone
        with pytest.raises(ServiceError, match="version 4 is not served"):
            AgentPlayer(served.policy, 5).choose(exam_of_all_positions(GAME).view)
        assert agents.newest().version == 5
        agents.close()


def test_the_search_is_of_the_signature_that_is_asked_for(perfect):
    with FakeNetwork(perfect, GAME.config) as network:
        agents = ServedAgents(network.address, "muprover", GAME.config, "search_xla")
        AgentPlayer(agents.newest().policy, 1).choose(exam_of_all_positions(GAME).view)
        agents.close()
        assert network.asked == {"about", "search_xla"}


def test_episodes_are_played_on_the_environment_server():
    game = load_game("random_tictactoe", overrides=["evaluation.num_episodes=20"])
    with environment_server(game) as address:
        there = Evaluation(game, 3, remote_environments(game, address))
        assert there.run(first_legal, ["mean_return"]).mean_return == (
            Evaluation(game, 3).run(first_legal, ["mean_return"]).mean_return
        )
