"""How a release is doing: asked of its own components, through the API server's proxy to pods."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from muprover.cluster.connection import MANY, ClusterError, NotAllowedError
from muprover.cluster.release import COMPONENTS, Pod, Release, Workload, option_of
from muprover.evaluation.report import METRICS
from muprover.progress import clock, describe_evaluation
from muprover.runfolder import MODEL_NAME

MOST_LOOKS = 5
ANSWER_SECONDS = (5.0, 5.0)  # that a pod has
Labels = frozenset[tuple[str, str]]


@dataclass(frozen=True)
class Scrape:
    """What one pod tells at one moment; nothing, and why, if it cannot be asked."""

    pod: Pod
    at: float  # s, of a clock that only goes forward
    samples: Mapping[tuple[str, Labels], float]
    versions: tuple[int, ...] = ()  # that its network server serves
    problem: str = ""

    def value(self, name: str, **labels: str) -> float | None:
        """The sum of a metric's series that have these labels; None where it is not told."""
        wanted = set(labels.items())
        found = [v for (n, have), v in self.samples.items() if n == name and wanted <= have]
        found = [v for v in found if not math.isnan(v)]
        return sum(found) if found else None


class Status:
    """Two looks at all pods of a release, some seconds apart; more if no agent has moved meanwhile,
    as a search may take longer."""

    def __init__(self, release: Release, seconds: float) -> None:
        self.release = release
        pods = release.pods()
        start = time.monotonic()
        with ThreadPoolExecutor(MANY) as threads:
            self._before = list(threads.map(lambda pod: scrape(release, pod), pods))
            for _ in range(MOST_LOOKS):
                time.sleep(seconds)
                self._now = list(threads.map(lambda pod: scrape(release, pod), pods))
                if self.rate("muprover_agent_moves_total") != 0:
                    break
        self.seconds = time.monotonic() - start
        """That rates are of."""

    @property
    def game(self) -> str:
        """A name, or a path in pods."""
        words = self.release.workload("trainer").words
        return PurePosixPath(option_of(words, "--game") or "?").stem

    @property
    def pods(self) -> list[Scrape]:
        return self._now

    def total(self, name: str, **labels: str) -> float | None:
        """Of all pods."""
        return _sum(scrape.value(name, **labels) for scrape in self._now)

    def rate(self, name: str) -> float | None:
        """A second, of all pods that were there both times; a counter begun anew counts as 0."""
        return _sum(self.rate_of(scrape, name) for scrape in self._now)

    def rate_of(self, now: Scrape, name: str) -> float | None:
        """The same of one pod."""
        before = next(s for s in self._before if s.pod.name == now.pod.name)
        start, end = before.value(name), now.value(name)
        if start is None or end is None or now.at <= before.at:
            return None
        return max(0.0, end - start) / (now.at - before.at)

    @property
    def served(self) -> list[int]:
        """The newest version of each network server."""
        return sorted({max(scrape.versions) for scrape in self._now if scrape.versions})

    @property
    def evaluation(self) -> dict[str, Any]:
        """The newest, as the evaluator's log has it; empty if there is none yet."""
        version = self.total("muprover_evaluation_version")
        if not version:
            return {}
        told = {name: self.total(f"muprover_evaluation_{name}") for name in METRICS}
        at = self.total("muprover_evaluation_timestamp_seconds") or time.time()
        return {
            "version": int(version),
            "metrics": {name: value for name, value in told.items() if value is not None},
            "goal_met": bool(self.total("muprover_evaluation_goal_met")),
            "age_seconds": max(0.0, time.time() - at),
        }

    @property
    def figures(self) -> dict[str, Any]:
        """How training goes; None where nobody has said so yet."""
        total, rate = self.total, self.rate
        return {
            "games": total("muprover_replay_inserted_games_total"),
            "games_per_second": rate("muprover_replay_inserted_games_total"),
            "moves_per_second": rate("muprover_agent_moves_total"),
            "simulations_per_second": rate("muprover_agent_simulations_total"),
            "training_step": total("muprover_trainer_steps"),
            "steps_per_second": rate("muprover_trainer_steps"),
            "loss": total("muprover_trainer_loss", part="total"),
            "samples_per_insert": total("muprover_replay_samples_per_insert"),
            "trainer_waits": self._trainer_waits(),
            "agents_wait": self._agents_wait(),
            "exported_version": total("muprover_trainer_exported_version"),
            "served_versions": self.served,
            "evaluation": self.evaluation,
        }

    def _trainer_waits(self) -> float | None:
        """The share of its time that it waits for data, as it says itself; but as long as it makes
        no step, as the replay server says."""
        says = "trainer_batch" if self.rate("muprover_trainer_steps") else "replay_sample"
        waited = self.rate(f"muprover_{says}_wait_seconds_total")
        return None if waited is None else min(1.0, waited)

    def _agents_wait(self) -> float | None:
        """The share of its time that an agent waits for the trainer."""
        waited = self.rate("muprover_replay_admit_wait_seconds_total")
        agents = self.total("muprover_replay_connected_agents")
        return waited / agents if waited is not None and agents else None

    def to_json(self) -> dict[str, Any]:
        return {
            "release": self.release.name,
            "namespace": self.release.cluster.namespace,
            "game": self.game,
            "components": {
                w.component: {
                    "wanted": w.replicas,
                    "ready": self.ready(w),
                    "autoscaled": self.bounds(w),
                }
                for w in self.release.workloads
            },
            "pods": [
                {
                    "name": scrape.pod.name,
                    "component": scrape.pod.component,
                    "state": scrape.pod.state,
                    "restarts": scrape.pod.restarts,
                    "says": self.says(scrape),
                }
                for scrape in self._now
            ],
            "seconds": round(self.seconds, 1),
            **self.figures,
        }

    def bounds(self, workload: Workload) -> tuple[int, int] | None:
        """Between which an autoscaler keeps the count; None without one, or where it is secret."""
        with suppress(NotAllowedError):
            if autoscaler := self.release.autoscaler(workload):
                spec = autoscaler["spec"]
                return int(spec.get("minReplicas", 1)), int(spec["maxReplicas"])
        return None

    def ready(self, workload: Workload) -> int:
        return sum(s.pod.is_ready for s in self._now if s.pod.component == workload.component)

    def says(self, scrape: Scrape) -> str:
        """What a pod has to tell, on one line."""
        if scrape.problem:
            return scrape.problem
        rate = self.rate_of
        told = {
            "environment": [
                (scrape.value("muprover_environment_games"), "{:,.0f} games"),
                (rate(scrape, "muprover_environment_steps_total"), "{:,.0f} moves/s"),
            ],
            "replay": [
                (scrape.value("muprover_replay_games"), "{:,.0f} games stored"),
                (rate(scrape, "muprover_replay_inserted_games_total"), "{:,.1f} games/s"),
            ],
            "network": [
                (rate(scrape, "muprover_network_simulations_total"), "{:,.0f} simulations/s"),
                (scrape.value("muprover_network_version_age_seconds"), "{:,.0f} s old"),
            ],
            "trainer": [
                (scrape.value("muprover_trainer_steps"), "step {:,.0f}"),
                (rate(scrape, "muprover_trainer_steps"), "{:,.1f} steps/s"),
            ],
            "agent": [
                (scrape.value("muprover_agent_network_version"), "version {:.0f}"),
                (rate(scrape, "muprover_agent_games_total"), "{:,.1f} games/s"),
                (rate(scrape, "muprover_agent_moves_total"), "{:,.0f} moves/s"),
            ],
            "evaluator": [
                (scrape.value("muprover_evaluation_version") or None, "version {:.0f}"),
                (scrape.value("muprover_evaluation_seconds") or None, "{:,.1f} s each"),
            ],
        }[scrape.pod.component]
        served = [f"serves {', '.join(map(str, scrape.versions))}"] if scrape.versions else []
        return ", ".join(served + [form.format(value) for value, form in told if value is not None])


