"""How much of the search's speed is left when agents ask for it through the network server.

    python tests/benchmarks/bench_serving.py [--batch 64] [--simulations 50] [--seconds 2]

Two clients, processes of their own without TensorFlow, send searches of one batch each, over
gRPC, to a server process; "two groups" has each client send two batches in turn, as an agent does.
The server has those sizes compiled that it would learn: one batch, and two joined. Against that the
same compiled functions are called in one process, from as many threads as the server has. All share
the same cores (`--cores`), and the ways take turns in the same run. CPU milliseconds are those of
all processes involved, per search of one batch: they tell the overhead even where other work
disturbs the clock.
"""

import argparse
import json
import multiprocessing
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from muprover.policy import SearchInputs
from muprover.services.network import RemoteNetwork
from muprover.serving_config import BATCHING_CONFIG, MODELS_CONFIG, ModelSettings, write_configs

MODEL = "bench"
OUTPUTS = ("action", "action_weights", "value")
CLIENTS = 2


def main() -> None:
    args = parse_arguments()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.cores])
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with tempfile.TemporaryDirectory() as folder:
        tune_as_the_server(args)
        config = export(Path(folder), args)
        inputs = make_inputs(config, args.batch, args.simulations)
        with Server(Path(folder), args) as server, Clients(server, config, inputs) as clients:
            local = Local(Path(folder), args, inputs)
            ways = {
                "in process, one thread": lambda s: local.run(s, 1),
                f"in process, {args.threads} threads": lambda s: local.run(s, args.threads),
                f"in process, {args.threads} threads, joined": lambda s: local.run(
                    s, args.threads, joined=True
                ),
                "2 clients, one group each": lambda s: clients.run(s, 1),
                "2 clients, two groups each": lambda s: clients.run(s, 2),
            }
            measured = measure(ways, args)
            report(measured, args, server.padding())


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--simulations", type=int, default=50)
    parser.add_argument("--game", default="tictactoe")
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE")
    parser.add_argument("--seconds", type=float, default=1.5, help="of each turn")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2, help="of the server, for batches")
    parser.add_argument("--json", type=Path, help="write the figures there")
    return parser.parse_args()


def tune_as_the_server(args):
    from muprover.model.runtime import tune_for_several

    tune_for_several(args.cores, args.threads)


def export(folder, args):
    """Writes a version of a fresh network; the game's settings."""
    from muprover.game import load_game
    from muprover.model.export import Exporter
    from muprover.model.networks import build_network

    settings = [f"search.{n}num_simulations={args.simulations}" for n in ("", "max_")]
    game = load_game(args.game, overrides=[*settings, *args.set])
    network = build_network(game, seed=0)
    Exporter(network, game.config, folder / MODEL, warmup_batch_sizes=sizes(args)).export(1)
    return game.config


def sizes(args):
    """Of batches: those that one client sends, and two of these."""
    return [args.batch, 2 * args.batch]


def make_inputs(config, batch, simulations):
    rng = np.random.default_rng(0)
    game = config.game
    observation = rng.random((batch, *game.network_observation_shape)) < 0.33
    return SearchInputs(
        observation=observation.astype(game.observation_dtype),
        legal_actions=np.ones((batch, game.num_actions), bool),
        seed=rng.integers(0, 1 << 30, (batch, 2)).astype(np.int32),
        num_simulations=np.full(batch, simulations, np.int32),
        temperature=np.ones(batch, np.float32),
        exploration=np.ones(batch, np.float32),
    )


class Server:
    """`muprover network` as a process."""

    def __init__(self, folder, args):
        files = write_configs(
            folder / "serving",
            [ModelSettings(MODEL, str(folder / MODEL))],
            sizes(args),
            num_batch_threads=args.threads,
        )
        command = (
            "import argparse, sys, logging; from muprover.model.serving.command import run; "
            "from muprover.model.serving.flags import add_arguments; "
            "logging.basicConfig(level='INFO'); parser = argparse.ArgumentParser(); "
            "add_arguments(parser); sys.exit(run(parser.parse_args()))"
        )
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-c", command, "--port=0", "--rest-api-port=-1"),
                *("--model-config-file", str(files[MODELS_CONFIG])),
                *("--enable-batching", "--batching-parameters-file", str(files[BATCHING_CONFIG])),
                "--enable-serialization-as-tensor-content",
            ],
            stderr=subprocess.PIPE,
            text=True,
        )
        for line in self._process.stderr:
            if match := re.search(r"gRPC on port (\d+), REST on port (\d+)", line):
                break
        else:
            sys.exit("the network server did not start")
        self.address, self._rest = f"localhost:{match[1]}", f"http://localhost:{match[2]}"
        threading.Thread(target=self._process.stderr.read, daemon=True).start()
        self.pid = self._process.pid

    def padding(self):
        """Share of all rows that were padding."""
        import urllib.request

        text = urllib.request.urlopen(f"{self._rest}/metrics").read().decode()
        found = {
            name: float(
                re.search(rf'muprover_network_{name}_total{{function="search"}} (.*)', text)[1]
            )
            for name in ("batch_rows", "padded_rows")
        }
        return found["padded_rows"] / found["batch_rows"]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.terminate()
        self._process.wait(30)


