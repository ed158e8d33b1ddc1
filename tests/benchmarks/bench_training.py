"""The trainer fed by a full replay server, against the bare compiled step on one batch.

    python tests/benchmarks/bench_training.py [--game tictactoe] [--seconds 10] [--json FILE]

Both on the same cores, in turn, several times; the limiter is off.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
from timing import machine, write

sys.path.insert(0, str(Path(__file__).parents[1]))

from muprover.components import free_ports
from muprover.game import Game, load_game
from muprover.policy import PolicyOutput, SearchInputs
from muprover.selfplay import play_games
from muprover.services.remote_replay import RemoteReplayBuffer

SETTINGS = ["replay.samples_per_insert=null", "replay.max_size=20000"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--game", default="tictactoe")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of TensorFlow")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    game = load_game(args.game, overrides=SETTINGS)

    from muprover.model.runtime import tune
    from muprover.model.trainer import Trainer
    from muprover.model.training import example_batch

    tune(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        (port,) = free_ports(1)
        command = [sys.executable, "-m", "muprover.cli", "replay", "--game", args.game]
        command += [*(w for s in SETTINGS for w in ("--set", s)), "--port", str(port)]
        server = subprocess.Popen([*command, "--logdir", f"{folder}/replay"])
        try:
            replay = RemoteReplayBuffer(f"localhost:{port}", game.config)
            fill(replay, game)
            trainer = Trainer(game, Path(folder) / "models", Path(folder) / "log", seed=0)
            trainer.begin()
            batch = example_batch(game, game.config.training.batch_size, np.random.default_rng(0))
            bare, fed = [], []
            for _ in range(args.rounds):
                bare.append(rate(lambda: trainer.training.update(batch), args.seconds))
                fed.append(fed_rate(trainer, replay, args.seconds))
        finally:
            server.terminate()
            server.wait()
    result = {
        "game": args.game,
        "bare steps/s": statistics.median(bare),
        "trainer steps/s": statistics.median(fed),
        "share": statistics.median(f / b for f, b in zip(fed, bare, strict=True)),
    }
    for name, value in result.items():
        print(f"{name:16} {value if isinstance(value, str) else f'{value:.3g}'}")
    print(json.dumps(machine()))
    write(args.json, result)


def fill(replay: RemoteReplayBuffer, game: Game) -> None:
    """Games of a policy that moves at random, until the buffer is full."""
    rng = np.random.default_rng(0)

    def policy(inputs: SearchInputs, details: bool = False) -> PolicyOutput:
        weights = inputs.legal_actions / inputs.legal_actions.sum(-1, keepdims=True)
        noisy = weights * rng.random(weights.shape)
        size = len(weights)
        return PolicyOutput(
            noisy.argmax(-1).astype(np.int32),
            weights.astype(np.float32),
            np.zeros(size, np.float32),
        )

    batch: list = []
    for history in play_games(game.make_environments(256), policy, game.config, rng):
        batch.append(history)
        if len(batch) == 500:
            replay.add(batch)
            batch = []
            if replay.stats().positions >= 0.95 * game.config.replay.max_size:
                return


def rate(call, seconds: float) -> float:
    """Calls a second."""
    call()
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        call()
        count += 1
    return count / (time.perf_counter() - started)


def fed_rate(trainer, replay: RemoteReplayBuffer, seconds: float) -> float:
    """Training steps a second of the trainer's own loop: batches, exports, curves and all."""
    stop = threading.Event()
    before, started = trainer.step, time.perf_counter()
    timer = threading.Timer(seconds, stop.set)
    timer.start()
    trainer.run(replay, stop)
    return (trainer.step - before) / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
