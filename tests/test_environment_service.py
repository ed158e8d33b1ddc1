"""The environment server and its client: the same type and behaviour on both sides of the wire."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import grpc
import numpy as np
import pytest
from environment_servers import ROWS, SERVE, environment_server, metric, remote

from muprover.environment import Environments, IllegalMoveError, TimeStep
from muprover.game import game_names, load_game
from muprover.services.client import ContractError, ServiceError
from muprover.services.environment import RemoteEnvironments
from muprover.v1 import environment_pb2_grpc
from muprover.v1.environment_pb2 import DescribeRequest


@pytest.fixture(scope="module")
def tictactoe() -> Iterator[str]:
    with environment_server("tictactoe") as address:
        yield address


def random_play(games: Environments, num_steps: int) -> list[TimeStep]:
    """Random moves in all games; a game that is over begins again. The same for equal games."""
    rng = np.random.default_rng(1)
    rows = np.arange(len(games))
    now = games.reset(rows, rows)
    steps = [now]
    legal = now.legal_actions.copy()
    for _ in range(num_steps):
        over = ~legal.any(axis=1)
        actions = np.where(legal, rng.random(legal.shape), -1).argmax(axis=1)
        if over.any():
            begun = games.reset(rows[over], rng.integers(1000, size=over.sum()))
            legal[over] = begun.legal_actions
            steps.append(begun)
        if not over.all():
            now = games.step(rows[~over], actions[~over])
            legal[~over] = now.legal_actions
            steps.append(now)
    return steps


def assert_equal_steps(one: list[TimeStep], other: list[TimeStep]) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        for name in TimeStep._fields:
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name), name)
            assert getattr(a, name).dtype == getattr(b, name).dtype, name


@pytest.mark.parametrize("name", game_names())
def test_remote_games_equal_local_ones(name: str) -> None:
    game = load_game(name)
    with (
        environment_server(game) as address,
        contextlib.closing(remote(address, game)) as games,
    ):
        assert len(games) == 6
        assert_equal_steps(random_play(games, 60), random_play(game.make_environments(6), 60))


def test_games_in_processes_equal_those_in_a_thread() -> None:
    local = load_game("random_tictactoe").make_environments(6)
    with (
        environment_server("random_tictactoe", workers=2) as address,
        contextlib.closing(remote(address, "random_tictactoe")) as one,
        contextlib.closing(remote(address, "random_tictactoe")) as other,
    ):
        steps = random_play(local, 20)
        assert_equal_steps(random_play(one, 20), steps)
        assert_equal_steps(random_play(other, 20), steps)


def test_more_games_than_a_stream_may_hold_take_several(
    tictactoe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("muprover.services.environment.MAX_GAMES_PER_STREAM", 4)
    local = load_game("tictactoe").make_environments(10)
    with contextlib.closing(remote(tictactoe, "tictactoe", 10)) as games:
        assert_equal_steps(random_play(games, 30), random_play(local, 30))
        assert metric("muprover_environment_streams") == 3
        order = np.array([9, 0, 5, 4])
        begun = games.reset(order, order)
        assert_equal_steps([begun], [local.reset(order, order)])
        moves = np.array([8, 0, 5, 4])
        assert_equal_steps([games.step(order, moves)], [local.step(order, moves)])


def test_announced_games_begin_as_soon_as_those_before_them_end(
    tictactoe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows 0 and 1 are won at the fifth move, and row 2 goes on."""
    local = load_game("tictactoe").make_environments(3)
    with contextlib.closing(remote(tictactoe, "tictactoe", 3)) as games:
        games.reset(ROWS[:3], ROWS[:3])
        games.announce(ROWS[:3], [7, 8, 9])
        for actions in ([0, 0, 0], [3, 3, 3], [1, 1, 1], [4, 4, 4], [2, 2, 5]):
            games.step(ROWS[:3], actions)
        with monkeypatch.context() as patch:
            patch.setattr(games, "_call", None)  # nobody may be asked
            begun = games.reset([1], [8])
        assert_equal_steps([begun], [local.reset([1], [8])])
        assert_equal_steps([games.step([1], [4])], [local.step([1], [4])])
        other = games.reset([0], [5])  # another seed than announced: asked
        assert_equal_steps([other], [local.reset([0], [5])])
        games.step([2], [2])  # its game still goes on