class Clients:
    """Client processes, told by pipes when to send."""

    def __init__(self, server, config, inputs):
        context = multiprocessing.get_context("spawn")
        self._server = server
        self._pipes, self._processes = [], []
        for _ in range(CLIENTS):
            mine, theirs = context.Pipe()
            process = context.Process(
                target=serve_turns, args=(theirs, server.address, config, inputs), daemon=True
            )
            process.start()
            self._pipes.append(mine)
            self._processes.append(process)
        for pipe in self._pipes:
            pipe.recv()

    def run(self, seconds, groups):
        """Searches per second, and CPU seconds per search, of clients and server."""
        began = time.perf_counter()
        before = cpu_seconds(self._server.pid)
        for pipe in self._pipes:
            pipe.send((seconds, groups))
        answers = [pipe.recv() for pipe in self._pipes]
        elapsed = time.perf_counter() - began
        count = sum(answer[0] for answer in answers)
        cpu = cpu_seconds(self._server.pid) - before + sum(answer[1] for answer in answers)
        return count / elapsed, cpu / count

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for pipe in self._pipes:
            pipe.send(None)
        for process in self._processes:
            process.join(10)


def serve_turns(pipe, address, config, inputs):
    """A client's life: `(seconds, groups)` in, (searches, CPU seconds) out."""
    network = RemoteNetwork(address, MODEL, config)
    network.wait_until_ready(600)
    network.policy(inputs)
    pipe.send("ready")
    while (turn := pipe.recv()) is not None:
        seconds, groups = turn
        cpu = time.process_time()
        count = call_in_threads(lambda _: network.policy(inputs), seconds, groups)
        pipe.send((count, time.process_time() - cpu))


class Local:
    """The server's own compiled function, in this process."""

    def __init__(self, folder, args, inputs):
        from muprover.model.runtime import cpu_devices
        from muprover.model.serving.metrics import Metrics
        from muprover.model.serving.versions import Loader

        self._devices = cpu_devices()
        loader = Loader(2 * args.batch, sizes(args), Metrics(), self._devices)
        self._version = loader.load(folder / MODEL / "1")
        self._function = self._version.program.function("search")
        self._inputs = {
            False: inputs._asdict(),
            True: {name: np.repeat(array, 2, 0) for name, array in inputs._asdict().items()},
        }

    def run(self, seconds, threads, joined=False):
        cpu, began = time.process_time(), time.perf_counter()
        count = call_in_threads(lambda i: self._search(joined, i), seconds, threads) * (1 + joined)
        elapsed = time.perf_counter() - began
        return count / elapsed, (time.process_time() - cpu) / count

    def _search(self, joined, thread):
        device = self._devices[thread % len(self._devices)]
        outputs = self._function.run(self._version.on(device), self._inputs[joined], device)
        return [outputs[name].numpy() for name in OUTPUTS]


def call_in_threads(call, seconds, threads):
    """How often `call(thread)` returned in so many seconds, from so many threads."""
    counts = [0] * threads
    until = time.perf_counter() + seconds

    def work(i):
        while time.perf_counter() < until:
            call(i)
            counts[i] += 1

    workers = [threading.Thread(target=work, args=(i,)) for i in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(counts)


def cpu_seconds(pid):
    """Of another process, all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(ways, args):
    """Turn by turn; for each way its (searches/s, CPU seconds per search)."""
    measured = {name: [] for name in ways}
    for _ in range(args.turns):
        for name, way in ways.items():
            measured[name].append(way(args.seconds))
    return measured


def report(measured, args, padding):
    rows = args.batch * args.simulations
    reference = list(measured)[1]
    results = []
    for name, turns in measured.items():
        ratios = [turn[0] / base[0] for turn, base in zip(turns, measured[reference], strict=True)]
        results.append(
            {
                "way": name,
                "simulations_per_second": statistics.median(t[0] for t in turns) * rows,
                "share": statistics.median(ratios),
                "cpu_ms_per_search": statistics.median(t[1] for t in turns) * 1e3,
            }
        )
    print(f"{args.game}, B = {args.batch}, S = {args.simulations}, {args.cores} cores")
    print(f"{'':28} {'simulations/s':>14} {'share':>7} {'CPU ms/search':>14}")
    for r in results:
        print(
            f"{r['way']:28} {r['simulations_per_second']:14,.0f} {r['share']:7.0%} "
            f"{r['cpu_ms_per_search']:14.2f}"
        )
    print(f"padding: {padding:.0%} of the rows; load {os.getloadavg()[0]:.1f}; {machine()}")
    if args.json:
        facts = vars(args) | {"json": None, "padding": padding, "load": os.getloadavg()}
        args.json.write_text(json.dumps(facts | {"results": results}, indent=1, default=str))


def machine():
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python " + (
        platform.python_version()
    )


if __name__ == "__main__":
    main()
