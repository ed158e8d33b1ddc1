"""Self-play through all its processes against the search alone: simulations per second, same cores.

    python tests/benchmarks/bench_selfplay.py [--game tictactoe] [--num-games 512] [--groups 2]
        [--seconds 5] [--rounds 5] [--json FILE] [--tls]

An environment server, a replay server (its limit off), a network server and one agent are started;
no trainer. "Alone" is the same compiled search on random positions in one process that does nothing
else, with as many games in a batch as a group of the agent's has, and with all of the agent's, by
one thread and by one for each core. The two sides run in turns, the other one being stopped
(SIGSTOP), so that they see the same machine; medians over the rounds.

With --tls, the same processes with certificates on both sides and a token are what self-play is
compared with, in the same way.
"""

import argparse
import contextlib
import json
import os
import secrets
import signal
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np
from timing import machine, write

from muprover.evaluation.matches import GamesInPlay
from muprover.game import load_game
from muprover.selfplay import random_actions

MUPROVER = [sys.executable, "-m", "muprover.cli"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--game", default="tictactoe")
    parser.add_argument("--num-games", type=int, help="(default: as the game's settings say)")
    parser.add_argument("--groups", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=5.0, help="of a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--tls", action="store_true", help="compare with locked doors")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.num_games = args.num_games or load_game(args.game).config.self_play.games_per_agent
    if args.alone:
        Alone(args.game, Path(args.alone)).obey()
    elif args.tls:
        compare_locked(args)
    else:
        compare(args)


def compare(args: argparse.Namespace) -> None:
    cores = len(os.sched_getaffinity(0))
    group = -(-args.num_games // args.groups)
    settings = {"self-play": None} | {
        f"alone, batch {batch}, {threads} thread(s)": (batch, threads)
        for batch in sorted({group, args.num_games})
        for threads in sorted({1, cores})
    }
    rates: dict[str, list[float]] = {name: [] for name in settings}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        alone = stack.enter_context(AloneProcess(args.game, folder / "model"))
        for batch, threads in filter(None, settings.values()):
            alone.measure(batch, threads, 0.1)  # compiles
        pipeline = stack.enter_context(Pipeline(args, folder, folder))
        for _ in range(args.rounds):
            rates["self-play"].append(pipeline.measure(args.seconds))
            with pipeline.stopped():
                for name, setting in settings.items():
                    if setting:
                        rates[name].append(alone.measure(*setting, args.seconds / 3))
        shares = pipeline.cpu_shares()
        agent = {
            "seconds_to_first_move": round(pipeline.seconds_to_first_move, 2),
            "peak_megabytes": round(pipeline.agent_megabytes()),
        }
    report(args, rates, shares, agent)


def compare_locked(args: argparse.Namespace) -> None:
    """Prints what locks cost: two pipelines in turns, one of them without any."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        with AloneProcess(args.game, folder / "model"):  # exports the model
            pass
        kinds = {"open": {}, "locked": make_locks(folder)}
        pipelines: dict[str, Pipeline] = {}
        for name, variables in kinds.items():
            with contextlib.ExitStack() as others:
                for other in pipelines.values():
                    others.enter_context(other.stopped())
                pipeline = Pipeline(args, folder, folder / name, variables)
                pipelines[name] = stack.enter_context(pipeline)
        rates: dict[str, list[float]] = {name: [] for name in kinds}
        for turn in range(args.rounds):
            for name in sorted(kinds, reverse=bool(turn % 2)):
                other = pipelines["open" if name == "locked" else "locked"]
                with other.stopped():
                    pipelines[name].measure(0.5)
                    rates[name].append(pipelines[name].measure(args.seconds))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    ratios = [locked / open_ for locked, open_ in zip(rates["locked"], rates["open"], strict=True)]
    print(f"{args.game}, {args.num_games} games in {args.groups} groups, {json.dumps(machine())}")
    for name, rate in medians.items():
        print(f"  {name:28} {rate:10,.0f} simulations/s")
    cost = 1 - statistics.median(ratios)
    print(
        f"  TLS, client certificates and a token cost {cost:.1%} (median of {len(ratios)} rounds)"
    )
    write(args.json, {"simulations_per_s": medians, "all": rates})


def make_locks(folder: Path) -> dict[str, str]:
    """Variables that lock every process with certificates of its own and a token."""
    from muprover.certificates import make_certificates
    from muprover.services.locks import TLS, TOKEN_FILE

    make_certificates(folder / "certificates", ["localhost"], days=2)
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    return {TLS: str(folder / "certificates"), TOKEN_FILE: str(token)}


def report(
    args: argparse.Namespace,
    rates: dict[str, list[float]],
    shares: dict[str, float],
    agent: dict[str, float],
) -> None:
    medians = {name: statistics.median(values) for name, values in rates.items()}
    print(f"{args.game}, {args.num_games} games in {args.groups} groups, {json.dumps(machine())}")
    for name, rate in medians.items():
        ratio = medians["self-play"] / rate
        print(f"  {name:28} {rate:10,.0f} simulations/s   self-play is {ratio:6.1%} of it")
    print("  CPU: " + ", ".join(f"{name} {share:.0%}" for name, share in shares.items()))
    print("  agent: " + ", ".join(f"{name} {value}" for name, value in agent.items()))
    result: dict[str, object] = {"arguments": {"game": args.game, "num_games": args.num_games}}
    result |= {"simulations_per_s": medians, "all": rates, "cpu": shares, "agent": agent}
    write(args.json, result)


class Pipeline:
    """Environment, replay, network and agent as processes."""

    def __init__(
        self,
        args: argparse.Namespace,
        models: Path,
        folder: Path,
        variables: dict[str, str] | None = None,
    ) -> None:
        """`models` has the model; `variables` are what the environment of each process has more."""
        self._args = args
        self._models = models
        self._folder = folder
        self._variables = variables or {}
        folder.mkdir(exist_ok=True)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._metrics = ""

    def __enter__(self) -> "Pipeline":
        names = ("environment", "replay", "network", "metrics")
        ports = {name: str(free_port()) for name in names}
        at = {name: f"localhost:{port}" for name, port in ports.items()}
        scheme = "https" if self._variables else "http"
        self._metrics = f"{scheme}://{at['metrics']}/metrics"
        model = ["--model-name=muprover", f"--model-base-path={self._models / 'model'}"]
        model += ["--enable-serialization-as-tensor-content"]  # as in every run
        self._start("network", "--port", ports["network"], "--rest-api-port=0", *model)
        game = ["--game", self._args.game]
        self._start("environment", *game, "--port", ports["environment"])
        store = ["--logdir", str(self._folder / "replay"), "--set=replay.samples_per_insert=null"]
        self._start("replay", *game, "--port", ports["replay"], *store)
        servers = ["--environment", at["environment"], "--network", at["network"]]
        servers += ["--replay-buffer", at["replay"], "--metrics-port", ports["metrics"]]
        games = ["--num-games", str(self._args.num_games), "--groups", str(self._args.groups)]
        self._start("agent", *game, *servers, *games)
        self._warm_up()
        self._stop("agent")
        started = time.perf_counter()
        self._start("agent", *game, *servers, *games)
        while not self._simulations():
            time.sleep(0.01)
        self.seconds_to_first_move = time.perf_counter() - started
        self._idle = {name: cpu_seconds(p.pid) for name, p in self._processes.items()}
        return self

    def __exit__(self, *_: object) -> None:
        for component in reversed(self._processes):
            self._stop(component)

    def measure(self, seconds: float) -> float:
        """Simulations per second of the next `seconds`."""
        before, start = self._simulations(), time.perf_counter()
        time.sleep(seconds)
        return (self._simulations() - before) / (time.perf_counter() - start)

    @contextlib.contextmanager
    def stopped(self):
        for process in self._processes.values():
            process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            for process in self._processes.values():
                process.send_signal(signal.SIGCONT)
            self.measure(0.5)

    def seconds_per_simulation(self, component: str, seconds: float) -> float:
        """CPU time that a component takes for one simulation, in the next `seconds`."""
        pid = self._processes[component].pid
        before, simulations = cpu_seconds(pid), self._simulations()
        time.sleep(seconds)
        return (cpu_seconds(pid) - before) / (self._simulations() - simulations)

    def cpu_shares(self) -> dict[str, float]:
        """Of each process in the CPU time of all, since they were warm."""
        used = {name: cpu_seconds(p.pid) - self._idle[name] for name, p in self._processes.items()}
        return {name: seconds / sum(used.values()) for name, seconds in used.items()}

    def _start(self, component: str, *options: str) -> None:
        log = open(self._folder / f"{component}.log", "wb")  # noqa: SIM115 - the process's
        environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "2"} | self._variables
        command = [*MUPROVER, component, *options]
        self._processes[component] = subprocess.Popen(
            command, stdout=log, stderr=log, env=environment
        )

    def _stop(self, component: str) -> None:
        self._processes[component].terminate()
        self._processes[component].wait(30)

    def agent_megabytes(self) -> float:
        status = Path(f"/proc/{self._processes['agent'].pid}/status").read_text()
        return next(
            int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM")
        )

    def _warm_up(self) -> None:
        """Until three seconds are about as fast as those before: all is compiled then."""
        rates = [0.0, 0.0]
        while min(rates[-2:]) < 0.8 * max(rates) or not rates[-1]:
            rates.append(self.measure(3.0))

    def _simulations(self) -> float:
        for name, process in self._processes.items():
            if process.poll() is not None:
                raise SystemExit((self._folder / f"{name}.log").read_text())
        try:
            context = ssl._create_unverified_context() if self._variables else None
            page = urllib.request.urlopen(self._metrics, timeout=5, context=context)
            text = page.read().decode()
        except OSError:
            return 0.0  # not up yet
        name = "muprover_agent_simulations_total "
        return next(float(line.split()[1]) for line in text.splitlines() if line.startswith(name))


class AloneProcess:
    """A process that searches when told to."""

    def __init__(self, game: str, model: Path) -> None:
        self._command = [sys.executable, __file__, "--game", game, "--alone", str(model)]

    def __enter__(self) -> "AloneProcess":
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()

    def measure(self, batch: int, threads: int, seconds: float) -> float:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(batch, threads, seconds, file=self._process.stdin, flush=True)
        return float(self._process.stdout.readline())


class Alone:
    """The search of an untrained network, exported, and loaded as the network server does."""

    def __init__(self, name: str, folder: Path) -> None:
        from muprover.model.export import export_version
        from muprover.model.networks import build_network
        from muprover.model.runtime import cpu_devices, tune_for_several
        from muprover.model.serving.metrics import Metrics
        from muprover.model.serving.versions import Loader

        cores = len(os.sched_getaffinity(0))
        tune_for_several(cores, cores)  # as the network server does
        self.game = load_game(name)
        network = build_network(self.game, 0)
        version = export_version(network, self.game.config, folder, training_step=1)
        self.devices = cpu_devices()
        loader = Loader(4096, (), Metrics(), self.devices)
        self.version = loader.load(folder / str(version))
        self.search = self.version.program.function("search")

    def obey(self) -> None:
        print("ready", flush=True)
        for line in sys.stdin:
            batch, threads, seconds = line.split()
            print(self.measure(int(batch), int(threads), float(seconds)), flush=True)

    def measure(self, batch: int, threads: int, seconds: float) -> float:
        """Simulations per second, of searches of random positions with fresh seeds."""
        inputs = self.inputs(batch)
        for device in self.devices:
            self.search.run(self.version.on(device), inputs, device)
        start, counts = time.perf_counter(), [0] * threads

        def work(thread: int) -> None:
            rng, device = np.random.default_rng(thread), self.devices[thread % len(self.devices)]
            weights = self.version.on(device)
            while time.perf_counter() < start + seconds:
                inputs_now = inputs | {"seed": rng.integers(-(2**31), 2**31, (batch, 2), np.int32)}
                outputs = self.search.run(weights, inputs_now, device)
                outputs["action"].numpy()
                counts[thread] += 1

        workers = [threading.Thread(target=work, args=(thread,)) for thread in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        simulations = sum(counts) * batch * self.game.config.search.num_simulations
        return simulations / (time.perf_counter() - start)

    def inputs(self, batch: int) -> dict[str, np.ndarray]:
        """Of positions that up to five random moves lead to."""
        rng, rows = np.random.default_rng(0), np.arange(batch)
        games = GamesInPlay(self.game, self.game.make_environments(batch))
        games.start(rows, rows)
        for move in range(5):
            some = np.flatnonzero((rows % 6 > move) & ~games.over)
            games.move(some, random_actions(games.legal_actions[some], rng))
        view = games.view(rows)
        return {
            "observation": view.observation,
            "legal_actions": view.legal_actions | games.over[:, None],
            "seed": np.zeros((batch, 2), np.int32),
            "num_simulations": np.full(batch, self.game.config.search.num_simulations, np.int32),
            "temperature": np.ones(batch, np.float32),
            "exploration": np.ones(batch, np.float32),
        }


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    import socket

    with socket.socket() as listener:
        listener.bind(("", 0))
        return int(listener.getsockname()[1])


if __name__ == "__main__":
    main()
