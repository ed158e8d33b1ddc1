"""How a local run is going: read from its components' metrics, shown to whoever watches."""

from __future__ import annotations

import contextlib
import json
import ssl
import sys
import urllib.request
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any, Protocol

RATE_SECONDS = 15.0  # over which rates are averaged
Metrics = dict[str, float]


@dataclass
class Snapshot:
    """What is known at one moment; None where no component has said so yet."""

    seconds: float  # of the run, earlier sessions included
    games: float | None = None
    moves: float | None = None
    simulations: float | None = None
    steps: float | None = None
    loss: float | None = None
    samples_per_insert: float | None = None
    model_version: float | None = None
    model_age: float | None = None
    rates: dict[str, float] = field(default_factory=dict)  # a second, by the names above
    evaluation: dict[str, Any] = field(default_factory=dict)  # the newest

    def describe(self) -> list[tuple[str, str]]:
        """Names and figures, for people."""
        return [
            ("games", f"{_count(self.games)} ({self._rate('games')})"),
            ("moves", self._rate("moves")),
            ("simulations", self._rate("simulations")),
            ("training steps", f"{_count(self.steps)} ({self._rate('steps')})"),
            ("loss", "-" if self.loss is None else f"{self.loss:.3f}"),
            ("samples per insert", _number(self.samples_per_insert)),
            ("served model", self._model()),
            ("evaluation", describe_evaluation(self.evaluation)),
        ]

    def _rate(self, name: str) -> str:
        rate = self.rates.get(name)
        return "-/s" if rate is None else f"{_count(rate)}/s"

    def _model(self) -> str:
        if self.model_version is None:
            return "none yet"
        age = "" if self.model_age is None else f", {self.model_age:.0f} s old"
        return f"version {_count(self.model_version)}{age}"


class Monitor:
    """Reads the metrics ports of a run's components and its newest evaluation."""

    def __init__(self, metrics_ports: Mapping[str, int], evaluations: Path) -> None:
        self._ports = metrics_ports
        self._evaluations = EvaluationLog(evaluations)
        self._history = History()
        self._threads = ThreadPoolExecutor(len(metrics_ports), "scrape")

    def read(self, seconds: float) -> Snapshot:
        """How things stand `seconds` into the run."""
        scraped = dict(
            zip(self._ports, self._threads.map(scrape, self._ports.values()), strict=True)
        )
        return self._history.add(combine(scraped, seconds, self.evaluation()))

    def evaluation(self) -> dict[str, Any]:
        """The newest of this session."""
        return self._evaluations.newest()


class History:
    """The snapshots of the last seconds, from which rates are told."""

    def __init__(self) -> None:
        self._snapshots: list[Snapshot] = []

    def add(self, now: Snapshot) -> Snapshot:
        """The newest, with its rates."""
        self._snapshots = [s for s in self._snapshots if now.seconds - s.seconds < RATE_SECONDS]
        for name in ("games", "moves", "simulations", "steps"):
            value = getattr(now, name)
            known = [s for s in self._snapshots if getattr(s, name) is not None]
            if value is not None and known and now.seconds > known[0].seconds:
                rise = value - getattr(known[0], name)
                now.rates[name] = max(0.0, rise) / (now.seconds - known[0].seconds)
        self._snapshots.append(now)
        return now


def combine(scraped: Mapping[str, Metrics], seconds: float, evaluation: dict[str, Any]) -> Snapshot:
    """What the metrics of a run's components, by name, say together."""
    of: dict[str, Metrics] = {name.rstrip("0123456789-"): {} for name in scraped}
    for name, metrics in scraped.items():  # agents are summed
        total = of[name.rstrip("0123456789-")]
        for metric, value in metrics.items():
            total[metric] = total.get(metric, 0.0) + value
    replay, trainer = of.get("replay", {}), of.get("trainer", {})
    agent, network = of.get("agent", {}), of.get("network", {})
    return Snapshot(
        seconds=seconds,
        games=replay.get("muprover_replay_inserted_games_total"),
        moves=agent.get("muprover_agent_moves_total"),
        simulations=agent.get("muprover_agent_simulations_total"),
        steps=trainer.get("muprover_trainer_steps"),
        loss=trainer.get('muprover_trainer_loss{part="total"}'),
        samples_per_insert=replay.get("muprover_replay_samples_per_insert"),
        model_version=_any(network, "muprover_network_loaded_version"),
        model_age=_any(network, "muprover_network_version_age_seconds"),
        evaluation=evaluation,
    )


