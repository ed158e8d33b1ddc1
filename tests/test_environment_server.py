"""The environment server by itself: what fails in it, what ends, and what it frees and counts."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import grpc
import numpy as np
import pytest
from environment_servers import ROWS, SERVE, environment_server, game_of, metric, remote, until
from grpc_health.v1 import health_pb2, health_pb2_grpc

from muprover.environment import Environment, TimeStep
from muprover.services.client import ServiceError
from muprover.services.environment import RemoteEnvironments
from muprover.v1 import environment_pb2_grpc
from muprover.v1.environment_pb2 import PlayRequest, Resets


@pytest.fixture(scope="module")
def tictactoe() -> Iterator[str]:
    with environment_server("tictactoe") as address:
        yield address


def test_a_game_process_that_dies_ends_its_streams_and_is_replaced(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with environment_server("tictactoe", workers=2) as address:
        both = [remote(address, "tictactoe") for _ in range(2)]
        for games in both:
            games.reset(ROWS, ROWS)
        os.kill(game_processes()[0], signal.SIGKILL)
        errors = [caught for games in both if (caught := error_of(games))]
        assert [error.code for error in errors] == [grpc.StatusCode.UNAVAILABLE]
        for games in both:
            games.reset(ROWS, ROWS)
            games.step(ROWS, ROWS)
            games.close()
        assert len(game_processes()) == 2
        assert "ended with status -9" in caplog.text
    assert game_processes() == []


def error_of(games: RemoteEnvironments) -> ServiceError | None:
    try:
        for _ in range(100):  # until it has come through
            games.step(ROWS, ROWS)
            games.reset(ROWS, ROWS)
            time.sleep(0.01)
    except ServiceError as error:
        return error
    return None


def game_processes() -> list[int]:
    """Children of this process that play games."""
    found = []
    for entry in os.listdir("/proc"):
        with contextlib.suppress(OSError, ValueError):
            pid = int(entry)
            with open(f"/proc/{pid}/stat") as stat, open(f"/proc/{pid}/cmdline") as command:
                parent = int(stat.read().rpartition(")")[2].split()[1])
                if parent == os.getpid() and "environment_process" in command.read():
                    found.append(pid)
    return sorted(found)


class Counting(Environment):
    """Goes on for ever; counts the games that exist."""

    alive = 0

    def __init__(self) -> None:
        Counting.alive += 1

    def reset(self, seed: int | None = None) -> TimeStep:
        return TimeStep(np.zeros(1, np.float32), 0.0, 0, np.ones(2, np.bool_), False, False)

    def step(self, action: int) -> TimeStep:
        return self.reset()

    def close(self) -> None:
        Counting.alive -= 1


@pytest.mark.parametrize("way", ["cancel", "half-close", "error", "kill"])
def test_games_are_freed_when_their_stream_ends(way: str) -> None:
    game = game_of(Counting, max_moves=1000)
    with environment_server(game) as address:
        assert Counting.alive == 0
        if way == "kill":
            code = KILLED.format(address=address)
            with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as client:
                assert client.stdout is not None
                client.stdout.readline()
                playing = Counting.alive, metric("muprover_environment_games")
                client.kill()
            assert playing == (5, 5)
        else:
            channel = grpc.insecure_channel(address)
            requests = iter(
                [PlayRequest(rows=range(5), resets=Resets(seeds=range(5)))]
                + ([PlayRequest(rows=[1])] if way == "error" else [])
            )
            call = environment_pb2_grpc.EnvironmentServiceStub(channel).Play(
                requests if way != "cancel" else endless(requests)
            )
            next(call)
            if way == "cancel":
                assert Counting.alive == 5
                call.cancel()
            elif way == "error":
                with pytest.raises(grpc.RpcError, match="neither"):
                    next(call)
        until(lambda: Counting.alive == 0 and metric("muprover_environment_games") == 0)
        assert metric("muprover_environment_streams") == 0


KILLED = """
import grpc, time
from muprover.v1.environment_pb2 import PlayRequest, Resets
from muprover.v1.environment_pb2_grpc import EnvironmentServiceStub
def requests():
    yield PlayRequest(rows=range(5), resets=Resets(seeds=range(5)))
    time.sleep(100)
