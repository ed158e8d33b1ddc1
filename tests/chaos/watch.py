"""A run of `muprover run` as a user starts it, seen from outside: processes, counters, speed."""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from muprover.progress import scrape
from muprover.runfolder import RunFolder

LOOK_SECONDS = 0.2
WINDOW_SECONDS = 2.0  # over which speed is taken
BEFORE_SECONDS = 15.0  # of which the speed before a fault is the median
COUNTERS = {
    "moves": ("agent", "muprover_agent_moves_total"),
    "steps": ("trainer", "muprover_trainer_steps"),
    "games": ("replay", "muprover_replay_inserted_games_total"),
}
RATES = ("moves", "steps")  # what full speed is of
KINDS = {"evaluate": "evaluator"}


class Process(NamedTuple):
    pid: int
    name: str  # of the component
    words: list[str]

    def option(self, name: str) -> str:
        return self.words[self.words.index(name) + 1]


def is_waiting(process: Path) -> bool:
    """Whether a process of /proc is a standby that has not been told to go on."""
    try:
        return os.readlink(process / "fd" / "0").startswith("pipe:")
    except OSError:
        return True  # it has ended


class Look(NamedTuple):
    """What had been counted by a moment; sums that never fall."""

    time: float
    counts: dict[str, float]


class Recovery(NamedTuple):
    """Seconds from a fault (or its end) on; None: not while it was watched."""

    again: float | None  # all counters move again
    full: float | None  # and the speed is what it was
    share: float  # of the speed before that was last seen


class Run:
    """A launcher, its components, and what they count."""

    def __init__(
        self, folder: Path, options: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> None:
        self.folder = RunFolder(folder)
        self._command = [sys.executable, "-m", "muprover.cli", "run", "--folder", str(folder)]
        self._command += options
        self._environment = {**os.environ, **(environment or {})}
        self._looks: list[Look] = []
        self._last: dict[int, dict[str, float]] = {}  # by process: what it counted last
        self._sums = dict.fromkeys(COUNTERS, 0.0)
        self._answering: set[str] = set()
        self._ended = threading.Event()
        self._threads = ThreadPoolExecutor(16, "scrape")
        self.output = folder.with_suffix(".out")
        self.output.parent.mkdir(parents=True, exist_ok=True)
        self.start()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def start(self) -> None:
        """Begins, or goes on."""
        with self.output.open("ab") as file:
            self.launcher = subprocess.Popen(
                self._command, stdout=file, stderr=file, env=self._environment
            )

    @property
    def seconds(self) -> float:
        return time.monotonic()

    def processes(self) -> list[Process]:
        """The components' processes, as they stand."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_text().split("\0")
            except OSError:
                continue  # it has just ended
            if "muprover.cli" in words and "--metrics-port" in words and self._is_mine(words):
                if is_waiting(path.parent):
                    continue
                kind = words[words.index("muprover.cli") + 1]
                name = KINDS.get(kind, kind)
                if "--agent-name" in words:
                    name = words[words.index("--agent-name") + 1]
                found.append(Process(int(path.parent.name), name, words))
        return sorted(found, key=lambda process: process.name)

    def process(self, name: str) -> Process | None:
        return next((p for p in self.processes() if p.name == name), None)

    def wait_for(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        deadline = self.seconds + seconds
        while not condition():
            if self.launcher.poll() is not None:
                tail = self.output.read_text(errors="replace")[-3000:]
                raise RuntimeError(f"the run has ended with {self.launcher.poll()}:\n{tail}")
            if self.seconds > deadline:
                raise TimeoutError(f"not within {seconds:g} s: {what}")
            time.sleep(LOOK_SECONDS)

    def count(self, name: str) -> float:
        return self._sums[name]

    def all_answer(self) -> bool:
        names = {process.name for process in self.processes()}
        return len(names) >= 6 and names <= self._answering

    def speeds(self, start: float, end: float) -> dict[str, float]:
        """What was counted per second between two moments."""
        looks = [look for look in list(self._looks) if start <= look.time <= end]
        if len(looks) < 2:
            return dict.fromkeys(COUNTERS, 0.0)
        first, last = looks[0], looks[-1]
        seconds = last.time - first.time
        return {n: (last.counts[n] - first.counts[n]) / seconds for n in COUNTERS}

    def speed_before(self, moment: float) -> dict[str, float]:
        """The median speed of the time before."""
        starts = [
            moment - BEFORE_SECONDS + i * WINDOW_SECONDS / 2
            for i in range(int(2 * (BEFORE_SECONDS / WINDOW_SECONDS - 1)))
        ]
        windows = [self.speeds(start, start + WINDOW_SECONDS) for start in starts]
        return {n: statistics.median(w[n] for w in windows) for n in COUNTERS}

    def await_recovery(
        self, since: float, before: dict[str, float], share: float, until: float
    ) -> Recovery:
        """Watches from `since` on until all is as fast as before, or until a moment."""
        again = full = None
        best = 0.0
        known = [name for name in RATES if before[name] > 0]  # else it had not recovered before
        while full is None and self.seconds < until and self.launcher.poll() is None:
            time.sleep(LOOK_SECONDS)
            looks = [look for look in list(self._looks) if look.time >= since]
            for look in looks:
                window = self.speeds(look.time, look.time + WINDOW_SECONDS)
                complete = looks[-1].time >= look.time + WINDOW_SECONDS * 0.9
                if not complete:
                    break
                if again is None and self._all_move(look.time):
                    again = look.time - since
                reached = min((window[n] / before[n] for n in known), default=0.0)
                best = max(best, reached)
                if reached >= share and again is not None:
                    full = look.time - since
                    break
        return Recovery(again, full, best)

    def end(self, number: signal.Signals = signal.SIGINT, seconds: float = 240.0) -> int:
        """Ends the run as Ctrl-C does; answers its exit status."""
        self._ended.set()
        self._watcher.join(10)
        if self.launcher.poll() is None:
            self.launcher.send_signal(number)
        return self.launcher.wait(seconds)

    def _all_move(self, moment: float) -> bool:
        """Whether every counter rises within a moment from here on."""
        window = self.speeds(moment, moment + WINDOW_SECONDS / 2)
        return all(window[name] > 0 for name in RATES)

    def _is_mine(self, words: Sequence[str]) -> bool:
        mine = str(self.folder.path)
        return any(mine in word for word in words)

    def _watch(self) -> None:
        while not self._ended.wait(LOOK_SECONDS):
            processes = self.processes()
            ports = [int(process.option("--metrics-port")) for process in processes]
            answers = list(self._threads.map(scrape, ports))
            self._answering = {p.name for p, a in zip(processes, answers, strict=True) if a}
            for process, answer in zip(processes, answers, strict=True):
                self._add(process, answer)
            self._looks.append(Look(time.monotonic(), dict(self._sums)))

    def _add(self, process: Process, metrics: Mapping[str, float]) -> None:
        """Adds what a process has counted since it was last asked."""
        last = self._last.setdefault(process.pid, {})
        for name, (component, metric) in COUNTERS.items():
            value = metrics.get(metric)
            if value is None or not process.name.startswith(component):
                continue
            # a trainer or replay server that resumes says 0 before it goes on where it was
            known = last.get(name) or (0.0 if component == "agent" else value)
            self._sums[name] += max(0.0, value - known)
            last[name] = value