class EvaluationLog:
    """The lines that the evaluator adds to its file from now on."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = path.stat().st_size if path.exists() else 0
        self._newest: dict[str, Any] = {}

    def newest(self) -> dict[str, Any]:
        if not self._path.exists():
            return self._newest
        with self._path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break  # still being written
                self._offset += len(line)
                with contextlib.suppress(ValueError):  # the evaluator was killed as it wrote
                    self._newest = _evaluation(line)
        return self._newest


def _evaluation(line: bytes) -> dict[str, Any]:
    """What the evaluator wrote; raises `ValueError` for anything else."""
    tree = json.loads(line)
    if not isinstance(tree, dict) or not isinstance(tree.get("metrics", {}), dict):
        raise ValueError("no evaluation")
    numbers = [tree.get("version"), *tree.get("metrics", {}).values()]
    if not all(isinstance(number, int | float) for number in numbers):
        raise ValueError("an evaluation is of a version, and its metrics are numbers")
    return tree


def scrape(port: int, tls: bool = False) -> Metrics:
    """A component's metrics by name and labels; none while it does not answer. Whose certificate
    it shows does not matter: it is on this machine, and is told nothing."""
    url = f"{'https' if tls else 'http'}://127.0.0.1:{port}/metrics"
    context = ssl._create_unverified_context() if tls else None
    try:
        with urllib.request.urlopen(url, timeout=2, context=context) as answer:
            return read_metrics(answer.read().decode())
    except (OSError, ValueError, HTTPException):
        return {}


def read_metrics(text: str) -> Metrics:
    """MuProver's own metrics in Prometheus' text format, but for histograms' buckets."""
    metrics = {}
    for line in text.splitlines():
        name, _, value = line.rpartition(" ")
        if line.startswith("muprover_") and "_bucket" not in name:
            metrics[name] = float(value)
    return metrics


def describe_evaluation(evaluation: Mapping[str, Any]) -> str:
    """An evaluation on one line."""
    if not evaluation:
        return "none yet"
    figures = ", ".join(
        f"{name.replace('_', ' ')} {_number(value)}"
        for name, value in evaluation.get("metrics", {}).items()
    )
    return f"{figures} (version {_count(evaluation.get('version'))})"


class Display(Protocol):
    """Shows people how it goes, in a `with`."""

    def show(self, snapshot: Snapshot) -> None:
        """How things stand."""

    def tell(self, event: str) -> None:
        """Something that happened."""


class PlainDisplay:
    """A line now and then, for logs."""

    def __init__(self, interval: float = 10.0) -> None:
        self._interval = interval
        self._next = 0.0

    def __enter__(self) -> PlainDisplay:
        return self

    def __exit__(self, *_: object) -> None: ...

    def show(self, snapshot: Snapshot) -> None:
        if snapshot.seconds < self._next:
            return
        self._next = snapshot.seconds + self._interval
        figures = " · ".join(f"{name} {figure}" for name, figure in snapshot.describe())
        self.tell(f"[{clock(snapshot.seconds)}] {figures}")

    def tell(self, event: str) -> None:
        with contextlib.suppress(OSError):  # its disk is full, or the terminal is gone
            print(event, flush=True)


class RichDisplay:
    """A table that is redrawn in place, on a terminal."""

    def __init__(self, title: str) -> None:
        from rich.live import Live

        self._title = title
        self._live = Live(refresh_per_second=4, transient=False)

    def __enter__(self) -> RichDisplay:
        self._live.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._live.__exit__(*error)

    def show(self, snapshot: Snapshot) -> None:
        from rich.table import Table

        table = Table(
            title=f"{self._title}   {clock(snapshot.seconds)}", show_header=False, min_width=60
        )
        for name, figure in snapshot.describe():
            table.add_row(name, figure)
        self._live.update(table)

    def tell(self, event: str) -> None:
        self._live.console.print(event, markup=False, highlight=False)


def make_display(title: str) -> PlainDisplay | RichDisplay:
    """The one that fits where the output goes."""
    if not sys.stdout.isatty():
        return PlainDisplay()
    try:
        return RichDisplay(title)
    except ModuleNotFoundError:  # rich is an extra
        return PlainDisplay(2.0)


def clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes:02}:{rest:02}"


def _any(metrics: Metrics, name: str) -> float | None:
    """The value of a metric whatever its labels."""
    return next((v for key, v in metrics.items() if key.partition("{")[0] == name), None)


def _count(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.1f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
