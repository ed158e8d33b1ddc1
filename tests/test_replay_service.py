"""The replay server and its client, as real processes: what is promised over the wire."""

import os
import resource
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import ExitStack

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from replay_games import (
    ReplayProcess,
    ReplayThread,
    free_port,
    make_config,
    make_game,
    make_games,
    same_game,
)

from muprover.config import SettingsError
from muprover.replay import ReplayBuffer
from muprover.replay.wire import game_to_proto
from muprover.services.client import ContractError, ServiceError, open_channel
from muprover.services.remote_replay import RemoteReplayBuffer
from muprover.services.replay import SERVICE
from muprover.services.replay_backup import backup, restore
from muprover.services.waiting import Stopped
from muprover.v1 import replay_pb2, replay_pb2_grpc


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """One for the tests that do not mind what others have stored."""
    with ReplayProcess(tmp_path_factory.mktemp("shared"), metrics=True) as process:
        yield process


@pytest.fixture
def start(tmp_path):
    """Starts servers for one test, which do not outlive it."""
    with ExitStack() as servers:

        def make(kind=ReplayThread, **settings):
            folder = tmp_path / f"server{len(os.listdir(tmp_path))}"
            return servers.enter_context(kind(folder, **settings))

        yield make


@pytest.fixture
def connect():
    clients = []

    def make(process, **options):
        clients.append(RemoteReplayBuffer(process.address, process.config, **options))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


def rng(seed=0):
    return np.random.default_rng(seed)


def run(call, *arguments):
    """The call in a thread, and the list that its answer will be in."""
    answers: list = []
    thread = threading.Thread(target=lambda: answers.append(call(*arguments)), daemon=True)
    thread.start()
    return thread, answers


def wait_until(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)


def test_the_remote_buffer_answers_what_the_local_one_does(start, connect):
    process = start(priority_exponent=1.0)
    replay = connect(process)
    games = make_games(process.config, [4, 7, 2], rng(), exploratory=0.2)
    assert replay.add(games) == 3
    assert replay.add(games[0]) == 0
    batch = next(replay.sample(8))
    assert batch.observation.shape == (8, 2)
    assert batch.key.dtype == np.int64
    assert batch.target_value.shape == (8, process.config.training.num_unroll_steps + 1)
    assert replay.update_priorities(batch.key, np.ones(8)) == 8
    assert replay.update_priorities(batch.key - 10**6, np.ones(8)) == 0
    stats = replay.stats()
    assert (stats.games, stats.positions, stats.inserted_positions) == (3, 13, 13)
    assert stats.bytes_on_disk > 0
    assert stats.connected_agents == 1


def test_another_contract_is_refused_in_words(server, connect):
    other = make_config(name="other_game", discount=0.5)
    replay = RemoteReplayBuffer(server.address, other)
    with pytest.raises(ContractError, match=r"game\.name is made_up there, other_game here"):
        replay.add(make_game(other, 3, rng()))
    replay.close()


