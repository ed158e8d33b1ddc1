"""Limits: clients that misbehave, while a good one measures that it is served on."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import logging
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from bare_servers import bare_server
from environment_servers import environment_server
from grpc_health.v1 import health_pb2, health_pb2_grpc
from model_sources import write_version
from prometheus_client import REGISTRY
from replay_games import ReplayThread, free_port, make_game, make_games

from muprover.game import load_game
from muprover.replay.commits import GroupCommit
from muprover.replay.durable import Added
from muprover.replay.waiting import Turns, WaitClock
from muprover.replay.wire import game_to_proto
from muprover.services import (
    environment,
    health,
    health_servicers,
    limits,
    metrics_port,
    models,
    replay,
    server,
)
from muprover.services.client import ServiceError, open_channel
from muprover.services.common import ALIVE, FEWER, SERVER_OPTIONS
from muprover.services.environment import RemoteEnvironments
from muprover.services.limits import Places, RequestError, allow_open_files
from muprover.services.models import ModelPort
from muprover.services.remote_replay import RemoteReplayBuffer
from muprover.services.server import Server, ThreadedServer, start_metrics
from muprover.v1 import (
    environment_pb2_grpc,
    models_pb2,
    models_pb2_grpc,
    replay_pb2,
    replay_pb2_grpc,
)

EXHAUSTED, ABORTED = grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.ABORTED
SERVED_SECONDS = 40.0  # in which a good client has its answer, on a machine that does much else
SERVING = health_pb2.HealthCheckResponse.SERVING


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.02)


@contextlib.contextmanager
def good_agent(address: str) -> Iterator[Callable[[], float]]:
    """An agent with two games; called, it plays a move of both and tells the seconds it took."""
    game = load_game("tictactoe")
    with contextlib.closing(RemoteEnvironments(address, game.config, 2)) as environments:

        def play() -> float:
            start = time.monotonic()
            environments.reset([0, 1], [1, 2])
            environments.step([0, 1], [4, 0])
            return time.monotonic() - start

        play()
        yield play


class Silent:
    """An iterator of requests that never come."""

    def __init__(self) -> None:
        self._end = threading.Event()

    def __iter__(self) -> Silent:
        return self

    def __next__(self) -> Any:
        self._end.wait()
        raise StopIteration

    def end(self) -> None:
        self._end.set()


def open_streams() -> float:
    return REGISTRY.get_sample_value("muprover_environment_streams") or 0.0


def test_streams_that_say_nothing_end_and_disturb_nobody(monkeypatch):
    monkeypatch.setattr(limits, "FIRST_SECONDS", 2.0)
    with environment_server("tictactoe") as address, good_agent(address) as play:
        before, silent = open_streams(), Silent()
        with open_channel(address) as channel:
            stub = environment_pb2_grpc.EnvironmentServiceStub(channel)
            calls = [stub.Play(silent) for _ in range(100)]
            assert play() < SERVED_SECONDS
            assert {call.code() for call in calls} == {ABORTED}
            assert "said nothing for 2 s" in calls[0].details()
            silent.end()
        until(lambda: open_streams() == before)
        assert play() < SERVED_SECONDS


def test_a_stream_may_pause_longer_once_it_has_spoken(monkeypatch):
    monkeypatch.setattr(limits, "FIRST_SECONDS", 0.2)
    with environment_server("tictactoe") as address, good_agent(address) as play:
        time.sleep(0.5)
        play()


def test_more_streams_or_games_than_a_server_holds_are_refused(monkeypatch):
    monkeypatch.setattr(environment, "MAX_STREAMS", 2)
    monkeypatch.setattr(environment, "MAX_GAMES", 5)
    config = load_game("tictactoe").config
    with environment_server("tictactoe") as address, good_agent(address) as play:
        other, third = (RemoteEnvironments(address, config, 4) for _ in range(2))
        with contextlib.closing(other), contextlib.closing(third):
            with pytest.raises(ServiceError, match="holds 2 games and at most 5") as error:
                other.reset(np.arange(4), np.arange(4))
            assert error.value.is_transient
            other.reset([0, 1, 2], [0, 1, 2])  # there is room for these
            with pytest.raises(ServiceError, match="holds 2 streams and at most 2"):
                third.reset([0], [0])
            other.close()
            until(lambda: _succeeds(lambda: third.reset([0, 1, 2], [0, 1, 2])))
        assert play() < SERVED_SECONDS


def _succeeds(call: Callable[[], Any], failure: type[Exception] = ServiceError) -> bool:
    with contextlib.suppress(failure):
        call()
        return True
    return False


def test_who_does_not_read_answers_makes_room_for_who_does(tmp_path, monkeypatch):
    """Four who ask for samples and take none have all places; one who does both gets theirs."""
    monkeypatch.setattr(limits, "READING_SECONDS", 3.0)
    monkeypatch.setattr(replay, "MAX_SAMPLE_STREAMS", 4)
    with ReplayThread(tmp_path, observation_shape=(1000,)) as kept:
        good = RemoteReplayBuffer(kept.address, kept.config)
        rng = np.random.default_rng(0)
        good.add(make_games(kept.config, [40] * 8, rng))
        request = replay_pb2.SampleRequest(batch_size=500)  # 2 MB in an answer
        with contextlib.closing(good), open_channel(kept.address) as channel:
            stub = replay_pb2_grpc.ReplayServiceStub(channel)
            calls = [stub.Sample(iter([request] * 50), timeout=240) for _ in range(4)]
            until(lambda: good.stats().sampled_positions >= 4 * 500)
            start = time.monotonic()
            good.add(make_game(kept.config, 10, rng))
            with contextlib.closing(good.sample(8)) as batches:
                assert len(next(batches).weight) == 8
            assert time.monotonic() - start < SERVED_SECONDS
            assert len(calls) == 4


def test_batches_that_nobody_takes_are_bounded_in_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(replay, "MAX_UNREAD_BYTES", 20_000)
    with ReplayThread(tmp_path) as kept, open_channel(kept.address) as channel:
        stub = replay_pb2_grpc.ReplayServiceStub(channel)
        game = game_to_proto(make_game(kept.config, 10, np.random.default_rng(0)))
        stub.Add(replay_pb2.AddRequest(games=[game]), timeout=60)
        for _ in range(2):  # what was taken makes room again
            sample = replay_pb2.SampleRequest(batch_size=40)
            assert len(list(stub.Sample(iter([sample] * 3), timeout=60))) == 3
            with pytest.raises(grpc.RpcError) as error:
                list(stub.Sample(iter([replay_pb2.SampleRequest(batch_size=300)]), timeout=60))
            assert error.value.code() == EXHAUSTED
            assert "bytes of batches that nobody has taken" in error.value.details()


def test_games_that_wait_for_the_disk_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(replay, "MAX_WAITING_BYTES", 100)
    with ReplayThread(tmp_path) as kept, open_channel(kept.address) as channel:
        stub = replay_pb2_grpc.ReplayServiceStub(channel)
        game = game_to_proto(make_game(kept.config, 10, np.random.default_rng(0)))
        with pytest.raises(grpc.RpcError) as error:
            stub.Add(replay_pb2.AddRequest(games=[game]), timeout=60)
        assert error.value.code() == EXHAUSTED
        assert "bytes of games that wait for the disk and at most 100" in error.value.details()


def test_streams_of_samples_that_ask_for_nothing_hold_no_place(tmp_path, monkeypatch):
    monkeypatch.setattr(replay, "MAX_SAMPLE_STREAMS", 2)
    monkeypatch.setattr(replay, "SAMPLE_SILENCE_SECONDS", 5.0)
    with ReplayThread(tmp_path) as kept, open_channel(kept.address) as channel:
        stub = replay_pb2_grpc.ReplayServiceStub(channel)
        game = game_to_proto(make_game(kept.config, 10, np.random.default_rng(0)))
        stub.Add(replay_pb2.AddRequest(games=[game]), timeout=60)
        silent = Silent()
        mute = [stub.Sample(silent) for _ in range(4)]
        ask = [replay_pb2.SampleRequest(batch_size=4)]
        assert len(list(stub.Sample(iter(ask), timeout=SERVED_SECONDS))) == 1

        once = [stub.Sample(itertools.chain(ask, silent)) for _ in range(2)]  # then they pause
        assert [next(call).weight.shape for call in once] == [[4], [4]]
        with pytest.raises(grpc.RpcError) as error:
            list(stub.Sample(iter(ask), timeout=SERVED_SECONDS))
        assert "holds 2 streams of samples and at most 2" in error.value.details()
        assert {call.code() for call in once} == {ABORTED}
        assert len(list(stub.Sample(iter(ask), timeout=SERVED_SECONDS))) == 1
        silent.end()
        assert len(mute) == 4


def test_a_trainer_that_works_longer_than_a_stream_may_be_silent_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(replay, "SAMPLE_SILENCE_SECONDS", 0.3)
    with ReplayThread(tmp_path) as kept:
        trainer = RemoteReplayBuffer(kept.address, kept.config)
        with contextlib.closing(trainer):
            trainer.add(make_games(kept.config, [20] * 4, np.random.default_rng(0)))
            with contextlib.closing(trainer.sample(8, prefetch=1)) as batches:
                for _ in range(3):
                    assert len(next(batches).weight) == 8
                    time.sleep(1.5)


def test_games_of_a_restore_and_a_backup_are_few_at_a_time(tmp_path, monkeypatch):
    """64 of them would be more than may wait for the disk."""
    monkeypatch.setattr(replay, "BYTES_AT_ONCE", 2_000)
    monkeypatch.setattr(replay, "MAX_WAITING_BYTES", 10_000)
    with (
        ReplayThread(tmp_path) as kept,
        contextlib.closing(RemoteReplayBuffer(kept.address, kept.config)) as client,
    ):
        games = make_games(kept.config, [10] * 60, np.random.default_rng(0))
        messages = [game_to_proto(game) for game in games]
        assert sum(message.ByteSize() for message in messages) > 2 * 10_000
        assert client.restore(games) == (60, 0)
        assert len(list(client.backup())) == 60
        rest = iter(messages)
        some = replay.next_games(rest)
        assert 2_000 <= sum(game.ByteSize() for game in some) < 4_000
        assert len(some) + len(list(rest)) == 60


def test_games_whose_caller_has_gone_do_not_wait_for_a_disk_that_hangs():
    class Disk:
        """A replay whose first write takes until it is released."""

        def __init__(self) -> None:
            self.written: list[Any] = []
            self.begun, self.released = threading.Event(), threading.Event()

        def add(self, requests: Any) -> list[Added]:
            self.begun.set()
            self.released.wait(60)
            self.written += requests
            return [Added([], [], 0)] * len(requests)

    async def on_change() -> None: ...

    async def main() -> list[Any]:
        disk = Disk()
        commits = GroupCommit(disk, on_change)
        writing = asyncio.create_task(commits.run())
        first = asyncio.create_task(commits.add(["first"]))
        await asyncio.to_thread(disk.begun.wait, 60)
        leaving, staying = (asyncio.create_task(commits.add([n])) for n in ("second", "third"))
        await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.wait([leaving])
        disk.released.set()
        await asyncio.gather(first, staying)
        writing.cancel()
        await commits.close()
        return disk.written

    assert asyncio.run(main()) == [["first"], ["third"]]


@contextlib.contextmanager
def threaded_server() -> Iterator[str]:
    with bare_server(lambda: ThreadedServer([], 0, "localhost")) as port:
        yield f"localhost:{port}"


def test_calls_that_never_send_their_request_leave_threads_for_others(monkeypatch):
    """Each holds a thread of a `ThreadedServer`; one client (on `localhost` it has two connections)
    does not get them all."""
    assert 2 * FEWER["grpc.max_concurrent_streams"] <= server.MAX_THREADS
    fewer = dict(server.THREADED_OPTIONS) | {"grpc.max_concurrent_streams": 8}
    monkeypatch.setattr(server, "THREADED_OPTIONS", list(fewer.items()))
    monkeypatch.setattr(server, "MAX_THREADS", 18)
    with threaded_server() as address, open_channel(address) as bad:
        silent = Silent()
        check = bad.stream_unary("/grpc.health.v1.Health/Check")
        calls = [check.future(silent) for _ in range(40)]
        time.sleep(1.0)
        own = [("grpc.use_local_subchannel_pool", 1)]  # a connection of its own
        with grpc.insecure_channel(address, options=own) as channel:
            request = health_pb2.HealthCheckRequest(service=ALIVE)
            check = health_pb2_grpc.HealthStub(channel).Check
            assert check(request, timeout=SERVED_SECONDS).status == SERVING
        for call in calls:
            call.cancel()
        silent.end()


def test_connections_that_say_nothing_are_closed_and_disturb_nobody(monkeypatch):
    quick = dict(SERVER_OPTIONS) | {"grpc.server_handshake_timeout_ms": 1000}
    monkeypatch.setattr(server, "SERVER_OPTIONS", list(quick.items()))
    with environment_server("tictactoe") as address, good_agent(address) as play:
        port = int(address.rpartition(":")[2])
        mute = [socket.create_connection(("127.0.0.1", port)) for _ in range(200)]
        assert play() < SERVED_SECONDS
        for connection in mute:
            connection.settimeout(60)
            with contextlib.suppress(ConnectionResetError):
                while connection.recv(1 << 16):  # the server's settings, then the end
                    pass
            connection.close()
        assert play() < SERVED_SECONDS


AGENT = """
import sys, time
from muprover.game import load_game
from muprover.services.environment import RemoteEnvironments
games = RemoteEnvironments(sys.argv[1], load_game("tictactoe").config, 3)
games.reset([0, 1, 2], [0, 1, 2])
print("plays", flush=True)
time.sleep(600)
"""


def test_the_games_of_a_client_that_is_gone_without_a_word_are_freed(monkeypatch):
    """It is stopped (SIGSTOP): its connection stays, but nobody answers on it."""
    quick = {"grpc.keepalive_time_ms": 1000, "grpc.http2.ping_timeout_ms": 5000}
    monkeypatch.setattr(server, "SERVER_OPTIONS", list((dict(SERVER_OPTIONS) | quick).items()))
    with environment_server("tictactoe") as address, good_agent(address) as play:
        before = open_streams()
        command = [sys.executable, "-c", AGENT, address]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as agent:
            try:
                assert agent.stdout is not None
                assert agent.stdout.readline() == b"plays\n"
                time.sleep(3.0)  # some pings are answered
                assert open_streams() == before + 1
                agent.send_signal(signal.SIGSTOP)
                until(lambda: open_streams() == before)
            finally:
                agent.kill()
        assert play() < SERVED_SECONDS


def test_with_all_files_open_those_who_are_in_are_served_and_others_later(tmp_path):
    port, log = free_port(), tmp_path / "log"
    options = f"--game tictactoe --host localhost --port {port}"
    command = f"ulimit -n 64; exec {sys.executable} -m muprover.cli environment {options}"
    with log.open("wb") as file, subprocess.Popen(["bash", "-c", command], stderr=file) as process:
        try:
            with good_agent(f"localhost:{port}") as play:
                assert "only 64 open files are allowed here" in log.read_text()
                crowd = [socket.create_connection(("127.0.0.1", port)) for _ in range(100)]
                assert play() < SERVED_SECONDS
                for connection in crowd:
                    connection.close()
            with good_agent(f"localhost:{port}") as play:  # a new connection
                assert play() < 2 * SERVED_SECONDS
        finally:
            process.terminate()


def test_metrics_are_told_while_others_say_nothing(monkeypatch):
    monkeypatch.setattr(metrics_port, "SILENCE_SECONDS", 1.0)
    port = start_metrics(0, "localhost")
    crowd = [socket.create_connection(("127.0.0.1", port)) for _ in range(100)]
    page = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=SERVED_SECONDS)
    assert b"python_info" in page.read()
    for connection in crowd:
        connection.settimeout(60)
        assert connection.recv(1) == b""
        connection.close()


def channel_to(port: int) -> grpc.Channel:
    return open_channel(f"localhost:{port}")


def watchers(channel: grpc.Channel, count: int) -> list[Any]:
    """That many, each of which has been told something."""
    request = health_pb2.HealthCheckRequest(service=ALIVE)
    calls = [health_pb2_grpc.HealthStub(channel).Watch(request) for _ in range(count)]
    assert [next(call).status for call in calls] == [SERVING] * count
    return calls


def test_watchers_of_health_are_bounded(monkeypatch):
    monkeypatch.setattr(health_servicers, "MAX_WATCHERS", 3)
    with bare_server(lambda: Server([], 0, "localhost")) as port, channel_to(port) as channel:
        calls = watchers(channel, 3)
        with pytest.raises(grpc.RpcError) as error:
            watchers(channel, 1)
        assert error.value.code() == EXHAUSTED
        assert "watchers of its health" in error.value.details()
        calls[0].cancel()
        until(lambda: _succeeds(lambda: watchers(channel, 1), grpc.RpcError))
        for call in calls:
            call.cancel()


def test_calls_of_a_health_port_are_bounded(monkeypatch):
    monkeypatch.setattr(health, "MAX_CALLS", 3)
    served = health.HealthPort(0, "localhost")
    with contextlib.closing(served), channel_to(served.port) as channel:
        calls = watchers(channel, 3)
        with pytest.raises(grpc.RpcError) as error:
            watchers(channel, 1)
        assert error.value.code() == EXHAUSTED
        for call in calls:
            call.cancel()


def test_reflection_ends_when_nobody_asks_anything(monkeypatch):
    monkeypatch.setattr(limits, "FIRST_SECONDS", 1.0)
    path = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    with bare_server(lambda: Server([], 0, "localhost")) as port, channel_to(port) as channel:
        silent = Silent()
        call = channel.stream_stream(path)(silent, timeout=SERVED_SECONDS)
        assert call.code() == ABORTED
        silent.end()
        [services] = channel.stream_stream(path)(iter([b":\x01*"]), timeout=SERVED_SECONDS)
        assert b"grpc.health.v1.Health" in services


def test_who_does_not_read_a_version_does_not_fetch_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "READING_SECONDS", 5.0)
    monkeypatch.setattr(models, "MAX_FETCHES", 2)
    content = bytes(32 << 20)
    write_version(tmp_path, 1, {"saved_model.pb": content})
    request = models_pb2.FetchRequest(sha256=hashlib.sha256(content).digest())
    with contextlib.closing(ModelPort(tmp_path, 0, "localhost")) as port:

        def fetched() -> int:
            own = [("grpc.use_local_subchannel_pool", 1)]  # a connection of its own
            with grpc.insecure_channel(f"localhost:{port.port}", options=own) as channel:
                fetch = models_pb2_grpc.ModelRepositoryServiceStub(channel).Fetch
                return sum(len(piece.data) for piece in fetch(request, timeout=60))

        until(lambda: _succeeds(fetched, grpc.RpcError))  # the version has been seen
        with channel_to(port.port) as channel:
            stub = models_pb2_grpc.ModelRepositoryServiceStub(channel)
            slow = [stub.Fetch(request) for _ in range(2)]
            for call in slow:
                next(call)
            with pytest.raises(grpc.RpcError, match="files that are being fetched"):
                fetched()
            until(lambda: _succeeds(fetched, grpc.RpcError))
            assert fetched() == len(content)


def test_a_thousand_who_wait_for_the_same_are_asked_once():
    async def main() -> tuple[int, list[bool]]:
        turns, clock, asked, open_ = Turns(), WaitClock(), [0], [False]

        def ready() -> bool:
            asked[0] += 1
            return open_[0]

        waiting = [asyncio.create_task(turns.wait(ready, clock, 60)) for _ in range(1000)]
        await asyncio.sleep(0)
        asked[0] = 0
        await turns.notify()
        once = asked[0]
        open_[0] = True
        await turns.notify()
        return once, await asyncio.gather(*waiting)

    once, answers = asyncio.run(main())
    assert once == 1
    assert answers == [True] * 1000


def test_who_is_woken_in_vain_waits_on():
    """Room for one: the first of two gets it."""

    async def main() -> list[bool]:
        turns, clock, room = Turns(), WaitClock(), [0]

        async def take() -> bool:
            came = await turns.wait(lambda: room[0] > 0, clock, 0.2)
            room[0] -= came
            return came

        both = [asyncio.create_task(take()) for _ in range(2)]
        await asyncio.sleep(0)
        room[0] = 1
        await turns.notify()
        return await asyncio.gather(*both)

    assert asyncio.run(main()) == [True, False]


def test_places_are_given_back():
    places = Places(2, "cups")
    with places.take(2), pytest.raises(RequestError, match="holds 2 cups and at most 2"):
        places.add(1)
    with places.take():
        assert places.taken == 1


def test_open_files_are_raised_to_what_the_system_allows(caplog):
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, hard), hard))
    try:
        with caplog.at_level(logging.WARNING):
            allow_open_files()
        now = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        assert now == (limits.WANTED_FILES if hard < 0 else min(hard, limits.WANTED_FILES))
        assert ("open files are allowed" in caplog.text) == (now < limits.FEW_FILES)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
