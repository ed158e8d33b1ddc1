"""Dashboards and rules name only metrics that the components export: all are started, and asked."""

from __future__ import annotations

import math
import re
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_settings import SMALL

from muprover.components import Layout, Ports, make_components
from muprover.game import load_game
from muprover.progress import scrape
from muprover.runfolder import RunFolder
from muprover.supervisor import Supervisor

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="processes tell of themselves on Linux"),
    pytest.mark.timeout(900),
]

CHART = Path(__file__).parents[1] / "charts"
FILES = [*CHART.glob("files/rules/*.yaml"), *CHART.glob("dashboards/*.json")]
NAME = re.compile(r"(?<![\w:/$.-])(?:muprover_[a-z0-9_]+|process_[a-z_]+|:tensorflow:[a-z0-9_:]+)")
RECORD = re.compile(r"(?<![\w/])muprover:[a-z0-9_:]+")
STOCK = {  # of TensorFlow Serving alone
    ":tensorflow:serving:batching_session:queuing_latency_bucket",
    ":tensorflow:cc:saved_model:load_attempt_count",
}
SUFFIXES = {"histogram": ("_bucket", "_sum", "_count")}


def expressions(file: Path) -> str:
    """What a file asks Prometheus for, without texts, names and comments."""
    key = r'"expr"' if file.suffix == ".json" else "(?:expr|record)"
    lines, inside = [], False
    for line in file.read_text(encoding="utf-8").splitlines():
        deeper = line.startswith(" " * 10)
        inside = bool(re.match(rf"\s*(?:- )?{key}:", line)) or (inside and deeper)
        if inside:
            lines.append(line)
    return "\n".join(lines)


@pytest.fixture(scope="module")
def ports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, int]]:
    """Metrics ports of a run whose every component has something to tell."""
    game = load_game("tictactoe", overrides=SMALL)
    folder, layout = RunFolder(tmp_path_factory.mktemp("run") / "r"), Layout(threads=1)
    folder.create(game, seed=0)
    ports = Ports.choose(layout)
    supervisor = Supervisor()
    supervisor.components = make_components(layout, ports, folder, game.config, 0, 0)
    supervisor.start(None)
    try:
        await_life(supervisor, ports.metrics)
        yield ports.metrics
    finally:
        supervisor.stop()


def await_life(supervisor: Supervisor, ports: dict[str, int]) -> None:
    """Waits until games are played, learned from, and the network is evaluated."""
    signs = {
        "agent-1": "muprover_agent_games_total",
        "trainer": "muprover_trainer_steps",
        "evaluator": "muprover_evaluation_version",
    }
    deadline = time.monotonic() + 600
    while not all(scrape(ports[name]).get(sign) for name, sign in signs.items()):
        supervisor.check()
        assert time.monotonic() < deadline, signs
        time.sleep(0.5)  # metrics tell when they are asked


def exported(port: int) -> set[str]:
    """Names of a component's time series, also of those that no event has brought forth yet."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        types = re.findall(r"^# TYPE (\S+) (\S+)$", answer.read().decode(), re.MULTILINE)
    return {name + suffix for name, kind in types for suffix in SUFFIXES.get(kind, ("",))}


def test_rules_and_dashboards_read_only_what_is_exported(ports):
    known = STOCK.union(*map(exported, ports.values()))
    asked = {name for file in FILES for name in NAME.findall(expressions(file))}
    assert len(asked) > 60
    assert asked <= known, sorted(asked - known)


def test_every_component_tells_of_its_process(ports):
    for port in ports.values():
        assert {"process_start_time_seconds", "process_cpu_seconds_total"} <= exported(port)


def test_what_is_not_evaluated_is_not_told(ports):
    told = scrape(ports["evaluator"])
    assert told["muprover_evaluation_lost_lines"] >= 0
    assert math.isnan(told["muprover_evaluation_mean_return"])


def test_records_that_are_read_are_recorded():
    rules = (CHART / "files/rules/recording.yaml").read_text(encoding="utf-8")
    recorded = set(re.findall(r"record: (\S+)", rules))
    read = {name for file in FILES for name in RECORD.findall(expressions(file))}
    assert read <= recorded, sorted(read - recorded)
    assert recorded <= read
