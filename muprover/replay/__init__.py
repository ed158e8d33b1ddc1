"""Self-played games in memory and on disk, sampled for training."""

from muprover.replay.buffer import Batch, ReplayBuffer
from muprover.replay.checks import GameError
from muprover.replay.statistics import ReplayStats

__all__ = ["Batch", "GameError", "ReplayBuffer", "ReplayStats"]
