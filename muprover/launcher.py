"""`muprover run`: all components on this machine, until the game's goal is met."""

from __future__ import annotations

import shlex
import shutil
import signal
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np

from muprover.components import Layout, Ports, make_components
from muprover.config import SettingsError
from muprover.game import Game, load_game
from muprover.logs import configure_logging
from muprover.progress import Display, Monitor, Snapshot, describe_evaluation, make_display
from muprover.runfolder import RunFolder, machine, new_folder
from muprover.signals import on_signals
from muprover.supervisor import Component, ComponentError, Supervisor

TICK_SECONDS = 0.1
SNAPSHOT_SECONDS = 1.0
RESULT_SECONDS = 10.0  # what a launcher that is killed may lose of the time it has counted
LAST_EVALUATION_SECONDS = 120.0  # allowed for, once the trainer has made its last step
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # the last: the terminal is closed


class Status(IntEnum):
    """Exit statuses."""

    REACHED = 0
    NOT_REACHED = 1
    INTERRUPTED = 130


@dataclass(frozen=True)
class RunOptions:
    """The command line of `muprover run`."""

    source: str  # of the game
    settings_file: str | None = None
    overrides: tuple[str, ...] = ()
    name: str | None = None
    runs: Path = Path("runs")
    folder: Path | None = None
    seed: int | None = None
    time_limit_minutes: float = 60.0
    layout: Layout = field(default_factory=Layout)


def launch(options: RunOptions) -> int:
    """Runs all components until the goal is met, the time is up, or Ctrl-C; answers the status."""
    configure_logging("run", "warning")
    folder, game, seed = prepare(options)
    with folder.lock() as lock:
        session = Session(options, folder, game, seed)
        print(session.opening_words(), flush=True)
        status = session.run(lock)
        print(session.closing_words(status))
    return status


def prepare(options: RunOptions) -> tuple[RunFolder, Game, int]:
    """The folder of a new run, or of one to be resumed, with its game and seed."""
    if options.folder:
        folder = RunFolder(options.folder)
    else:
        name = load_game(options.source).name
        folder = new_folder(options.runs, options.name, name)
    if folder.exists:
        return folder, *resume(folder, options)
    game = load_game(options.source, options.settings_file, options.overrides)
    seed = options.seed or 0
    folder.create(game, seed)
    return folder, folder.load(), seed


def resume(folder: RunFolder, options: RunOptions) -> tuple[Game, int]:
    """The game and the seed of a run that is gone on with; refuses what does not fit it."""
    seed: int = folder.read_facts()["seed"]
    if options.seed not in (None, seed):
        raise SettingsError(
            f"{folder.path} was begun with seed {seed}; it cannot go on with {options.seed}. "
            "Choose another --folder or --name for a new run"
        )
    if options.settings_file:
        raise SettingsError("a run that is resumed keeps its settings; change single ones by --set")
    begun = folder.load()
    game = folder.load(options.overrides)
    for other, what in ((load_game(options.source), options.source), (game, "--set")):
        check_fits(folder, begun, other, what)
    if not folder.keeps(options.source):
        print(f"note: {options.source} has changed; the run goes on with its copy {folder.source}")
    folder.write_settings(game.config)
    return game, seed


def check_fits(folder: RunFolder, begun: Game, other: Game, what: str) -> None:
    """Refuses a game whose stored positions mean something else."""
    mine, theirs = begun.config.contract, other.config.contract
    different = [
        f"{path} is {mine[path]} there, {theirs[path]} here"
        for path in mine
        if theirs[path] != mine[path]
    ]
    if different:
        raise SettingsError(
            f"{folder.path} is a run of {begun.name}, which {what} does not fit: "
            f"{'; '.join(different)}. Choose another --folder or --name"
        )