def test_games_of_an_ended_stream_are_not_begun_ones() -> None:
    with contextlib.ExitStack() as stack:
        address = stack.enter_context(environment_server("tictactoe"))
        games = stack.enter_context(contextlib.closing(remote(address, "tictactoe", 1)))
        games.announce([0], [7])
        games.reset([0], [0])
        for action in (0, 3, 1, 4, 2):
            games.step([0], [action])
        games._disconnect()
        games.reset([0], [7])
        games.step([0], [0])  # of a game that is on the new stream


def test_moves_are_checked_on_this_side_and_change_nothing(tictactoe: str) -> None:
    with contextlib.closing(remote(tictactoe, "tictactoe")) as games:
        games.reset(ROWS, ROWS)
        games.step(ROWS, ROWS)
        for rows, actions, sentence in [
            ([0, 1], [0, 0], "action 0 is illegal in game 0; legal: \\[1, 2, 3, 4, 5, 6, 7, 8\\]"),
            ([0], [9], "action 9 is illegal"),
            ([0], [-1], "action -1 is illegal"),
            ([6], [0], "no game 6: there are 6"),
            ([-1], [0], "no game -1"),
            ([2, 2], [0, 1], "named once"),
            ([], [], "at least one game"),
            ([0, 1], [3], "one action for each of 2 rows"),
        ]:
            with pytest.raises(IllegalMoveError, match=sentence):
                games.step(np.array(rows, int), np.array(actions, int))
        assert games.step(np.array([1]), np.array([0])).observation[0, 0, 0, 1] == 1


def test_what_comes_over_the_wire_is_checked_again(tictactoe: str) -> None:
    with contextlib.closing(remote(tictactoe, "tictactoe")) as games:
        games.reset(ROWS, ROWS)
        assert games._legal is not None
        games._legal[:] = True  # a client that does not look
        games.step(ROWS, ROWS)
        games._legal[:] = True
        with pytest.raises(ServiceError, match="action 3 is illegal in game 3") as caught:
            games.step(ROWS[3:], ROWS[3:])
        assert caught.value.code == grpc.StatusCode.INVALID_ARGUMENT
        assert not caught.value.is_transient
        games.reset(ROWS, ROWS)  # on a new stream


def test_another_game_is_refused_with_the_difference(tictactoe: str) -> None:
    with pytest.raises(ContractError, match=r"game.num_actions is 9 there, 7 here"):
        remote(tictactoe, "connect_four")


def test_other_numbers_of_training_are_no_difference(tictactoe: str) -> None:
    game = load_game("tictactoe", overrides=["training.learning_rate=0.5", "game.max_moves=3"])
    with contextlib.closing(remote(tictactoe, game)) as games:
        games.reset(ROWS, ROWS)
        for action in (0, 1):
            assert not games.step(ROWS, np.full(6, action)).truncated.any()
        last = games.step(ROWS, np.full(6, 2))
        assert last.truncated.all()
        assert not last.legal_actions.any()


def test_nobody_there_is_said_within_the_deadline() -> None:
    start = time.monotonic()
    with pytest.raises(ServiceError, match=r"localhost:1: not reached within 0.3 s") as caught:
        RemoteEnvironments("localhost:1", load_game("tictactoe").config, 2, timeout=0.3)
    assert time.monotonic() - start < 5
    assert caught.value.is_transient


def test_a_client_waits_for_a_server_that_starts_later() -> None:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    with subprocess.Popen([sys.executable, "-c", SERVE.format(port=port, workers=1)]) as server:
        with contextlib.closing(remote(f"localhost:{port}", "tictactoe")) as games:
            assert not games.reset(ROWS, ROWS).observation.any()
        server.terminate()
        assert server.wait(20) == 0


def test_a_lost_server_is_an_error_and_a_reset_connects_anew() -> None:
    with environment_server("tictactoe") as address:
        games = remote(address, "tictactoe")
        games.reset(ROWS, ROWS)
    with contextlib.closing(games):
        with pytest.raises(ServiceError) as caught:
            games.step(ROWS, ROWS)
        assert caught.value.is_transient
        with pytest.raises(IllegalMoveError, match="was never started"):
            games.step(ROWS, ROWS)
        with environment_server("tictactoe", port=int(address.split(":")[1])):
            games.reset(ROWS, ROWS)
            games.step(ROWS, ROWS)


def test_describe_states_the_contract(tictactoe: str) -> None:
    with grpc.insecure_channel(tictactoe) as channel:
        stub = environment_pb2_grpc.EnvironmentServiceStub(channel)
        described = stub.Describe(DescribeRequest(), timeout=5)
    assert dict(described.contract) == load_game("tictactoe").config.contract
    assert described.contract["game.observation_shape"] == "[3, 3, 2]"
    assert described.max_games_per_stream == 1024
