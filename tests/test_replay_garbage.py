"""What comes over the wire is not trusted: garbage, nonsense, and messages that lie."""

import socket

import grpc
import numpy as np
import pytest
from replay_games import ReplayProcess, make_config, make_game, make_games

from muprover.replay.wire import game_to_proto
from muprover.services.client import ServiceError, open_channel
from muprover.services.remote_replay import RemoteReplayBuffer
from muprover.services.replay import SERVICE
from muprover.v1 import replay_pb2, replay_pb2_grpc


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with ReplayProcess(tmp_path_factory.mktemp("shared"), metrics=True) as process:
        yield process


@pytest.fixture
def replay(server):
    client = RemoteReplayBuffer(server.address, server.config)
    yield client
    client.close()


def rng(seed=0):
    return np.random.default_rng(seed)


def test_garbage_at_every_call_stops_nothing(server, replay):
    replay.add(make_games(server.config, [5] * 3, rng(7)))
    channel = open_channel(server.address)
    random = rng()
    methods = replay_pb2.DESCRIPTOR.services_by_name["ReplayService"].methods
    for method in methods:
        for size in (1, 20, 3000):
            call = channel.stream_stream(f"/{SERVICE}/{method.name}")
            noise = random.bytes(size)
            with pytest.raises(grpc.RpcError):
                list(call(iter([noise]), timeout=5))
    for port in (server.port, server.metrics_port):
        for noise in (random.bytes(1000), b"GET / HTTP/1.0\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\n"):
            with socket.create_connection(("localhost", port)) as connection:
                connection.sendall(noise)
    assert next(replay.sample(8)).key.shape == (8,)
    assert server.process.poll() is None


def broken(**changes):
    """A game's message with other contents."""
    message = game_to_proto(make_game(make_config(), 3, rng()))
    for name, value in changes.items():
        if isinstance(value, dict):
            tensor = getattr(message, name)
            for field, content in value.items():
                tensor.ClearField(field)
                current = getattr(tensor, field)
                if field == "shape":
                    current.extend(content)
                else:
                    setattr(tensor, field, content)
        else:
            setattr(message, name, value)
    return message


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (replay_pb2.GameHistory(), "observation has dtype 0"),
        (broken(reward={"shape": [1 << 40]}), "reward of shape"),
        (broken(reward={"shape": [-1, -3]}), "reward"),
        (broken(reward={"shape": [3, 0, -1]}), "reward"),
        (broken(reward={"data": b""}), "has 0 bytes, not 12"),
        (broken(reward={"dtype": 3}), r"reward is \[3\] int32, must be \[3\] float32"),
        (broken(action={"shape": []}), "action"),
        (broken(reward={"data": np.full(3, np.nan, "<f4").tobytes()}), "reward is not finite"),
        (broken(size=4), r"positions \[0, 4\) are no part of its 3 moves"),
        (broken(first=-1), "positions"),
        (broken(segment=-1), "its segment"),
        (broken(final_value=1.0), "final_value must be 0"),
    ],
)
def test_wrong_games_are_refused_whole(server, message, words):
    stub = replay_pb2_grpc.ReplayServiceStub(open_channel(server.address))
    before = stub.Stats(replay_pb2.StatsRequest(), wait_for_ready=True, timeout=20).positions
    good = game_to_proto(make_game(server.config, 2, rng(9)))
    with pytest.raises(grpc.RpcError, match=words) as refusal:
        stub.Add(replay_pb2.AddRequest(games=[good, message]), timeout=20)
    assert refusal.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    with pytest.raises(grpc.RpcError, match=words):
        stub.Restore(iter([good, message]), timeout=20)
    assert stub.Stats(replay_pb2.StatsRequest()).positions == before


@pytest.mark.parametrize("size", [0, -5, 1 << 30])
def test_batches_of_a_senseless_size_are_refused(replay, size):
    with pytest.raises(ServiceError, match=r"batch_size is .*, must be from 1 to"):
        next(replay.sample(size))


def test_senseless_priorities_are_refused(replay):
    with pytest.raises(ServiceError, match="finite, not negative"):
        replay.update_priorities(np.arange(2), np.array([1, np.nan]))