call = EnvironmentServiceStub(grpc.insecure_channel("{address}")).Play(requests())
next(call)
print("playing", flush=True)
time.sleep(100)
"""


def endless(requests: Iterator[PlayRequest]) -> Iterator[PlayRequest]:
    yield from requests
    time.sleep(5)


def test_a_game_that_fails_ends_its_stream_with_its_words() -> None:
    class Failing(Counting):
        def step(self, action: int) -> TimeStep:
            raise KeyError("no such square")

    with (
        environment_server(game_of(Failing)) as address,
        contextlib.closing(remote(address, game_of(Failing), 2)) as games,
    ):
        games.reset(ROWS[:2], ROWS[:2])
        with pytest.raises(ServiceError, match=r"game tested failed: KeyError: 'no such square'"):
            games.step(ROWS[:2], ROWS[:2])
        games.reset(ROWS[:2], ROWS[:2])


def test_a_game_that_is_not_as_its_settings_say_is_named() -> None:
    game = game_of(Counting, observation_shape=(3,))
    with (
        environment_server(game) as address,
        contextlib.closing(remote(address, game, 1)) as games,
        pytest.raises(ServiceError, match=r"observes float32 \[1\]; its settings say float32 \[3"),
    ):
        games.reset([0], [0])


def test_the_server_answers_health_checks_while_a_game_thinks() -> None:
    class Slow(Counting):
        def step(self, action: int) -> TimeStep:
            time.sleep(1.0)
            return self.reset()

    with environment_server(game_of(Slow)) as address, grpc.insecure_channel(address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        with contextlib.closing(remote(address, game_of(Slow), 1)) as games:
            games.reset([0], [0])
            games._streams[0].send(
                PlayRequest(rows=[0], moves={"actions": [0]})  # type: ignore[arg-type]
            )
            start = time.monotonic()
            for _ in range(20):
                status = health.Check(health_pb2.HealthCheckRequest(), timeout=5).status
                assert status == health_pb2.HealthCheckResponse.SERVING
            assert time.monotonic() - start < 0.9


def test_garbage_at_the_port_and_in_each_call_stops_nothing(tictactoe: str) -> None:
    rng = random.Random(3)
    host, port = tictactoe.split(":")
    for text in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01" * 50, rng.randbytes(5000)):
        with (
            socket.create_connection((host, int(port))) as connection,
            contextlib.suppress(OSError),
        ):
            connection.sendall(text)
    service = "/muprover.v1.EnvironmentService/"
    with grpc.insecure_channel(tictactoe) as channel:
        describe = channel.unary_unary(service + "Describe")
        play = channel.stream_stream(service + "Play")
        unknown = channel.unary_unary(service + "Reset")
        for size in (1, 10, 1000):
            for _ in range(5):
                data = rng.randbytes(size)
                for call in (describe, unknown):
                    with contextlib.suppress(grpc.RpcError):
                        call(data, timeout=5)
                with pytest.raises(grpc.RpcError) as caught:
                    list(play(iter([data]), timeout=5))
                assert caught.value.code() != grpc.StatusCode.DEADLINE_EXCEEDED
    with contextlib.closing(remote(tictactoe, "tictactoe")) as games:
        games.reset(ROWS, ROWS)
    until(lambda: metric("muprover_environment_games") == 0)


def test_metrics_count_what_was_played(tictactoe: str) -> None:
    before = [metric(f"muprover_environment_{name}_total") for name in ("resets", "steps")]
    with contextlib.closing(remote(tictactoe, "tictactoe")) as games:
        games.reset(ROWS, ROWS)
        games.step(ROWS, ROWS)
        games.step(ROWS[:2], ROWS[1:3])
        games.announce(ROWS[:1], [1])
        for action in (3, 2, 6):  # row 0 is won, and begins again
            games.step(ROWS[:1], [action])
        until(lambda: metric("muprover_environment_games") == 6)
    after = [metric(f"muprover_environment_{name}_total") for name in ("resets", "steps")]
    assert [after[0] - before[0], after[1] - before[1]] == [7, 11]
    until(lambda: metric("muprover_environment_streams") == 0)


def test_sigterm_ends_the_server_and_its_processes_in_order() -> None:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-c", SERVE.format(port=port, workers=2)]
    with subprocess.Popen(command, start_new_session=True) as server:
        games = remote(f"localhost:{port}", "tictactoe")
        with contextlib.closing(games):
            games.reset(ROWS, ROWS)
            server.terminate()
            error = error_of(games)
            assert error is not None
            assert error.is_transient
        assert server.wait(20) == 0
        until(lambda: not has_members(server.pid))


def has_members(group: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, 0)
        return True
    return False
