"""Games, batches and statistics as the messages of `replay.proto`, and back."""

from __future__ import annotations

from typing import Any

from muprover.history import GameHistory
from muprover.replay.buffer import Batch
from muprover.replay.statistics import ReplayStats
from muprover.tensors import from_tensor, to_tensor
from muprover.v1 import replay_pb2

_ARRAYS = (
    "observation",
    "action",
    "reward",
    "to_play",
    "legal_actions",
    "action_weights",
    "root_value",
    "exploratory",
)
_FACTS = (
    "game_id",
    "segment",
    "first",
    "size",
    "final_value",
    "terminated",
    "agent",
    "network_version",
)


def game_to_proto(game: GameHistory) -> replay_pb2.GameHistory:
    fields: dict[str, Any] = {name: to_tensor(getattr(game, name)) for name in _ARRAYS}
    fields |= {name: getattr(game, name) for name in _FACTS}
    return replay_pb2.GameHistory(**fields)


def game_from_proto(message: replay_pb2.GameHistory) -> GameHistory:
    """The game, with read-only arrays; whether they make sense is for `check_game` to say."""
    fields: dict[str, Any] = {name: getattr(message, name) for name in _FACTS}
    fields |= {name: from_tensor(getattr(message, name), name) for name in _ARRAYS}
    return GameHistory(**fields)


def batch_to_proto(batch: Batch) -> replay_pb2.SampleResponse:
    tensors = {name: to_tensor(array) for name, array in batch._asdict().items()}
    return replay_pb2.SampleResponse(**tensors)


def batch_from_proto(message: replay_pb2.SampleResponse) -> Batch:
    """The batch, with read-only arrays."""
    return Batch(*(from_tensor(getattr(message, name), name) for name in Batch._fields))


def stats_to_proto(stats: ReplayStats) -> replay_pb2.StatsResponse:
    return replay_pb2.StatsResponse(**stats._asdict())


def stats_from_proto(message: replay_pb2.StatsResponse) -> ReplayStats:
    return ReplayStats(**{name: getattr(message, name) for name in ReplayStats._fields})