def scrape(release: Release, pod: Pod) -> Scrape:
    """Asks all metrics ports of a pod, and its network server, if it has one, for versions."""
    samples: dict[tuple[str, Labels], float] = {}
    versions: tuple[int, ...] = ()
    at, problem = time.monotonic(), ""
    try:
        for port, path, container in pod.metrics:
            text = _fetch(release, pod, port, path)
            at = time.monotonic()
            samples |= parse(text)
            if container == "network":
                versions = _served_versions(release, pod, port)
    except ClusterError as error:
        said = str(error).rpartition(" answers: ")[2]
        problem = f"does not answer: {said}" if pod.state == "Ready" else ""
    return Scrape(pod, at, samples, versions, problem)


def parse(text: str) -> dict[tuple[str, Labels], float]:
    """Prometheus' text format, by name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith("_bucket")
    }


def _served_versions(release: Release, pod: Pod, port: int) -> tuple[int, ...]:
    """That can be asked now, on either network server; none before the first one."""
    name = option_of(release.workload("agent").words, "--model-name") or MODEL_NAME
    try:
        answer = json.loads(_fetch(release, pod, port, f"v1/models/{name}"))
    except ClusterError:
        return ()
    states = answer.get("model_version_status", [])
    return tuple(sorted(int(s["version"]) for s in states if s["state"] == "AVAILABLE"))


def _fetch(release: Release, pod: Pod, port: int, path: str) -> str:
    get = release.cluster.core.connect_get_namespaced_pod_proxy_with_path
    where = f"{'https:' if pod.speaks_tls else ''}{pod.name}:{port}"
    answer = release.cluster.read(get, where, path=path, _request_timeout=ANSWER_SECONDS)
    return answer.decode()


def describe(status: Status) -> str:
    """A page for people."""
    release, figures = status.release, status.figures
    where = f"namespace {release.cluster.namespace}, {release.cluster.address}"
    rows = [["pod", "state", "restarts", "age", "says"]]
    for scrape in status.pods:
        pod = scrape.pod
        rows.append([pod.name, pod.state, str(pod.restarts), _age(pod), status.says(scrape)])
    counts = ", ".join(_count(status, workload) for workload in release.workloads)
    missing = [c for c in COMPONENTS if c not in {w.component for w in release.workloads}]
    return "\n".join(
        [
            f"release {release.name} trains {status.game}   ({where})",
            counts + (f"; no {', '.join(missing)}" if missing else ""),
            "",
            *table(rows),
            "",
            *table([[f"{name}:", figure] for name, figure in _told(figures)]),
            f"(speeds are of the last {status.seconds:.0f} s)",
        ]
    )


def _told(figures: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and figures."""
    f = figures
    evaluation = describe_evaluation(f["evaluation"])
    if f["evaluation"]:
        met = "goal met" if f["evaluation"]["goal_met"] else "goal not met"
        evaluation += f", {met}, {clock(f['evaluation']['age_seconds'])} ago"
    served = ", ".join(map(str, f["served_versions"])) or "none yet"
    exported = f["exported_version"]
    return [
        ("games", f"{_number(f['games'])} ({_number(f['games_per_second'])}/s)"),
        ("moves", f"{_number(f['moves_per_second'])}/s"),
        ("simulations", f"{_number(f['simulations_per_second'])}/s"),
        ("training step", f"{_number(f['training_step'])} ({_number(f['steps_per_second'])}/s)"),
        ("loss", _number(f["loss"], 3)),
        ("samples per insert", _number(f["samples_per_insert"], 2)),
        (
            "waiting",
            f"trainer {_percent(f['trainer_waits'])} for games, "
            f"agents {_percent(f['agents_wait'])} for the trainer",
        ),
        ("version", f"exported {'-' if exported is None else f'{exported:.0f}'}, served {served}"),
        ("evaluation", evaluation),
    ]


def table(rows: list[list[str]]) -> list[str]:
    """Columns, as wide as they must be."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _count(status: Status, workload: Workload) -> str:
    count = f"{workload.component} {status.ready(workload)}/{workload.replicas}"
    bounds = status.bounds(workload)
    return f"{count} (autoscaled, {bounds[0]} to {bounds[1]})" if bounds else count


def _age(pod: Pod) -> str:
    created = datetime.fromisoformat(pod.body["metadata"]["creationTimestamp"])
    age = datetime.now(UTC) - created
    return f"{age.days} d" if age.days > 1 else clock(max(0.0, age.total_seconds()))


def _sum(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _number(value: float | None, digits: int = 1) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:,.{digits}f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"
