"""`muprover run`: all components on this machine, until the game's goal is met."""

from __future__ import annotations

import logging
import shlex
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from muprover.config import SettingsError
from muprover.game import Game, load_game
from muprover.logs import configure_logging
from muprover.progress import Monitor, describe_evaluation, make_display
from muprover.runfolder import MODEL_NAME, RunFolder, machine, new_folder
from muprover.serving_config import (
    BATCHING_CONFIG,
    MODELS_CONFIG,
    MONITORING_CONFIG,
    ModelSettings,
    VersionPolicy,
    docker_command,
    stock_command,
    write_configs,
)
from muprover.supervisor import Component, ComponentError, Supervisor

log = logging.getLogger(__name__)

REACHED, NOT_REACHED, INTERRUPTED = 0, 1, 130
DEFAULT_MINUTES = 60.0
LAST_EVALUATION_SECONDS = 120.0  # allowed for, once the trainer has made its last step
TICK_SECONDS = 0.25


@dataclass(frozen=True)
class RunOptions:
    """The command line of `muprover run`."""

    source: str
    settings_file: str | None = None
    overrides: Sequence[str] = ()
    name: str | None = None
    runs: Path = Path("runs")
    folder: Path | None = None
    seed: int | None = None
    time_limit_minutes: float | None = None
    agents: int = 1
    num_games: int | None = None
    min_games: int = 1
    log_level: str = "info"


def launch(options: RunOptions) -> int:
    """Runs all components until the goal is met, the time is up, or Ctrl-C; answers the status."""
    configure_logging("run", "warning")
    folder, game, seed = prepare(options)
    run = Run(options, folder, game, seed)
    print(f"run folder: {folder.path}")
    print(f"goal: {game.config.evaluation.goal or 'none; ends at the time limit'}")
    status = run.execute()
    print(run.closing_words(status))
    return status


def prepare(options: RunOptions) -> tuple[RunFolder, Game, int]:
    """The folder of a new run, or of one to be resumed, with its game and seed."""
    game = load_game(options.source, options.settings_file, options.overrides)
    folder = (
        RunFolder(options.folder)
        if options.folder
        else new_folder(options.runs, options.name, game.name)
    )
    if not folder.exists:
        if folder.path.exists() and any(folder.path.iterdir()):
            raise SettingsError(
                f"{folder.path} is not empty and holds no run; choose another --folder or --name"
            )
        seed = options.seed or 0
        return folder, folder.create(game, seed), seed
    facts = folder.read_facts()
    if options.seed not in (None, facts["seed"]):
        raise SettingsError(
            f"{folder.path} was begun with seed {facts['seed']}; it cannot go on with "
            f"{options.seed}. Choose another --folder or --name for a new run"
        )
    if options.settings_file:
        raise SettingsError("a run that is resumed keeps its settings; change single ones by --set")
    resumed = load_game(facts["game"], str(folder.settings), options.overrides)
    if resumed.config.contract != game.config.contract:
        raise SettingsError(
            f"{folder.path} is a run of {resumed.name}, which does not fit {options.source}: "
            f"{resumed.config.contract} there, {game.config.contract} here"
        )
    folder.write_settings(resumed.config)
    print(f"resuming {folder.path}")
    return folder, resumed, facts["seed"]


