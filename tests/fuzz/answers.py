"""What servers answer, as clients read it: a server in another language may say anything."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from fuzz.mutate import message
from fuzz.replay import config as replay_config
from fuzz.replay import games
from fuzz.target import Feed, Target, parsed
from muprover.game import load_game
from muprover.policy import PolicyOutput
from muprover.replay.buffer import Batch
from muprover.replay.wire import batch_from_proto, batch_to_proto, game_from_proto
from muprover.services.client import ContractError
from muprover.services.environment import time_step_from_proto
from muprover.services.environment_streams import time_step_to_proto
from muprover.services.network import ESSENTIALS, RemoteNetwork
from muprover.tensors import TensorError, from_tensor, from_tensor_proto, to_tensor_proto
from muprover.v1 import replay_pb2, serving_pb2, tensor_pb2
from muprover.v1.environment_pb2 import PlayResponse

GAME = load_game("tictactoe")


def read(kind: Any, take: Callable[[Any], Any], refusals: Any = TensorError) -> Any:
    def open_target(folder: Path) -> Feed:
        def feed(data: bytes) -> None:
            for answer in parsed(kind, [data]):
                with suppress(refusals):
                    take(answer)

        return feed

    return open_target


def open_network(folder: Path) -> Feed:
    """A client of a network server, every call of which gets this answer."""
    network = RemoteNetwork("localhost:1", "tiny", GAME.config, patience=0.0)
    current: list[bytes] = []
    for name, kind in (
        ("_predict", serving_pb2.PredictResponse),
        ("_metadata", serving_pb2.GetModelMetadataResponse),
        ("_status", serving_pb2.GetModelStatusResponse),
    ):
        setattr(network, name, lambda *_, kind=kind, **__: kind.FromString(current[0]))
    search = SimpleNamespace(output_filter=ESSENTIALS)

    def feed(data: bytes) -> None:
        if not parsed(serving_pb2.PredictResponse, [data]):
            return
        current[:] = [data]
        for ask in (network.about, network.status, lambda: network._search(search)):
            with suppress(ContractError, DecodeError):  # of the latter gRPC tells clients
                ask()

    return feed


def predictions() -> list[bytes]:
    rows = 2
    output = PolicyOutput(
        np.zeros(rows, np.int32), np.full((rows, 9), 1 / 9, np.float32), np.zeros(rows, np.float32)
    )
    search, about = serving_pb2.PredictResponse(), serving_pb2.PredictResponse()
    for name in ESSENTIALS:
        search.outputs[name].CopyFrom(to_tensor_proto(getattr(output, name)))
    about.outputs["contract"].dtype = 7
    about.outputs["contract"].string_val.append(b'{"game.name": "tictactoe"}')
    about.outputs["training_step"].CopyFrom(to_tensor_proto(np.array([3])))
    about.model_spec.version.value = 3
    return [search.SerializeToString(), about.SerializeToString()]


def steps() -> list[bytes]:
    games = GAME.make_environments(3)
    return [time_step_to_proto(games.reset([0, 1, 2], [1, 2, 3])).SerializeToString()]


def batches() -> list[bytes]:
    from muprover.replay import ReplayBuffer

    buffer = ReplayBuffer(replay_config())
    buffer.add([game_from_proto(game) for game in games()])
    batch: Batch = buffer.sample(4, np.random.default_rng(0))
    return [batch_to_proto(batch).SerializeToString()]


def tensors() -> list[bytes]:
    typed = serving_pb2.TensorProto(dtype=1, float_val=[1.0])
    typed.tensor_shape.dim.add(size=3)
    content = to_tensor_proto(np.arange(6, dtype=np.int64).reshape(2, 3))
    return [typed.SerializeToString(), content.SerializeToString()]


def of(name: str, kind: Any, take: Callable[[Any], Any], seeds: Callable[[], list[bytes]]) -> Any:
    return Target(f"answer.{name}", read(kind, take), seeds, message(kind))


TARGETS = [
    of("Play", PlayResponse, lambda m: time_step_from_proto(m, 3, GAME.config.game), steps),
    of("Sample", replay_pb2.SampleResponse, batch_from_proto, batches),
    of(
        "Backup",
        replay_pb2.GameHistory,
        game_from_proto,
        lambda: [game.SerializeToString() for game in games(7)],
    ),
    Target("answer.Predict", open_network, predictions, message(serving_pb2.PredictResponse)),
    of("TensorProto", serving_pb2.TensorProto, lambda m: from_tensor_proto(m, "x"), tensors),
    of(
        "Tensor",
        tensor_pb2.Tensor,
        lambda m: from_tensor(m, "x"),
        lambda: [games()[1].observation.SerializeToString()],
    ),
]
