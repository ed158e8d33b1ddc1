"""A replay server with a full buffer holds no more after thousands of games than before."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
from replay_games import ReplayProcess, make_games

from muprover.services.remote_replay import RemoteReplayBuffer

GAME = {"observation_shape": (3, 3, 2), "num_actions": 9, "max_moves": 9, "num_players": 2}
POSITIONS = 5_000  # in the buffer
MOST_MB = 2.0  # an allocator's ups and downs; what was kept of each game would be more


def memory_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"RssAnon:\s+(\d+)", status)[1]) / 1024


def test_memory_does_not_grow(tmp_path: Path) -> None:
    with ReplayProcess(tmp_path / "replay", max_size=POSITIONS, **GAME) as process:
        config, rng = process.config, np.random.default_rng(0)
        games = itertools.cycle(make_games(config, rng.integers(5, 10, 500), rng))
        numbers = itertools.count(1)

        def fresh(count: int) -> list:
            return [replace(next(games), game_id=next(numbers)) for _ in range(count)]

        replay = RemoteReplayBuffer(process.address, config)
        replay.add(fresh(1_000))
        batches = replay.sample(256)

        def work(times: int) -> None:
            for _ in range(times):
                replay.add(fresh(32))
                next(batches)
                guest = RemoteReplayBuffer(process.address, config)
                guest.admit(f"agent-{next(numbers)}", timeout=1)
                guest.add(fresh(8))
                guest.close()

        work(50)
        before = memory_mb(process.process.pid)
        work(200)
        grown = memory_mb(process.process.pid) - before
        replay.close()
    assert grown < MOST_MB
