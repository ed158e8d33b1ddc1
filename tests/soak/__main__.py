"""Trains for an hour while agents come and go, and draws what each component holds.

    make soak                                  an hour
    python tests/soak --minutes 5              a short form of it

Leaves `soak.csv` and `soak.svg` in the run's folder, and says how much each figure grows in the
last half hour, when buffers are full.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

from chaos.watch import Process, Run

from soak.picture import draw
from soak.slopes import Sample, slopes, table, write_csv
from soak.usage import disk_mb, usage

END_SECONDS = 60.0  # that an agent may take to end
MOST_PER_HOUR = 1.0  # % that resident memory may grow


class Guest(NamedTuple):
    """An agent that comes and goes."""

    process: subprocess.Popen[bytes]
    leaves_at: float


def main() -> int:
    args = parse()
    options = ["--game", args.game, "--time-limit", "100000"]
    settings = [f"replay.max_size={args.max_size}", "evaluation.goal.consecutive=1000000"]
    for setting in [*settings, *args.set]:
        options += ["--set", setting]
    run = Run(args.folder, options)
    guests = Guests(run, random.Random(args.seed), args.stay, args.guests)
    try:
        run.wait_for(run.all_answer, args.patience, "all components answer")
        run.wait_for(lambda: run.count("steps") > 50, args.patience, "training has begun")
        samples = watch(run, guests, args)
    finally:
        guests.end()
        status = run.end()
    return report(args, samples, guests, status)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--game", default="tictactoe")
    add("--minutes", type=float, default=60.0)
    add("--last", type=float, help="minutes whose growth is asked for (default: half, at most 30)")
    add("--every", type=float, default=5.0, help="s between two looks (default: %(default)g)")
    add("--guests", type=int, default=2, help="agents that come and go, at once")
    add("--stay", type=float, default=60.0, help="s that one stays, on the average")
    add("--max-size", type=int, default=20_000, help="of the replay buffer: soon full")
    add("--patience", type=float, default=600.0, help="s that the start may take (default: 600)")
    add("--seed", type=int, default=0)
    add("--set", action="append", default=[], metavar="PATH=VALUE")
    add("--folder", type=Path)
    args = parser.parse_args()
    args.last = args.last or min(30.0, args.minutes / 2)
    args.folder = (args.folder or Path("runs") / f"soak-{datetime.now():%Y%m%d-%H%M%S}").resolve()
    return args


class Guests:
    """Agents beside the run's own one: some end as they are told to, some are killed."""

    def __init__(self, run: Run, rng: random.Random, stay: float, count: int) -> None:
        self.came = 0
        self._run = run
        self._rng = rng
        self._stay = stay
        self._count = count
        self._here: list[Guest] = []
        self._leaving: list[tuple[subprocess.Popen[bytes], float]] = []

    def look(self) -> None:
        """Lets those go whose time has come, and others come."""
        now = time.monotonic()
        for guest in [g for g in self._here if g.leaves_at < now]:
            self._here.remove(guest)
            guest.process.send_signal(self._rng.choice((signal.SIGTERM, signal.SIGKILL)))
            self._leaving.append((guest.process, now + END_SECONDS))
        own = self._run.process("agent-1")
        while own is not None and len(self._here) < self._count:
            stays = self._stay * self._rng.uniform(0.5, 1.5)
            self._here.append(Guest(self._come(own), now + stays))
        for process, deadline in list(self._leaving):
            if process.poll() is not None:
                self._leaving.remove((process, deadline))
            elif now > deadline:
                raise TimeoutError(f"agent {process.pid} does not end")

    def end(self) -> None:
        for guest in self._here:
            guest.process.terminate()
        for process in [g.process for g in self._here] + [p for p, _ in self._leaving]:
            process.wait(END_SECONDS)

    def _come(self, own: Process) -> subprocess.Popen[bytes]:
        """One like the run's own agent, but for its name and its port."""
        self.came += 1
        words = [word for word in own.words if word]
        words[words.index("--agent-name") + 1] = f"guest-{self.came}"
        words[words.index("--metrics-port") + 1] = "0"
        words[words.index("--seed") + 1] = str(self.came)
        return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def watch(run: Run, guests: Guests, args: argparse.Namespace) -> list[Sample]:
    samples: list[Sample] = []
    began = time.monotonic()
    while (seconds := time.monotonic() - began) < 60 * args.minutes:
        if run.launcher.poll() is not None:
            raise RuntimeError(f"the run has ended: {run.output.read_text()[-2000:]}")
        guests.look()
        processes = [p for p in run.processes() if not p.name.startswith("guest")]
        held = [(process.name, usage(process.pid)) for process in processes]
        held.append(("launcher", usage(run.launcher.pid)))
        for name, now in held:
            if now is not None:
                samples += [
                    Sample(seconds, name, figure, value) for figure, value in now._asdict().items()
                ]
        for name in ("replay", "models", "checkpoints", "logs", "tensorboard"):
            samples.append(Sample(seconds, name, "disk_mb", disk_mb(run.folder.path / name)))
        time.sleep(args.every)
    return samples


def report(args: argparse.Namespace, samples: list[Sample], guests: Guests, status: int) -> int:
    since = 60 * (args.minutes - args.last)
    write_csv(samples, args.folder / "soak.csv")
    draw(samples, args.folder / "soak.svg", since)
    found = slopes(samples, since)
    print(f"\nin the last {args.last:g} minutes, load {os.getloadavg()}:\n")
    print(table(found))
    print(f"\n{guests.came} agents came; the run ended with {status}; {args.folder / 'soak.svg'}")
    memory = [s for s in found if s.figure == "memory_mb"]
    return 1 if any(s.percent_per_hour > MOST_PER_HOUR for s in memory) else 0


if __name__ == "__main__":
    sys.exit(main())
