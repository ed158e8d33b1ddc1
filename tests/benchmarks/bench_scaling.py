"""Where scaling ends: agents against a network server of fixed latency, and what each part costs.

    python tests/benchmarks/bench_scaling.py [--game tictactoe] [--latency 0.25] [--seconds 10]
        [--json FILE]

1 to 8 agents (processes) play on a real environment and a real replay server; the network server
is a fake one that answers every search after the same time, however many ask: what is lost against
so many times the moves of one agent is lost in the other parts. Then the CPU time of each part is
split into what a move costs and what an agent costs that is merely there, by playing with few and
with many games an agent. The real network server and the trainer's step are measured by themselves.
From these figures follows how many agents each part can take, which is printed last.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench_selfplay import MUPROVER, Pipeline, cpu_seconds
from fake_network import FakeNetwork
from timing import machine, show, write

from muprover.components import free_ports
from muprover.game import load_game
from muprover.policy import PolicyOutput, SearchInputs

FLEETS = (1, 2, 4, 8)
FEW_GAMES = 16  # of an agent
PARTS = ("agent", "environment", "replay")
AGENTS = (1, 10, 100, 1000)
WAYS_OUT = {
    "environment": "environment.replicaCount, environment.workers",
    "replay": "one process: agent.parallelGames up and fewer agents, or a run of its own",
    "network": "network.replicaCount, network.autoscaling, network.gpu, network.mode=sidecar",
    "trainer": "trainer.gpu, config.training.batch_size up, config.replay.samples_per_insert down",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--game", default="tictactoe")
    parser.add_argument("--latency", type=float, default=0.25, help="of the network server, s")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    parser.add_argument("--json", help="write the figures there")
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args)
        return
    fleets, costs = measure_fleets(args)
    print(json.dumps(machine()))
    show(f"agents against a fixed latency of {args.latency} s", fleets)
    costs["network"] = {"move": network_cost(args), "agent": 0.0}
    step = trainer_step(args.game)
    rows = [
        {"part": part, "us/move": 1e6 * cost["move"], "ms/s of an agent": 1e3 * cost["agent"]}
        for part, cost in costs.items()
    ]
    show("CPU time", [*rows, {"part": "trainer", "us/step": 1e6 * step}])
    limits = model(args, costs, step)
    show("agents that a part can take", limits)
    show("cores that agents need", demand(args, costs, step))
    result = {"fleets": fleets, "costs": costs, "trainer_step": step, "limits": limits}
    write(args.json, result)


def measure_fleets(args: argparse.Namespace) -> tuple[list[dict], dict[str, dict[str, float]]]:
    """Moves a second of each fleet; and seconds of CPU for a move, and for a second of an agent."""
    rows, loads = [], []
    with tempfile.TemporaryDirectory() as folder, Fleet(args, Path(folder)) as fleet:
        for games in (FEW_GAMES, load_game(args.game).config.self_play.games_per_agent):
            alone = 0.0
            for size in FLEETS:
                fleet.grow(size, games)
                loads.append(fleet.measure(args.seconds))
                rate = loads[-1]["moves"]
                alone = alone or rate
                linear = rate / (size * alone)
                row = {"games an agent": games, "agents": size, "moves/s": rate}
                rows.append({**row, "of linear": linear})
            fleet.shrink()
    return rows, {part: split(part, loads) for part in PARTS}


def split(part: str, loads: list[dict[str, float]]) -> dict[str, float]:
    """CPU seconds of a move, and of an agent's second, from loads with several numbers of both."""
    counts = np.array([[load["moves"], load["agents"]] for load in loads])
    used = np.array([load[part] for load in loads])
    for columns in ([0, 1], [0], [1]):  # neither may be below 0
        solved = np.linalg.lstsq(counts[:, columns], used, rcond=None)[0]
        if (solved >= 0).all():
            both = dict(zip(columns, solved.tolist(), strict=True))
            return {"move": both.get(0, 0.0), "agent": both.get(1, 0.0)}
    raise AssertionError("CPU time is never negative")


