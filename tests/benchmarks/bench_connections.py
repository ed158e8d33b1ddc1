"""A thousand agents at once: idle but for one game each, on one environment and one replay server.

    python tests/benchmarks/bench_connections.py [--agents 1000] [--processes 8] [--json FILE]

Each agent has a connection of its own to each server, holds a game, plays a move in it and asks the
replay server for room to begin more, which there is none of; `--processes` share them. Meanwhile
one more agent measures how long its moves and the storing of its games take. Printed are these, how
many were served, and memory, threads and open files of the servers without agents and with them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from bench_selfplay import free_port
from timing import machine, write

from muprover.game import Game, load_game
from muprover.history import GameHistory
from muprover.services import client
from muprover.services.environment import RemoteEnvironments
from muprover.services.limits import allow_open_files
from muprover.services.remote_replay import RemoteReplayBuffer

MUPROVER = [sys.executable, "-m", "muprover.cli"]
LIMITED = ["replay.samples_per_insert=1", "replay.min_size_to_sample=1"]  # then nobody has room


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--agents", type=int, default=1000)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=20.0, help="that all of them stay")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--crowd", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.crowd:
        environment, replay, first, number = args.crowd
        be_a_crowd(environment, replay, int(first), int(number))
    else:
        measure(args)


def measure(args: argparse.Namespace) -> None:
    game = load_game("tictactoe", overrides=LIMITED)
    with tempfile.TemporaryDirectory() as folder:
        servers, addresses = start_servers(Path(folder))
        with_nobody: dict[str, Any] = {}
        try:
            good = GoodAgent(game, **addresses)
            alone = good.play(args.seconds / 2)
            with_nobody = {name: about(process.pid) for name, process in servers.items()}
            crowds = start_crowds(args, addresses)
            served = sum(int(crowd.stdout.readline()) for crowd in crowds)
            among = good.play(args.seconds)
            with_all = {name: about(process.pid) for name, process in servers.items()}
            stats = good.replay.stats()
            for crowd in crowds:
                crowd.communicate("")
        finally:
            for process in servers.values():
                process.terminate()
    result = {
        "agents": args.agents,
        "served": served,
        "connected_at_replay": stats.connected_agents,
        "without": with_nobody,
        "with": with_all,
        "good_agent_alone_ms": alone,
        "good_agent_among_them_ms": among,
    }
    report(result)
    write(args.json, result)
    if served < args.agents:
        raise SystemExit(f"only {served} of {args.agents} agents were served")


def report(result: dict[str, Any]) -> None:
    print(json.dumps(machine()))
    print(f"{result['served']} of {result['agents']} agents have a game and wait for room")
    for name, now in result["with"].items():
        before = result["without"][name]
        change = ", ".join(f"{what} {before[what]} -> {now[what]}" for what in now)
        print(f"  {name:12} {change}")
    for what in ("alone", "among_them"):
        times = result[f"good_agent_{what}_ms"]
        told = ", ".join(f"{name} {value:.1f} ms" for name, value in times.items())
        print(f"  one more agent, {what.replace('_', ' ')}: {told}")


def start_servers(folder: Path) -> tuple[dict[str, subprocess.Popen[bytes]], dict[str, str]]:
    ports = {"environment": free_port(), "replay": free_port()}
    more = {"environment": [], "replay": ["--logdir", str(folder / "replay")]}
    servers = {}
    for name, port in ports.items():
        sets = [word for setting in LIMITED for word in ("--set", setting)]
        command = [*MUPROVER, name, "--game", "tictactoe", *sets, "--port", str(port), *more[name]]
        log = open(folder / f"{name}.log", "wb")  # noqa: SIM115 - the process's
        servers[name] = subprocess.Popen([*command, "--host", "localhost"], stderr=log)
    return servers, {name: f"localhost:{port}" for name, port in ports.items()}


def start_crowds(args: argparse.Namespace, at: dict[str, str]) -> list[subprocess.Popen[str]]:
    shares = np.array_split(np.arange(args.agents), args.processes)
    return [
        subprocess.Popen(
            [
                *(sys.executable, __file__, "--crowd", at["environment"], at["replay"]),
                *(str(share[0]), str(len(share))),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for share in shares
    ]


def be_a_crowd(environment: str, replay: str, first: int, number: int) -> None:
    """Prints how many of so many agents were served, and stays until its input ends."""
    allow_open_files()
    client.CHANNEL_OPTIONS.append(("grpc.use_local_subchannel_pool", 1))  # a connection each
    game = load_game("tictactoe", overrides=LIMITED)
    agents = []
    for i in range(first, first + number):
        environments = RemoteEnvironments(environment, game.config, 1)
        buffer = RemoteReplayBuffer(replay, game.config)
        buffer.connect()
        environments.reset([0], [i])
        environments.step([0], [4])
        agents.append((environments, buffer))
    over = threading.Event()
    for i, (_, buffer) in enumerate(agents):
        waiting = threading.Thread(target=wait_for_room, args=(buffer, f"agent-{first + i}", over))
        waiting.daemon = True
        waiting.start()
    print(len(agents), flush=True)
    sys.stdin.read()
    over.set()
    os._exit(0)


def wait_for_room(buffer: RemoteReplayBuffer, name: str, over: threading.Event) -> None:
    """As agents do: one long poll after the other."""
    while not over.is_set():
        buffer.admit(name, stop=over)


class GoodAgent:
    """Plays moves and stores games, and takes the time."""

    def __init__(self, game: Game, environment: str, replay: str) -> None:
        self.replay = RemoteReplayBuffer(replay, game.config)
        self._environments = RemoteEnvironments(environment, game.config, 1)
        self._rng = np.random.default_rng(0)
        while self.replay.admit("good", timeout=0.5):  # until there is room for nobody
            self.replay.add(self._game())

    def play(self, seconds: float) -> dict[str, float]:
        """Milliseconds of a move and of storing a game: medians, and 99 of 100 take less."""
        moves, adds, end = [], [], time.perf_counter() + seconds
        while time.perf_counter() < end:
            self._environments.reset([0], [1])
            start = time.perf_counter()
            self._environments.step([0], [0])
            moved = time.perf_counter()
            self.replay.add(self._game())
            moves.append(moved - start)
            adds.append(time.perf_counter() - moved)
            time.sleep(0.02)
        figures = {"a move": moves, "storing a game": adds}
        return {
            f"{name}, {word}": 1000 * float(np.quantile(times, q))
            for name, times in figures.items()
            for word, q in (("median", 0.5), ("99 %", 0.99))
        }

    def _game(self) -> GameHistory:
        size = 5
        return GameHistory(
            game_id=int(self._rng.integers(1 << 62)),
            segment=0,
            first=0,
            size=size,
            observation=np.zeros((size, 3, 3, 2), np.float32),
            action=np.arange(size, dtype=np.int32),
            reward=np.zeros(size, np.float32),
            to_play=(np.arange(size) % 2).astype(np.int32),
            legal_actions=np.ones((size, 9), bool),
            action_weights=np.full((size, 9), 1 / 9, np.float32),
            root_value=np.zeros(size, np.float32),
            exploratory=np.zeros(size, bool),
            final_value=0.0,
            terminated=True,
            agent="good",
            network_version=1,
        )


def about(pid: int) -> dict[str, int]:
    """Resident megabytes, threads and open files of a process."""
    status = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    return {
        "MB": int(status["VmRSS"].split()[0]) // 1024,
        "threads": int(status["Threads"]),
        "open files": len(os.listdir(f"/proc/{pid}/fd")),
    }


if __name__ == "__main__":
    main()