@dataclass
class Run:
    """One session of a run."""

    options: RunOptions
    folder: RunFolder
    game: Game
    seed: int
    seconds_before: float = 0.0  # in earlier sessions
    started: float = 0.0
    reached: bool = False
    why: str = ""
    last: dict[str, Any] = field(default_factory=dict)

    def execute(self) -> int:
        """Starts everything, watches it, ends it, writes `result.json`."""
        self.seconds_before = self.folder.read_result().get("wall_clock_seconds", 0.0)
        stop = threading.Event()
        with ExitStack() as stack:
            for number in (signal.SIGINT, signal.SIGTERM):
                before = signal.signal(number, lambda *_: stop.set())
                stack.callback(signal.signal, number, before)
            supervisor, metrics_ports = self.make_components()
            monitor = Monitor(metrics_ports, self.folder.evaluations)
            self.started = time.monotonic()
            failure: ComponentError | None = None
            try:
                supervisor.start()
                self._watch(supervisor, monitor, stop)
            except ComponentError as error:
                failure = error
                self.why = "a component failed"
            finally:
                seconds = self._seconds
                for number in (signal.SIGINT, signal.SIGTERM):
                    signal.signal(number, lambda *_: supervisor.kill())
                self._write_result(seconds, {c.name: c.restarts for c in supervisor.components})
                supervisor.stop()
            if failure:
                print(f"muprover: {failure}", file=sys.stderr)
                return NOT_REACHED
        if stop.is_set():
            return INTERRUPTED
        return REACHED if self.reached else NOT_REACHED

    def make_components(self) -> tuple[Supervisor, dict[str, int]]:
        """The components' command lines, in the order of their start, and their metrics ports."""
        folder = self.folder
        names = ["replay", "environment", "network", "trainer", "evaluator"]
        names += [f"agent-{i + 1}" for i in range(self.options.agents)]
        ports = free_ports(len(names) + 4)
        metrics = dict(zip(names, ports[4:], strict=True))
        environment, replay, network, rest = (f"localhost:{port}" for port in ports[:4])
        files = self._write_serving_files(ports[2], ports[3])
        game = ["--game", self.folder.read_facts()["game"], "--config", str(folder.settings)]
        servers = ["--environment", environment, "--network", network]
        arguments: dict[str, list[str]] = {
            "replay": ["replay", *game, "--port", port_of(replay), "--logdir", str(folder.replay)],
            "environment": ["environment", *game, "--port", port_of(environment)],
            "network": [
                *("network", "--port", port_of(network), "--rest-api-port", port_of(rest)),
                *("--model-config-file", str(files[MODELS_CONFIG])),
                *("--monitoring-config-file", str(files[MONITORING_CONFIG])),
                *("--enable-batching", "--batching-parameters-file", str(files[BATCHING_CONFIG])),
                *("--file-system-poll-wait-seconds", "0.25"),
                *("--enable-serialization-as-tensor-content", *self._network_threads()),
            ],
            "trainer": [
                *("trainer", *game, "--replay-buffer", replay),
                *("--saved-models", str(folder.models), "--logdir", str(folder.path)),
                *("--min-games", str(self.options.min_games), "--seed", str(self.seed)),
                *("--threads", "1"),
            ],
            "evaluator": [
                *("evaluate", *game, *servers, "--watch", "--output", str(folder.evaluations)),
                *("--seed", str(self.seed)),
            ],
        }
        for i in range(self.options.agents):
            agent = ["agent", *game, *servers, "--replay-buffer", replay]
            agent += ["--agent-name", f"agent-{i + 1}", "--seed", str(self.seed)]
            if self.options.num_games:
                agent += ["--num-games", str(self.options.num_games)]
            arguments[f"agent-{i + 1}"] = agent
        components = [
            Component(
                name,
                [
                    *arguments[name],
                    *("--metrics-port", str(metrics[name]), "--log-level", self.options.log_level),
                ],
                folder.log(name),
            )
            for name in names
        ]
        return Supervisor(components), metrics

    def closing_words(self, status: int) -> str:
        """What has come of it, and what to do next."""
        folder = shlex.quote(str(self.folder.path))
        game = shlex.quote(self.options.source)
        verdict = {
            REACHED: f"goal met: {self.game.config.evaluation.goal}",
            INTERRUPTED: "interrupted; all components have ended in order",
        }.get(status, f"goal not met: {self.why}")
        result = self.last
        return "\n".join(
            [
                "",
                f"{verdict} after {result['wall_clock_seconds']:.0f} s, {result['games']:,} games, "
                f"{result['steps']:,} training steps",
                f"evaluation: {describe_evaluation(result['evaluation'])}",
                "",
                "what to do next:",
                f"  play against it   muprover play --run {folder}",
                f"  see the curves    tensorboard --logdir {folder}/tensorboard",
                f"  train on          muprover run --game {game} --folder {folder}",
                f"  read the figures  {folder}/result.json, {folder}/evaluations.jsonl",
            ]
        )

    @property
    def _seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.started

    def _watch(self, supervisor: Supervisor, monitor: Monitor, stop: threading.Event) -> None:
        """Shows how it goes until there is a reason to end."""
        limit = 60 * (self.options.time_limit_minutes or DEFAULT_MINUTES)
        end = self.started + limit
        snapshot_at = 0.0
        self._monitor = monitor
        with make_display(f"{self.game.name}, seed {self.seed}") as display:
            while not stop.wait(TICK_SECONDS):
                supervisor.check()
                now = time.monotonic()
                if monitor.evaluation().get("goal_met"):
                    self.reached, self.why = True, "goal met"
                elif now > end:
                    self.why = f"the time limit of {limit / 60:g} minutes"
                elif supervisor.is_done("trainer"):
                    self.why = "training has made its last step"
                    end = min(end, now + LAST_EVALUATION_SECONDS)
                if self.reached or now > snapshot_at:
                    snapshot_at = now + 1.0
                    self._snapshot = monitor.read(self._seconds)
                    display.show(self._snapshot)
                if self.reached or now > end:
                    return
        self.why = "interrupted"

    def _write_result(self, seconds: float, restarts: dict[str, int]) -> None:
        snapshot = getattr(self, "_snapshot", None)
        before = self.folder.read_result()
        goal = self.game.config.evaluation.goal
        self.last = {
            "game": self.game.name,
            "goal": str(goal) if goal else None,
            "reached": self.reached,
            "ended_by": self.why or "interrupted",
            "wall_clock_seconds": round(seconds, 1),
            "games": int((snapshot and snapshot.games) or before.get("games", 0)),
            "steps": int((snapshot and snapshot.steps) or before.get("steps", 0)),
            "seed": self.seed,
            "evaluation": (snapshot and snapshot.evaluation) or before.get("evaluation", {}),
            "restarts": restarts,
            "machine": machine(),
        }
        self.folder.write_result(self.last)

    def _write_serving_files(self, port: int, rest_port: int) -> dict[str, Path]:
        """The network server's files, also for the stock server, with its command lines."""
        models = [
            ModelSettings(MODEL_NAME, str(self.folder.models.resolve()), VersionPolicy("latest", 2))
        ]
        games = self.options.num_games or self.game.config.self_play.games_per_agent
        group = max((games + 1) // 2, self.game.config.games_per_search)  # each is compiled
        sizes = {group} if self.options.agents == 1 else {group, 2 * group}
        files = write_configs(self.folder.serving, models, sizes)
        commands = {
            "stock binary": stock_command(files, port, rest_port),
            "its Docker image": docker_command(files, self.folder.models, port, rest_port),
            "its GPU image": docker_command(
                files, self.folder.models, port, rest_port, gpu=True, xla=True
            ),
        }
        text = "\n\n".join(f"# {name}\n{shlex.join(words)}" for name, words in commands.items())
        (self.folder.serving / "stock-commands.txt").write_text(text + "\n", encoding="utf-8")
        return files

    @staticmethod
    def _network_threads() -> list[str]:
        """One thread computes: a search is many small steps, and the trainer needs the rest."""
        return ["--tensorflow-intra-op-parallelism", "1"]


def free_ports(count: int) -> list[int]:
    """So many ports that nobody listens on at the moment."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def port_of(address: str) -> str:
    return address.rpartition(":")[2]