class Fleet:
    """An environment, a replay and a fake network server, and agents that come and go."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self._args = args
        self._folder = folder
        self._servers: dict[str, subprocess.Popen[bytes]] = {}
        self._agents: list[tuple[subprocess.Popen[bytes], int]] = []
        names = ("environment", "replay", "network")
        ports = free_ports(len(names) + max(FLEETS))  # at once, so that no two are the same
        self._ports = dict(zip(names, ports, strict=False))
        self._metrics_ports = ports[len(names) :]

    def __enter__(self) -> "Fleet":
        game, ports = ["--game", self._args.game], self._ports
        self._servers["environment"] = self._start(
            [*MUPROVER, "environment", *game, "--port", str(ports["environment"])]
        )
        store = ["--logdir", str(self._folder / "replay"), "--set=replay.samples_per_insert=null"]
        self._servers["replay"] = self._start(
            [*MUPROVER, "replay", *game, "--port", str(ports["replay"]), *store]
        )
        fake = ["--serve", str(ports["network"]), "--latency", str(self._args.latency)]
        self._servers["network"] = self._start([sys.executable, __file__, *game, *fake])
        return self

    def __exit__(self, *_: object) -> None:
        self.shrink()
        for process in self._servers.values():
            process.terminate()
            process.wait(30)

    def grow(self, size: int, games: int) -> None:
        """Starts agents until there are so many; returns when all of them move."""
        at = {name: f"localhost:{port}" for name, port in self._ports.items()}
        servers = ["--environment", at["environment"], "--replay-buffer", at["replay"]]
        servers += ["--network", at["network"], "--num-games", str(games)]
        while len(self._agents) < size:
            port = self._metrics_ports[len(self._agents)]
            name = ["--agent-name", f"agent-{len(self._agents)}", "--metrics-port", str(port)]
            command = [*MUPROVER, "agent", "--game", self._args.game, *servers, *name]
            self._agents.append((self._start(command), port))
        while not all(self._moves(port) for _, port in self._agents):
            ended = [p.args for p, _ in self._agents if p.poll() is not None]
            if ended:
                raise SystemExit(f"{ended[0]} ended:\n{(self._folder / 'log').read_text()}")
            time.sleep(0.1)
        time.sleep(2 * self._args.latency)

    def shrink(self) -> None:
        for process, _ in self._agents:
            process.terminate()
        for process, _ in self._agents:
            process.wait(60)
        self._agents.clear()

    def measure(self, seconds: float) -> dict[str, float]:
        """Moves, and CPU seconds of each part, in a second."""
        before, start = self._counts(), time.perf_counter()
        time.sleep(seconds)
        after, passed = self._counts(), time.perf_counter() - start
        rates = {name: (after[name] - before[name]) / passed for name in after}
        return {**rates, "agents": float(len(self._agents))}

    def _counts(self) -> dict[str, float]:
        counts = {name: cpu_seconds(server.pid) for name, server in self._servers.items()}
        counts["agent"] = sum(cpu_seconds(process.pid) for process, _ in self._agents)
        counts["moves"] = sum(self._moves(port) for _, port in self._agents)
        return counts

    def _moves(self, port: int) -> float:
        try:
            with urllib.request.urlopen(f"http://localhost:{port}/metrics", timeout=10) as answer:
                lines = answer.read().decode().splitlines()
        except OSError:
            return 0.0  # not up yet
        name = "muprover_agent_moves_total "
        return next(float(line.split()[1]) for line in lines if line.startswith(name))

    def _start(self, command: list[str]) -> "subprocess.Popen[bytes]":
        log = open(self._folder / "log", "ab")  # noqa: SIM115 - the process's
        return subprocess.Popen(command, stdout=log, stderr=log)


def serve(args: argparse.Namespace) -> None:
    """The network server of fixed latency: random moves."""
    rng = np.random.default_rng(0)

    def policy(inputs: SearchInputs, details: bool = False) -> PolicyOutput:
        time.sleep(args.latency)
        noise = inputs.legal_actions * rng.random(inputs.legal_actions.shape)
        weights = inputs.legal_actions / inputs.legal_actions.sum(-1, keepdims=True)
        values = np.zeros(len(noise), np.float32)
        return PolicyOutput(noise.argmax(-1).astype(np.int32), weights.astype(np.float32), values)

    config = load_game(args.game).config
    with (
        FakeNetwork(policy, config, args.serve, threads=256),
        contextlib.suppress(KeyboardInterrupt),
    ):
        time.sleep(86400)


def network_cost(args: argparse.Namespace) -> float:
    """CPU seconds that the real network server takes for one move's search."""
    from muprover.model.export import export_version
    from muprover.model.networks import build_network

    game = load_game(args.game)
    options = argparse.Namespace(
        game=args.game, num_games=game.config.self_play.games_per_agent, groups=2
    )
    with tempfile.TemporaryDirectory() as folder:
        export_version(build_network(game, 0), game.config, Path(folder) / "model", training_step=1)
        with Pipeline(options, Path(folder), Path(folder)) as pipeline:
            cost = pipeline.seconds_per_simulation("network", args.seconds)
    return cost * game.config.search.num_simulations


def trainer_step(name: str, steps: int = 50) -> float:
    """CPU seconds of one training step."""
    from muprover.model.training import Training, example_batch

    game = load_game(name)
    training = Training(game, seed=0)
    batch = example_batch(game, game.config.training.batch_size, np.random.default_rng(0))
    for _ in range(3):
        training.update(batch)
    start = time.process_time()
    for _ in range(steps):
        losses = training.update(batch)
    float(losses.total)
    return (time.process_time() - start) / steps


def per_agent(args: argparse.Namespace, costs: dict, step: float) -> dict[str, float]:
    """Cores that one agent keeps busy in each part, when its searches take the fixed latency."""
    config = load_game(args.game).config
    rate = config.self_play.games_per_agent / args.latency
    used = {part: cost["move"] * rate + cost["agent"] for part, cost in costs.items()}
    samples = config.replay.samples_per_insert or 1.0
    used["trainer"] = rate * samples / config.training.batch_size * step
    return used


def model(args: argparse.Namespace, costs: dict, step: float) -> list[dict]:
    """How many agents fill one core of a part, and what gives it more."""
    used = per_agent(args, costs, step)
    parts = sorted(WAYS_OUT, key=lambda part: -used[part])
    return [
        {"part": part, "agents a core": 1 / used[part], "then": WAYS_OUT[part]} for part in parts
    ]


def demand(args: argparse.Namespace, costs: dict, step: float) -> list[dict]:
    used = per_agent(args, costs, step)
    return [{"agents": n, **{part: n * cores for part, cores in used.items()}} for n in AGENTS]


if __name__ == "__main__":
    main()