def test_backup_and_restore_give_the_same_games(start, connect, tmp_path):
    one, other = start(max_size=50), start(max_size=50)
    source, target = connect(one), connect(other)
    games = make_games(one.config, [7] * 20, rng())
    source.add(games)
    saved = list(source.backup())
    assert len(saved) == 7
    assert all(same_game(a, b) for a, b in zip(saved, games[-7:], strict=True))
    assert target.restore(saved) == (7, 0)
    assert target.restore(saved) == (0, 7)
    assert all(same_game(a, b) for a, b in zip(saved, target.backup(), strict=True))
    path = tmp_path / "backup"
    assert backup(one.address, one.config, path) == 7
    assert restore(other.address, one.config, path) == (0, 7)
    with pytest.raises(ContractError, match=r"game\.name is made_up there, chess here"):
        restore(other.address, make_config(name="chess"), path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(SettingsError, match="ends in the middle of a game; those before it are"):
        restore(other.address, one.config, path)
    path.write_bytes(b"something else")
    with pytest.raises(SettingsError, match="is no backup of a replay server"):
        restore(other.address, one.config, path)
    with pytest.raises(SettingsError, match="cannot read backup"):
        restore(other.address, one.config, tmp_path / "missing")
    with pytest.raises(SettingsError, match="cannot write backup"):
        backup(one.address, one.config, tmp_path / "missing" / "backup")


def test_games_come_in_while_a_backup_goes_out(start, connect):
    process = start()
    replay = connect(process)
    games = make_games(process.config, [5] * 150, rng())
    replay.add(games)
    backup = replay.backup()
    first = next(backup)
    replay.add(make_games(process.config, [5] * 150, rng(1)))  # evicts many of the rest
    assert same_game(first, games[0])
    assert len(list(backup)) >= 50
    assert replay.stats().positions == 1000


def test_a_stream_of_adds_is_answered_in_order(server):
    games = make_games(server.config, [2, 3, 4], rng(5))
    stub = replay_pb2_grpc.ReplayServiceStub(open_channel(server.address))
    requests = [[games[0]], [games[0], games[1]], [], games]
    messages = [replay_pb2.AddRequest(games=map(game_to_proto, some)) for some in requests]
    answers = [(a.added, a.duplicates) for a in stub.AddStream(iter(messages), timeout=20)]
    assert answers == [(1, 0), (1, 1), (0, 0), (1, 2)]


def test_sampling_survives_a_restart(start, connect):
    process = start(ReplayProcess)
    replay = connect(process)
    replay.add(make_games(process.config, [5] * 30, rng()))
    batches = replay.sample(8)
    newest = next(batches).key.max()
    process.end(signal.SIGKILL)
    process.start()
    while next(batches).key.min() <= newest:
        pass  # fetched before the restart
    assert replay.stats().positions == 150


def test_every_acknowledged_game_outlives_kill_9(start, connect):
    process = start(ReplayProcess, max_size=100_000)
    replay = connect(process)
    acknowledged: list[int] = []
    over = threading.Event()

    def add() -> None:
        random = rng()
        while not over.is_set():
            games = make_games(process.config, [3] * 5, random)
            assert replay.add(games) <= 5
            acknowledged.extend(game.game_id for game in games)

    thread, _ = run(add)
    for number in (signal.SIGKILL, signal.SIGTERM):
        before = len(acknowledged)
        wait_until(lambda before=before: len(acknowledged) > before + 50)
        process.end(number)
        process.start()
    over.set()
    thread.join(20)
    stored = [game.game_id for game in replay.backup()]
    assert len(set(stored)) == len(stored)  # retries store nothing twice
    assert set(acknowledged) <= set(stored)


def test_agents_wait_for_the_trainer_and_the_trainer_for_agents(start, connect):
    process = start(samples_per_insert=1.0, min_size_to_sample=20)
    agent, trainer = connect(process), connect(process)
    assert agent.admit("a", 5)
    batches = trainer.sample(8, prefetch=1)
    thread, first = run(next, batches)
    agent.add(make_games(process.config, [5] * 3, rng()))
    time.sleep(0.3)
    assert not first  # 15 of 20 positions
    waited = agent.stats().sample_wait_seconds
    assert waited > 0  # while it waits still
    agent.add(make_games(process.config, [5] * 10, rng(1)))
    thread.join(10)
    assert len(first) == 1
    next(batches)
    assert agent.admit("a", 5)
    batches.close()
    agent.add(make_games(process.config, [5] * 20, rng(2)))
    wait_until(lambda: not agent.admit("a", 0.1))  # too far ahead now
    thread, admitted = run(agent.admit, "a", 20)
    time.sleep(0.3)
    assert not admitted
    assert agent.stats().admit_wait_seconds > 0
    batches = trainer.sample(8)
    wait_until(lambda: next(batches) is not None and admitted == [True])


def test_sampling_goes_on_when_all_that_could_be_sampled_has_left_the_window(
    start, connect, monkeypatch
):
    process = start()
    replay = connect(process)
    replay.add(make_games(process.config, [5] * 3, rng()))
    sample, failures = ReplayBuffer.sample, iter([ValueError("there is nothing to sample")])

    def at_first_empty(*arguments):
        if failure := next(failures, None):
            raise failure
        return sample(*arguments)

    monkeypatch.setattr(ReplayBuffer, "sample", at_first_empty)
    assert next(replay.sample(8)) is not None


def test_waiting_ends_when_told_to(start, connect):
    process = start(
        ReplayProcess,
        samples_per_insert=1.0,
        min_size_to_sample=10,
        samples_per_insert_tolerance=0.1,
    )
    replay = connect(process)
    replay.add(make_games(process.config, [5] * 20, rng()))
    stop = threading.Event()
    thread, answers = run(replay.admit, "a", 20.0, stop)
    time.sleep(0.3)
    stop.set()
    thread.join(2)
    assert answers == [False]
    thread, answers = run(replay.admit, "a", 20.0)
    time.sleep(0.3)
    started = time.monotonic()
    assert process.end() == 0  # with an agent waiting
    assert time.monotonic() - started < 4
    thread.join(2)
    assert answers == [False]
    started = time.monotonic()
    with pytest.raises(Stopped):  # the server is gone
        replay.update_priorities(np.arange(2), np.ones(2), stop)
    assert time.monotonic() - started < 4


def test_it_serves_health_and_reflection(server):
    channel = open_channel(server.address)
    health = health_pb2_grpc.HealthStub(channel)
    for service in ("", SERVICE):
        request = health_pb2.HealthCheckRequest(service=service)
        answer = health.Check(request, timeout=20, wait_for_ready=True)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    reflect = channel.stream_stream(
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    )
    answers = reflect(iter([b"\x3a\x00"]), timeout=20)  # list_services
    assert SERVICE.encode() in next(iter(answers))


def test_a_batch_that_might_wait_for_ever_is_refused(start, connect):
    process = start(samples_per_insert=1.0, min_size_to_sample=10)
    with pytest.raises(ServiceError, match=r"must be from 1 to 8: .* the rate limit's tolerance"):
        next(connect(process).sample(9))


def test_a_full_disk_refuses_games_and_recovers(start, connect):
    process = start(ReplayProcess)
    replay = connect(process)
    games = make_games(process.config, [5] * 30, rng())
    replay.add(games[:10])
    size = replay.stats().bytes_on_disk
    unlimited = resource.prlimit(process.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(process.process.pid, resource.RLIMIT_FSIZE, (size + 500, unlimited[1]))
    stub = replay_pb2_grpc.ReplayServiceStub(open_channel(process.address))
    request = replay_pb2.AddRequest(games=map(game_to_proto, games[10:20]))
    with pytest.raises(grpc.RpcError, match="its disk is full") as refusal:
        stub.Add(request, timeout=20)
    assert refusal.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    impatient = connect(process, timeout=1.0)
    with pytest.raises(ServiceError, match="its disk is full"):
        impatient.add(games[10:20])
    assert replay.stats().games == 10
    assert next(replay.sample(8)) is not None  # it goes on with what it has
    thread, added = run(replay.add, games[10:])  # waits for room on the disk
    time.sleep(0.5)
    assert not added
    resource.prlimit(process.process.pid, resource.RLIMIT_FSIZE, unlimited)
    thread.join(20)
    assert added == [20]
    process.end(signal.SIGKILL)
    process.start()
    assert replay.stats().games == 30


def test_memory_stays_flat_however_much_comes_in(start, connect):
    process = start(ReplayProcess, max_size=500)
    replay = connect(process)
    random = rng()

    def resident() -> int:
        with open(f"/proc/{process.process.pid}/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()

    def add(games: int) -> int:
        for _ in range(games // 100):
            replay.add(make_games(process.config, [5] * 100, random))
        return resident()

    assert add(4000) - add(1000) < 10 << 20
    assert replay.stats().positions == 500


def test_clients_wait_for_a_server_that_starts_later(start, connect):
    process = start(ReplayProcess, running=False)
    replay = connect(process)
    thread, answers = run(replay.add, make_games(process.config, [5], rng()))
    time.sleep(0.5)
    assert not answers
    process.start()
    thread.join(20)
    assert answers == [1]


def test_without_a_server_the_message_says_where_it_should_be():
    config = make_config()
    address = f"localhost:{free_port()}"
    replay = RemoteReplayBuffer(address, config, timeout=0.5)
    with pytest.raises(ServiceError, match=f"replay at {address}: .*; is it running?"):
        replay.add(make_game(config, 3, rng()))
    stop = threading.Event()
    stop.set()
    with pytest.raises(Stopped):
        RemoteReplayBuffer(address, config).stats(stop)
    replay.close()


def test_a_port_or_a_store_in_use_is_an_error_in_words(tmp_path):
    with ReplayThread(tmp_path) as first:
        for port, words in ((first.port, "is in use"), (0, "is open in another process")):
            with ReplayProcess(tmp_path, port=port) as second:
                assert second.process.wait(20) != 0
                assert words in second.log.read_text()


def test_metrics_tell_what_happens(server, connect):
    replay = connect(server)
    replay.add(make_games(server.config, [5] * 3, rng(11)))
    next(replay.sample(8))
    with urllib.request.urlopen(f"http://localhost:{server.metrics_port}/metrics") as page:
        text = page.read().decode()
    found = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    for name in (
        "games",
        "positions",
        "inserted_games_total",
        "inserted_positions_total",
        "sampled_positions_total",
        "samples_per_insert",
        "sample_wait_seconds_total",
        "admit_wait_seconds_total",
        "connected_agents",
        "bytes_on_disk",
        "add_latency_seconds_count",
        "game_length_sum",
        "newest_network_version",
        "newest_game_age_seconds",
        "unique_games_ratio",
    ):
        assert f"muprover_replay_{name}" in found
    assert float(found["muprover_replay_positions"]) == replay.stats().positions
    assert float(found["muprover_replay_sampled_positions_total"]) >= 8


def test_replay_needs_neither_tensorflow_nor_grpc_in_process():
    code = """
import sys
for name in ("tensorflow", "grpc", "prometheus_client"):
    sys.modules[name] = None
import muprover.replay, muprover.segments, muprover.targets
"""
    subprocess.run([sys.executable, "-c", code], check=True)
