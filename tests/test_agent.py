"""The agent: what it does when servers are away, when replay is behind, and when told to stop."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grpc
import numpy as np
import pytest

from muprover.agent import Agent, shares
from muprover.agent_replay import Uploader
from muprover.config import Config
from muprover.environment import Environments, TimeStep
from muprover.game import load_game
from muprover.history import GameHistory
from muprover.policy import Policy, PolicyOutput, SearchInputs
from muprover.selfplay import random_actions
from muprover.services import waiting
from muprover.services.client import ContractError, ServiceError

GAME = load_game("tictactoe")


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(waiting, "FIRST_PAUSE", 0.01)


def unavailable() -> ServiceError:
    return ServiceError(grpc.StatusCode.UNAVAILABLE, "away")


def uniform(inputs: SearchInputs, details: bool = False) -> PolicyOutput:
    """Any legal action, so that games do not end together."""
    weights = inputs.legal_actions / inputs.legal_actions.sum(1, keepdims=True)
    action = random_actions(
        inputs.legal_actions, np.random.default_rng(inputs.seed.view(np.uint32).ravel())
    )
    values = np.full(len(weights), 0.5, np.float32)
    return PolicyOutput(action, weights.astype(np.float32), values, version=3)


class FakeReplay:
    """Keeps games in a list, unless it is away; admits as long as `has_room`."""

    def __init__(self) -> None:
        self.games: list[GameHistory] = []
        self.away = False
        self.has_room = True
        self.refuses: Callable[[GameHistory], bool] = lambda game: False
        self.questions = 0
        self.changed = threading.Condition()

    def add(self, games: Sequence[GameHistory], stop: threading.Event | None = None) -> int:
        if self.away:
            raise unavailable()
        if any(self.refuses(game) for game in games):
            raise ServiceError(grpc.StatusCode.INVALID_ARGUMENT, "no such game")
        with self.changed:
            self.games += games
            self.changed.notify_all()
        return len(games)

    def admit(self, agent: str, timeout: float = 20.0, stop: threading.Event | None = None) -> bool:
        if self.away:
            raise unavailable()
        self.questions += 1
        if not self.has_room:
            time.sleep(0.01)
        return self.has_room

    def wait_for(self, condition: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, 20)

    @property
    def whole(self) -> list[GameHistory]:
        return [game for game in self.games if game.terminated]


class Running:
    """An agent in a thread, to be stopped; `status` is its exit status then."""

    def __init__(
        self,
        replay: FakeReplay,
        policy: Policy = uniform,
        environments: Sequence[Environments] | None = None,
        config: Config = GAME.config,
        **options: Any,
    ) -> None:
        self.stop = threading.Event()
        self.serving: list[bool] = []
        self.status: int | None = None
        self.agent = Agent(
            config,
            "tester",
            policy,
            replay,
            environments or [GAME.make_environments(n) for n in (3, 3)],
            np.random.default_rng(0),
            self.stop,
            **options,
        )
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        self.status = self.agent.run(self.serving.append)

    def __enter__(self) -> Running:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.join()

    def join(self) -> int | None:
        self.thread.join(30)
        assert not self.thread.is_alive()
        return self.status


def test_all_games_played_are_stored_and_then_it_ends():
    replay = FakeReplay()
    with Running(replay, max_games=25) as agent:
        assert agent.join() == 0
    assert len(replay.games) == len(replay.whole) == 25
    assert len({game.key for game in replay.games}) == 25
    assert {game.agent for game in replay.games} == {"tester"}
    assert agent.serving == [True, False]


def test_games_are_shared_between_groups():
    assert shares(7, 2) == [4, 3]
    assert shares(1, 2) == [1, 0]


def test_told_to_stop_it_sends_what_it_has_begun():
    replay = FakeReplay()
    with Running(replay) as agent:
        replay.wait_for(lambda: len(replay.games) > 10)
    assert agent.status == 0
    assert agent.serving == [True, False]
    unfinished = [game for game in replay.games if not game.terminated]
    assert 0 < len(unfinished) <= 6
    assert {game.final_value for game in unfinished} == {0.5}  # the search's, not 0


def test_a_finished_game_is_not_lost_when_the_agent_waits_to_be_admitted_and_is_stopped():
    """Row 40 of the traps: told to wait, and then to stop."""
    replay = FakeReplay()
    release = threading.Event()
    original = replay.add

    def slow_add(games: Sequence[GameHistory], stop: threading.Event | None = None) -> int:
        release.wait(20)
        return original(games, stop)

    replay.add = slow_add  # type: ignore[method-assign]
    with Running(replay, max_games=None) as agent:
        while replay.questions < 2:
            time.sleep(0.001)
        replay.has_room = False
        while any(group._games.num_in_play for group in agent.agent._groups):
            time.sleep(0.01)
        assert not replay.games
        agent.stop.set()
        release.set()
        assert agent.join() == 0
    assert len(replay.whole) >= 6


def test_a_search_that_is_never_answered_keeps_no_finished_game_from_being_sent(caplog):
    asked, answered = threading.Event(), threading.Event()
    moves = iter(range(10_000))

    def hangs(inputs: SearchInputs, details: bool = False) -> PolicyOutput:
        if next(moves) == 20:
            asked.set()
            answered.wait(20)
        return uniform(inputs)

    replay = FakeReplay()
    with Running(replay, hangs, [GAME.make_environments(4)], ending_seconds=0.5) as agent:
        assert asked.wait(20)
        replay.away = True
        start = time.monotonic()
        agent.stop.set()
        time.sleep(0.1)
        replay.away = False
        assert agent.join() == 0
        assert time.monotonic() - start < 5
        answered.set()
    assert replay.whole
    assert "group-0 still waits for an answer" in caplog.text


def test_while_replay_is_away_finished_games_are_kept_and_none_begin():
    replay = FakeReplay()
    with Running(replay) as agent:
        replay.wait_for(lambda: len(replay.games) > 10)
        replay.away = True
        while any(group._games.num_in_play for group in agent.agent._groups):
            time.sleep(0.01)
        waiting_games = len(agent.agent._uploader._waiting)
        stored = len(replay.games)
        assert 0 < waiting_games <= 24 + 12
        time.sleep(0.1)
        assert len(agent.agent._uploader._waiting) == waiting_games
        replay.away = False
        replay.wait_for(lambda: len(replay.games) > stored + waiting_games)
    assert agent.status == 0
    assert len({game.key for game in replay.games}) == len(replay.games)


def test_a_search_is_asked_again_when_the_network_was_away():
    asked: list[SearchInputs] = []

    def flaky(inputs: SearchInputs, details: bool = False) -> PolicyOutput:
        asked.append(inputs)
        if len(asked) in (2, 3):
            raise unavailable()
        return uniform(inputs)

    replay = FakeReplay()
    environments = [GAME.make_environments(2)]
    with Running(replay, flaky, environments, max_games=2) as agent:
        assert agent.join() == 0
    assert (asked[1].seed == asked[2].seed).all()
    assert (asked[1].seed == asked[3].seed).all()
    assert len(replay.whole) == 2


def test_told_to_stop_while_the_network_is_away_it_ends_with_what_it_knows():
    away = threading.Event()
    moves = iter(range(10_000))

    def lost(inputs: SearchInputs, details: bool = False) -> PolicyOutput:
        if next(moves) >= 8:
            away.set()
            raise unavailable()
        return uniform(inputs)

    replay = FakeReplay()
    with Running(replay, lost, [GAME.make_environments(32)]) as agent:
        assert away.wait(20)
    assert agent.status == 0
    unfinished = [game for game in replay.games if not game.terminated]
    assert unfinished
    assert {game.final_value for game in unfinished} == {-0.5}  # 0.5 for the one who moved last


def test_games_of_a_lost_environment_are_kept_as_far_as_they_went():
    class Flaky(Environments):
        steps = 0

        def step(self, rows: Any, actions: Any) -> TimeStep:
            self.steps += 1
            if self.steps == 4:
                self.close()
                raise unavailable()
            return super().step(rows, actions)

    replay = FakeReplay()
    with Running(replay, environments=[Flaky(GAME.make_environment, 2)], max_games=4) as agent:
        assert agent.join() == 0
    assert [len(game) for game in replay.games if not game.terminated] == [3, 3]
    assert len(replay.whole) == 2


def test_a_game_that_replay_refuses_is_no_obstacle_for_others():
    replay = FakeReplay()
    uploader = Uploader(replay, room=100)
    histories = list(played(5))
    replay.refuses = lambda game: game.key == histories[2].key
    uploader.put(histories)
    uploader.start()
    assert uploader.flush(10) == 0
    assert [game.key for game in replay.games] == [
        history.key for i, history in enumerate(histories) if i != 2
    ]
    assert uploader.refused == 1
    assert not uploader.failed


def test_what_could_not_be_sent_in_time_is_counted():
    replay = FakeReplay()
    replay.away = True
    uploader = Uploader(replay, room=100)
    uploader.put(played(3))
    uploader.start()
    assert uploader.flush(0.1) == 3


def test_a_server_of_another_game_ends_the_agent():
    def wrong(inputs: SearchInputs, details: bool = False) -> PolicyOutput:
        raise ContractError("network server does not fit: game.name is chess there")

    with Running(FakeReplay(), wrong) as agent:
        assert agent.join() == 1


@pytest.mark.parametrize("call", ["admit", "add"])
def test_what_replay_will_never_answer_ends_the_agent(call: str, caplog):
    """An agent whose thread has ended would wait for ever, and say that it serves."""
    replay = FakeReplay()

    def fail(*_: Any) -> None:
        raise {
            "admit": ServiceError(grpc.StatusCode.UNAUTHENTICATED, "show a token"),
            "add": TypeError("no game"),
        }[call]

    setattr(replay, call, fail)
    with Running(replay) as agent:
        assert agent.join() == 1
    assert agent.serving == [True, False]
    assert {"admit": "admission: show a token", "add": "uploader: no game"}[call] in caplog.text


def test_the_first_search_has_the_temperature_of_the_version_that_is_served():
    asked: list[SearchInputs] = []

    def noting(inputs: SearchInputs, details: bool = False) -> PolicyOutput:
        asked.append(inputs)
        return uniform(inputs)

    table = "self_play.temperatures=[[0, 1.0], [700, 0.25]]"
    config = load_game("tictactoe", overrides=[table]).config
    with Running(FakeReplay(), noting, config=config, max_games=6, version=700) as agent:
        assert agent.join() == 0
    assert asked[0].temperature.tolist() == [0.25] * 3


def test_few_questions_let_many_games_begin():
    replay = FakeReplay()
    lock_steps = []

    def counted(inputs: SearchInputs, details: bool = False) -> PolicyOutput:
        lock_steps.append(1)
        return uniform(inputs)

    with Running(replay, counted, max_games=200) as agent:
        assert agent.join() == 0
    assert replay.questions <= len(lock_steps) + 2


def played(num_games: int) -> Iterator[GameHistory]:
    from muprover.selfplay import play_games

    rng = np.random.default_rng(0)
    return play_games(GAME.make_environments(2), uniform, GAME.config, rng, max_games=num_games)
