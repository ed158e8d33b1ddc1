"""How fast replay is: sampling against the bare gather, adding to the disk, both over the wire.

    python tests/benchmarks/bench_replay.py [--seconds 1.5] [--json FILE]

Games are made up, in the shapes of real ones. "Gather" reads what a batch needs from plain arrays
in memory with numpy, places given: the least that any buffer in numpy could do.
"""

import argparse
import itertools
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from replay_games import ReplayProcess, make_config, make_games
from timing import report

from muprover.replay import ReplayBuffer
from muprover.replay.durable import DurableReplay
from muprover.replay.wire import game_to_proto
from muprover.services.remote_replay import RemoteReplayBuffer

BATCH = 512
GROUP = 32  # games of one request
SHAPES = {
    "tictactoe": {"observation_shape": (3, 3, 2), "num_actions": 9, "max_moves": 9},
    "connect_four": {"observation_shape": (6, 7, 2), "num_actions": 7, "max_moves": 42},
    "stacked 84x84": {
        "observation_shape": (84, 84, 1),
        "observation_dtype": "uint8",
        "num_actions": 18,
        "max_moves": 200,
        "num_stacked_frames": 4,
    },
}
SIZES = {"tictactoe": 100_000, "connect_four": 100_000, "stacked 84x84": 20_000}


def timed(call, seconds):
    """Median seconds of one call, over at least seven."""
    call()
    times, until = [], time.perf_counter() + seconds
    while len(times) < 7 or time.perf_counter() < until:
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def settings(name, **more):
    return SHAPES[name] | {"max_size": SIZES[name], "batch_size": BATCH, "num_players": 1} | more


def some_games(config, positions, seed=0):
    rng = np.random.default_rng(seed)
    longest = config.game.max_moves
    return make_games(
        config, rng.integers(longest // 2, longest + 1, 4 * positions // (3 * longest)), rng
    )


def gather(config, rng):
    """Reads batches from plain arrays, at other places each time."""
    game, steps = config.game, config.training.num_unroll_steps + 1
    size, stack = config.replay.max_size, game.num_stacked_frames
    observation = np.ones((size, *game.observation_shape), game.observation_dtype)
    policy = np.ones((size, game.num_actions), np.float32)
    scalars = [np.ones(size, np.float32) for _ in range(4)]  # action, reward, value, mask
    places = itertools.cycle(rng.integers(stack, size - steps, (100, BATCH)))

    def read():
        at = next(places)
        unroll, past = at[:, None] + np.arange(steps), at[:, None] - np.arange(stack)
        frames = observation.take(past if stack > 1 else at, axis=0)
        stacked = np.concatenate([frames[:, i] for i in range(stack)], -1) if stack > 1 else frames
        return stacked, policy.take(unroll, axis=0), [s.take(unroll) for s in scalars]

    return read


def bench_sampling(name, seconds):
    rng = np.random.default_rng(0)
    row = {"game": name}
    config = make_config(**settings(name))
    row["gather_us"] = timed(gather(config, rng), seconds) * 1e6
    for key, more in (("uniform_us", {}), ("prioritised_us", {"priority_exponent": 1.0})):
        config = make_config(**settings(name, **more))
        buffer = ReplayBuffer(config)
        buffer.add(some_games(config, config.replay.max_size))
        row[key] = timed(lambda buffer=buffer: buffer.sample(BATCH, rng), seconds) * 1e6
    row["positions"] = len(buffer)
    row["uniform_positions_per_s"] = BATCH / row["uniform_us"] * 1e6
    return row


def bench_disk(name, seconds):
    """Games per second: into memory, and on the disk before they are acknowledged."""
    config = make_config(**settings(name))
    batches = [some_games(config, 20 * config.game.max_moves, seed) for seed in range(20)]
    row = {"game": name}
    for group in (1, GROUP):
        games = [game for batch in batches for game in batch][: group * 10]
        messages = [game_to_proto(game) for game in games]
        with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
            replay = DurableReplay(config, Path(folder))
            ids = iter(range(1 << 40))
            done, started = 0, time.perf_counter()
            while time.perf_counter() < started + seconds:
                for message in messages[:group]:
                    message.game_id = next(ids)
                replay.add([messages[:group]])
                done += group
            row[f"durable_games_per_s_groups_of_{group}"] = done / (time.perf_counter() - started)
            replay.close()
            started = time.perf_counter()
            replay = DurableReplay(config, Path(folder))
            stored = replay.buffer.stats().games
            row["reload_games_per_s"] = stored / (time.perf_counter() - started)
            replay.close()
    return row


def bench_wire(name, seconds, agents=4):
    """Through a server process: batches to one trainer, games from some agents."""
    row = {"game": name, "agents": agents}
    with (
        tempfile.TemporaryDirectory(dir=Path.cwd()) as folder,
        ReplayProcess(Path(folder), **settings(name)) as process,
    ):
        replay = RemoteReplayBuffer(process.address, process.config)
        replay.add(some_games(process.config, 5_000))
        batches = replay.sample(BATCH)
        row["batches_per_s"] = 1 / timed(lambda: next(batches), seconds)
        batches.close()
        games = some_games(process.config, GROUP * process.config.game.max_moves)
        counts = [0] * agents
        until = time.perf_counter() + seconds

        def add(agent):
            rng = np.random.default_rng(agent)
            while time.perf_counter() < until:
                new = [replace(game, game_id=int(rng.integers(1 << 62))) for game in games]
                counts[agent] += replay.add(new)

        threads = [threading.Thread(target=add, args=(agent,)) for agent in range(agents)]
        started = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        row["games_per_s"] = sum(counts) / (time.perf_counter() - started)
        replay.close()
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=1.5, help="of each measurement")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args()
    benches = {
        "sampling, in process": bench_sampling,
        "adding to the disk, in process": bench_disk,
        "over the wire": bench_wire,
    }
    tables = {
        title: [bench(name, options.seconds) for name in SHAPES] for title, bench in benches.items()
    }
    report(tables, options.json, batch=BATCH)


if __name__ == "__main__":
    main()