@dataclass
class Session:
    """A run from one start of its processes to their end."""

    options: RunOptions
    folder: RunFolder
    game: Game
    seed: int
    reached: bool = False
    ended_by: str = ""
    result: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.before = self.folder.read_result()
        self.number = self.before.get("sessions", 0) + 1
        self.ports = Ports.choose(self.options.layout)
        self.supervisor = Supervisor()
        self.monitor = Monitor(self.ports.metrics, self.folder.evaluations)
        self.snapshot = Snapshot(self._seconds_before)
        self.started = time.monotonic()

    def run(self, lock: int) -> Status:
        """Starts everything, watches it, ends it; writes `result.json`.

        lock: a file descriptor that the components hold as well.
        """
        stop = threading.Event()
        self.supervisor.components = self.make_components()
        self.started = time.monotonic()
        try:
            with on_signals(dict.fromkeys(ENDING, stop.set)):
                self.supervisor.start(lock)
                self._watch(stop)
        except ComponentError as error:
            self.ended_by = "a component failed"
            print(f"muprover: {error}", file=sys.stderr)
        finally:
            with on_signals(dict.fromkeys(ENDING, self.supervisor.kill)):
                self.write_result()
                self._end()
        if stop.is_set():
            return Status.INTERRUPTED
        return Status.REACHED if self.reached else Status.NOT_REACHED

    def make_components(self) -> list[Component]:
        config, layout = self.game.config, self.options.layout
        return make_components(layout, self.ports, self.folder, config, self.seed, self.chance)

    @property
    def chance(self) -> int:
        """A seed of what must not happen again in another session: the games of agents."""
        if self.number == 1:
            return self.seed
        return int(np.random.SeedSequence([self.seed, self.number]).generate_state(1)[0])

    @property
    def seconds(self) -> float:
        """Of the run, from the start of its processes, earlier sessions included."""
        return self._seconds_before + time.monotonic() - self.started

    @property
    def _seconds_before(self) -> float:
        return float(self.before.get("wall_clock_seconds", 0.0))

    def opening_words(self) -> str:
        goal = self.game.config.evaluation.goal
        again = "" if self.number == 1 else f", session {self.number}"
        return "\n".join(
            [
                f"run folder: {self.folder.path}{again}",
                f"goal: {goal or 'none'}, or {self.options.time_limit_minutes:g} minutes",
                f"network: localhost:{self.ports.network}, REST localhost:{self.ports.rest}; "
                f"replay: localhost:{self.ports.replay}; "
                f"environment: localhost:{self.ports.environment}",
            ]
        )

    def closing_words(self, status: Status) -> str:
        """What has come of it, and what to do next."""
        folder = shlex.quote(str(self.folder.path))
        game = shlex.quote(self.options.source)
        verdict = {
            Status.REACHED: f"goal met: {self.game.config.evaluation.goal}",
            Status.INTERRUPTED: "interrupted",
            Status.NOT_REACHED: f"goal not met: {self.ended_by}",
        }[status]
        muprover, tensorboard = installed("muprover"), installed("tensorboard")
        return "\n".join(
            [
                "",
                f"{verdict}, after {self.result['wall_clock_seconds']:.0f} s, "
                f"{self.result['games']:,} games, {self.result['steps']:,} training steps",
                f"evaluation: {describe_evaluation(self.result['evaluation'])}",
                "",
                "what to do next:",
                f"  play against it   {muprover} play --run {folder}",
                f"  see the curves    {tensorboard} --logdir {folder}/tensorboard",
                f"  train on          {muprover} run --game {game} --folder {folder}",
                f"  read the figures  {folder}/result.json, {folder}/evaluations.jsonl",
            ]
        )

    def _watch(self, stop: threading.Event) -> None:
        """Shows how it goes until there is a reason to end."""
        minutes = self.options.time_limit_minutes
        end, reason = self.started + 60 * minutes, f"the time limit of {minutes:g} minutes"
        with make_display(f"{self.game.name}, seed {self.seed}") as display:
            self.supervisor.tell = display.tell
            while not stop.wait(TICK_SECONDS):
                self.supervisor.check()
                if self.monitor.evaluation().get("goal_met"):
                    self.reached, end, reason = True, 0.0, "goal met"
                elif self.supervisor.is_done("trainer") and not reason.startswith("training"):
                    end = min(end, time.monotonic() + LAST_EVALUATION_SECONDS)
                    reason = "training has made its last step"
                over = time.monotonic() > end
                self._look(display, at_once=over)
                if over:
                    self.ended_by = reason
                    return
            self._look(display, at_once=True)
        self.ended_by = "interrupted"

    def _look(self, display: Display, at_once: bool) -> None:
        """Shows how it goes, now and then; and writes it down, less often."""
        if at_once or self.seconds >= self.snapshot.seconds + SNAPSHOT_SECONDS:
            self.snapshot = self.monitor.read(self.seconds)
            display.show(self.snapshot)
        if self.seconds >= self.result.get("wall_clock_seconds", 0.0) + RESULT_SECONDS:
            self.write_result()

    def _end(self) -> None:
        self.supervisor.tell = print
        with suppress(OSError):  # the terminal is gone
            print("ending all components, in order (Ctrl-C: at once)", flush=True)
        self.supervisor.stop()

    def write_result(self) -> None:
        """Writes `result.json`, as things stand."""
        goal, now, before = self.game.config.evaluation.goal, self.snapshot, self.before
        self.result = {
            "game": self.game.name,
            "goal": str(goal) if goal else None,
            "reached": self.reached,
            "ended_by": self.ended_by or "still running",
            "wall_clock_seconds": round(self.seconds, 1),
            "games": int(now.games or before.get("games", 0)),
            "steps": int(now.steps or before.get("steps", 0)),
            "seed": self.seed,
            "sessions": self.number,
            "evaluation": now.evaluation or before.get("evaluation", {}),
            "restarts": {c.name: c.restarts for c in self.supervisor.components},
            "machine": machine(),
        }
        try:
            self.folder.write_result(self.result)
        except OSError as error:  # a full disk may have room again before the run ends
            self.supervisor.tell(f"result.json is not up to date: {error.strerror}")


def installed(command: str) -> str:
    """How `command` is called from here: by its name, or by its path beside this Python."""
    if shutil.which(command):
        return command
    path = Path(sys.executable).with_name(command)
    with suppress(ValueError):
        path = path.relative_to(Path.cwd())
    return shlex.quote(str(path))
