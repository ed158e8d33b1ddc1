"""`environment check` finds exactly what is wrong with servers that are broken on purpose."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from environment_servers import environment_server, game_of, plain_server

from muprover.environment import Environment, Environments, TimeStep
from muprover.game import load_game
from muprover.games.tictactoe import TicTacToe
from muprover.services.environment_check import check, print_check
from muprover.services.environment_streams import RequestError, Streams
from muprover.tensors import from_tensor, to_tensor
from muprover.v1.environment_pb2 import DescribeResponse, PlayRequest, PlayResponse
from muprover.v1.environment_pb2_grpc import EnvironmentServiceServicer

GAME = load_game("tictactoe")


class Honest(EnvironmentServiceServicer):
    """A server of tic-tac-toe that keeps the protocol, to be broken in one respect."""

    contract: dict[str, str] = dict(GAME.config.contract)  # noqa: RUF012
    game = GAME

    def Describe(self, request: Any, context: Any) -> DescribeResponse:
        return DescribeResponse(contract=self.contract, max_games_per_stream=8)

    def Play(self, requests: Iterator[PlayRequest], context: Any) -> Iterator[PlayResponse]:
        streams = self.streams()
        for request in requests:
            try:
                yield from self.answers(request, streams.answer(0, request))
            except RequestError as error:
                self.refuse(error, context)

    def streams(self) -> Streams:
        return Streams(self.game, 8)

    def answers(self, request: PlayRequest, answer: PlayResponse) -> Iterator[PlayResponse]:
        yield answer

    def refuse(self, error: RequestError, context: Any) -> None:
        context.abort(error.code, str(error))


def rules_broken(servicer: Any, **options: Any) -> list[str]:
    with plain_server(servicer) as address:
        findings = check(address, **options)
    for finding in findings:
        assert "; got " in str(finding)
        assert "the protocol wants" in str(finding)
    return [finding.rule for finding in findings]


def test_nothing_is_found_in_servers_that_keep_the_protocol() -> None:
    assert rules_broken(Honest()) == []
    assert rules_broken(Honest(), game=GAME) == []
    with environment_server("random_tictactoe") as address:
        assert check(address, load_game("random_tictactoe")) == []


def described(**facts: str | None) -> Callable[[], Honest]:
    contract = Honest.contract | {f"game.{name}": text for name, text in facts.items()}

    class Describing(Honest):
        def __init__(self) -> None:
            self.contract = {path: text for path, text in contract.items() if text is not None}

    return Describing


@pytest.mark.parametrize(
    ("servicer", "rule"),
    [
        (described(num_actions=None), "game.num_actions"),
        (described(num_actions="nine"), "game.num_actions"),
        (described(num_actions="9.0"), "game.num_actions"),
        (described(num_players="3"), "game.num_players"),
        (described(observation_shape="3x3x2"), "game.observation_shape"),
        (described(observation_shape="[3,3,2]"), "game.observation_shape"),
        (described(observation_shape="[]"), "game.observation_shape"),
        (described(observation_dtype="float64"), "game.observation_dtype"),
        (EnvironmentServiceServicer, "describe"),
    ],
)
def test_what_describe_gets_wrong(servicer: Callable[[], Any], rule: str) -> None:
    assert rules_broken(servicer()) == [rule]


def test_a_server_of_another_game_is_told_each_difference() -> None:
    rules = rules_broken(Honest(), game=load_game("connect_four"))
    assert rules == ["game.name", "game.observation_shape", "game.num_actions"]


def edited(name: str, edit: Callable[[Any, bool], Any]) -> Callable[[], Honest]:
    """A server that changes one tensor of its answers; `edit` is told whether to a reset."""

    class Editing(Honest):
        def answers(self, request: PlayRequest, answer: PlayResponse) -> Iterator[PlayResponse]:
            array = edit(from_tensor(getattr(answer, name), name), request.HasField("resets"))
            getattr(answer, name).CopyFrom(to_tensor(array))
            yield answer

    return Editing


class Torn(Honest):
    def answers(self, request: PlayRequest, answer: PlayResponse) -> Iterator[PlayResponse]:
        answer.reward.data += b"\0"
        yield answer


class Empty(Honest):
    def answers(self, request: PlayRequest, answer: PlayResponse) -> Iterator[PlayResponse]:
        yield PlayResponse()


class NextMoved(Honest):
    """The games that begin with `next_seeds` are told wrong."""

    def answers(self, request: PlayRequest, answer: PlayResponse) -> Iterator[PlayResponse]:
        if answer.HasField("next"):
            answer.next.to_play.CopyFrom(to_tensor(np.ones(1, np.int32)))
        yield answer


class NextTooEarly(Honest):
    def answers(self, request: PlayRequest, answer: PlayResponse) -> Iterator[PlayResponse]:
        if request.moves.next_seeds:
            answer.next.reward.CopyFrom(to_tensor(np.zeros(0, np.float32)))
        yield answer


class NextForgotten(Honest):
    """Says where the next game stands, but has not begun it."""

    def streams(self) -> Streams:
        self.games = super().streams()
        return self.games

    def answers(self, request: PlayRequest, answer: PlayResponse) -> Iterator[PlayResponse]:
        if answer.HasField("next"):
            self.games.close(0)
        yield answer


class Unaware(Honest):
    """Knows nothing of `next_seeds`."""

    def answers(self, request: PlayRequest, answer: PlayResponse) -> Iterator[PlayResponse]:
        answer.ClearField("next")
        yield answer


@pytest.mark.parametrize(
    ("servicer", "rules"),
    [
        (NextMoved, ["next_seeds"]),
        (NextTooEarly, ["next_seeds"]),
        (NextForgotten, ["next_seeds"]),
        (Unaware, []),
        (edited("observation", lambda a, _: a.astype(np.float64)), ["observation"]),
        (edited("observation", lambda a, _: a.reshape(-1, 9, 2)), ["observation"]),
        (edited("observation", lambda a, _: a[:0]), ["observation"]),
        (edited("observation", lambda a, _: a + np.inf), ["observation"]),
        (edited("reward", lambda a, _: a + np.nan), ["reward"]),
        (edited("reward", lambda a, reset: a + np.float32(reset)), ["reward"]),
        (edited("reward", lambda a, _: a.astype(np.int32)), ["reward"]),
        (edited("to_play", lambda a, _: a * 0), ["to_play"]),
        (edited("to_play", lambda a, _: a + 1), ["to_play"]),
        (edited("to_play", lambda a, _: a.astype(np.int64)), ["to_play"]),
        (edited("legal_actions", lambda a, _: a & False), ["legal_actions"]),
        (edited("legal_actions", lambda a, _: a | (a.sum() == 0)), ["legal_actions"]),
        (edited("legal_actions", lambda a, _: a[:, :8]), ["legal_actions"]),
        (edited("terminated", lambda a, _: a.astype(np.uint8)), ["terminated"]),
        (edited("truncated", lambda a, _: a[0]), ["truncated"]),
        (Torn, ["reward"]),
        (Empty, list(TimeStep._fields)),
    ],
)
def test_what_single_answers_get_wrong(servicer: Callable[[], Any], rules: list[str]) -> None:
    assert rules_broken(servicer()) == rules


class Endless(Environment):
    def reset(self, seed: int | None = None) -> TimeStep:
        return TimeStep(np.zeros(1, np.float32), 0.0, 0, np.ones(2, np.bool_), False, False)

    def step(self, action: int) -> TimeStep:
        return self.reset()


class DoublyEnded(Endless):
    def step(self, action: int) -> TimeStep:
        return self.reset()._replace(
            terminated=True, truncated=True, legal_actions=np.zeros(2, np.bool_)
        )


class OverAtOnce(Endless):
    def reset(self, seed: int | None = None) -> TimeStep:
        return super().reset()._replace(terminated=True)


def test_of_two_endings_our_server_tells_the_one_by_the_rules() -> None:
    with environment_server(game_of(DoublyEnded)) as address:
        assert not list(check(address, game_of(DoublyEnded)))


@pytest.mark.parametrize("rules_of", [Endless, OverAtOnce])
def test_endings_that_are_none(rules_of: type[Environment]) -> None:
    with environment_server(game_of(rules_of, max_moves=1_000_000)) as address:
        (finding,) = check(address, game_of(rules_of, max_moves=20))
    assert finding.rule == "ending"
    if rules_of is Endless:
        assert finding.sent == "20 legal actions after a reset"
        assert finding.wanted == "it to end after 20 moves at most"


class Unseeded(TicTacToe):
    """Has an opening of its own that no seed decides."""

    games = 0

    def reset(self, seed: int | None = None) -> TimeStep:
        super().reset(seed)
        Unseeded.games += 1
        super().step(Unseeded.games % 9)
        return super().step((Unseeded.games + 1) % 9)


class Unwilling(TicTacToe):
    """Begins anew only when its game is over."""

    now: TimeStep | None = None

    def reset(self, seed: int | None = None) -> TimeStep:
        if self.now is None or self.now.terminated:
            self.now = super().reset(seed)
        return self.now

    def step(self, action: int) -> TimeStep:
        self.now = super().step(action)
        return self.now


def with_rules(rules: type[Environment]) -> Callable[[], Honest]:
    class Server(Honest):
        game = game_of(rules, **GAME.config.game.model_dump())

    return Server


class OneGame(Honest):
    """All rows of a stream are the same game."""

    def streams(self) -> Streams:
        class Shared(Environments):
            def _game(self, row: int) -> Environment:
                return super()._game(0)

            def _step_games(self, rows: Any, actions: Any) -> TimeStep:
                return super()._step_games(rows * 0, actions)

        streams = super().streams()
        streams._streams[0] = Shared(TicTacToe, 8)
        return streams


class LastStreamOnly(Honest):
    """Forgets the games of a stream when another begins."""

    current: Streams

    def Play(self, requests: Iterator[PlayRequest], context: Any) -> Iterator[PlayResponse]:
        self.current = Streams(self.game, 8)
        for request in requests:
            try:
                yield self.current.answer(0, request)
            except RequestError as error:
                self.refuse(error, context)


class Sorted(Honest):
    """Answers in the order of rows, not of the request."""

    def answers(self, request: PlayRequest, answer: PlayResponse) -> Iterator[PlayResponse]:
        order = np.argsort(request.rows)
        for name in TimeStep._fields:
            tensor = getattr(answer, name)
            tensor.CopyFrom(to_tensor(from_tensor(tensor, name)[order]))
        yield answer


class OneAtATime(Honest):
    """Answers a batch row by row."""

    def answers(self, request: PlayRequest, answer: PlayResponse) -> Iterator[PlayResponse]:
        if len(request.rows) > 1:
            raise RequestError(grpc.StatusCode.UNIMPLEMENTED, "one at a time")
        yield answer


@pytest.mark.parametrize(
    ("servicer", "rule"),
    [
        (with_rules(Unseeded), "seeds"),
        (with_rules(Unwilling), "resets"),
        (OneGame, "rows"),
        (LastStreamOnly, "streams"),
        (Sorted, "batches"),
        (OneAtATime, "batches"),
    ],
)
def test_games_that_disturb_each_other(servicer: Callable[[], Any], rule: str) -> None:
    assert rules_broken(servicer()) == [rule]


def accepting(sentence: str) -> Callable[[], Honest]:
    """A server that answers anything instead of refusing with `sentence`."""

    class Accepting(Honest):
        def Play(self, requests: Iterator[PlayRequest], context: Any) -> Iterator[PlayResponse]:
            streams = self.streams()
            for request in requests:
                try:
                    yield streams.answer(0, request)
                except RequestError as error:
                    if sentence not in str(error):
                        self.refuse(error, context)
                    yield PlayResponse()

    return Accepting


def refusing(code: grpc.StatusCode, sentence: str) -> Callable[[], Honest]:
    class Refusing(Honest):
        def refuse(self, error: RequestError, context: Any) -> None:
            context.abort(code, sentence)

    return Refusing


REFUSALS = [
    "illegal actions",
    "finished games",
    "unknown rows",
    "repeated rows",
    "malformed requests",
]


@pytest.mark.parametrize(
    ("servicer", "rules"),
    [
        (accepting("is illegal"), REFUSALS[:1]),
        (accepting("is over or"), REFUSALS[1:3]),
        (accepting("no game"), REFUSALS[2:3]),
        (accepting("named once"), REFUSALS[3:4]),
        (accepting("a seed of at least 0 for each"), REFUSALS[4:]),
        (accepting("given neither"), REFUSALS[4:]),
        (refusing(grpc.StatusCode.INTERNAL, "something is wrong"), REFUSALS),
        (refusing(grpc.StatusCode.INVALID_ARGUMENT, ""), REFUSALS),
    ],
)
def test_what_must_be_refused(servicer: Callable[[], Any], rules: list[str]) -> None:
    assert rules_broken(servicer()) == rules


class Twice(Honest):
    def answers(self, request: PlayRequest, answer: PlayResponse) -> Iterator[PlayResponse]:
        yield answer
        if request.HasField("moves") and from_tensor(answer.terminated, "terminated").any():
            yield answer


class Silent(Honest):
    def answers(self, request: PlayRequest, answer: PlayResponse) -> Iterator[PlayResponse]:
        time.sleep(3)
        yield answer


class Quitting(Honest):
    def Play(self, requests: Iterator[PlayRequest], context: Any) -> Iterator[PlayResponse]:
        yield Streams(self.game, 8).answer(0, next(requests))


class Failing(Honest):
    def answers(self, request: PlayRequest, answer: PlayResponse) -> Iterator[PlayResponse]:
        raise RequestError(grpc.StatusCode.INTERNAL, "the board fell over")
        yield answer


@pytest.mark.parametrize(
    ("servicer", "came"),
    [
        (Twice, "1 more answers than requests"),
        (Silent, "DEADLINE_EXCEEDED"),
        (Quitting, "the call's end with OK"),
        (Failing, "the call's end with INTERNAL (the board fell over)"),
    ],
)
def test_a_request_gets_exactly_one_answer(servicer: Callable[[], Any], came: str) -> None:
    with plain_server(servicer()) as address:
        (finding,) = check(address, timeout=1.5)
    assert finding.rule == "answers"
    assert came in finding.came


class Slow(Honest):
    """Thinks for a while, in its first game."""

    moves = 0

    def answers(self, request: PlayRequest, answer: PlayResponse) -> Iterator[PlayResponse]:
        Slow.moves += 1
        if Slow.moves <= 5:
            time.sleep(0.7)
        yield answer


def test_a_game_may_take_longer_than_an_answer() -> None:
    with plain_server(Slow()) as address:
        assert check(address, timeout=3) == []


def test_nobody_there_is_a_finding() -> None:
    (finding,) = check("localhost:1", timeout=0.3)
    assert finding.rule == "describe"
    assert "DEADLINE_EXCEEDED" in finding.came


def test_findings_are_printed_as_sentences(capsys: pytest.CaptureFixture[str]) -> None:
    with plain_server(edited("to_play", lambda a, _: a * 0)()) as address:
        assert not print_check(address)
    assert "to_play twice in a row" in capsys.readouterr().out.replace("to_play 0", "to_play")
    with plain_server(Honest()) as address:
        assert print_check(address)
    assert "keeps the protocol" in capsys.readouterr().out
