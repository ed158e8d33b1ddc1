"""`muprover run` with all of its processes: killed, interrupted, resumed, ended by its goal."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from small_settings import SMALL

from muprover.cli import main
from muprover.progress import scrape
from muprover.runfolder import RunFolder

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc"),
    pytest.mark.timeout(600),
]

COMPONENTS = {"environment", "replay", "network", "trainer", "agent", "evaluate"}
SMALL_RUN = [*SMALL, "training.export_interval=50"]
OUT_OF_REACH = ["evaluation.goal.at_most=-1"]
WITHIN_REACH = ["evaluation.goal.at_most=1000000", "evaluation.goal.consecutive=1"]
STEPS, MOVES = "muprover_trainer_steps", "muprover_agent_moves_total"


class Process(NamedTuple):
    pid: int
    words: list[str]

    @property
    def metrics(self) -> dict[str, float]:
        return scrape(int(self.words[self.words.index("--metrics-port") + 1]))


class Launcher:
    """`muprover run` in a folder, and the components that it has started."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        command = [sys.executable, "-m", "muprover.cli", "run", "--game", "tictactoe"]
        command += ["--folder", str(folder), "--time-limit", "10", *options]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def components(self) -> dict[str, Process]:
        """By command; found by the folder's name on their command lines."""
        found = {}
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_text().split("\0")
            except OSError:
                continue  # it has just ended
            mine = any(word.startswith(str(self.folder)) for word in words)
            if mine and "muprover.cli" in words and words[3] in COMPONENTS:
                found[words[3]] = Process(int(path.parent.name), words)
        return found

    def metric(self, component: str, name: str) -> float:
        process = self.components().get(component)
        return process.metrics.get(name, 0.0) if process else 0.0

    def wait_for(self, condition: Callable[[], bool], seconds: float = 240) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, self.process.stdout.read()
            assert time.monotonic() < deadline, "it never came true"
            time.sleep(0.2)

    def end(self) -> tuple[int, str]:
        """Exit status and output, once it has ended."""
        output, _ = self.process.communicate(timeout=300)
        return self.process.returncode, output


@pytest.fixture(scope="module")
def launch(tmp_path_factory) -> Iterator[Callable[..., Launcher]]:
    """Starts launchers in one folder; none outlives the tests."""
    folder = tmp_path_factory.mktemp("run") / "folder"
    started = []

    def start(*options: str) -> Launcher:
        settings = [word for setting in options for word in ("--set", setting)]
        started.append(Launcher(folder, *settings))
        return started[-1]

    yield start
    for launcher in started:
        if launcher.process.poll() is None:
            launcher.process.kill()
            launcher.process.wait()


@pytest.fixture(scope="module")
def interrupted(launch) -> dict[str, Any]:
    """A first session: all components are killed, and it goes on; then Ctrl-C."""
    launcher = launch(*SMALL_RUN, *OUT_OF_REACH)
    launcher.wait_for(lambda: (RunFolder(launcher.folder).models / "1").exists())
    killed = launcher.components()
    for component in killed.values():
        os.kill(component.pid, signal.SIGKILL)
    launcher.wait_for(lambda: set(launcher.components()) == COMPONENTS)
    restarted = launcher.components()
    launcher.wait_for(lambda: launcher.metric("trainer", STEPS) > 60)
    launcher.wait_for(lambda: launcher.metric("agent", MOVES) > 0)
    launcher.process.send_signal(signal.SIGINT)
    status, output = launcher.end()
    return {
        "killed": killed,
        "restarted": restarted,
        "status": status,
        "output": output,
        "left": launcher.components(),
        "result": RunFolder(launcher.folder).read_result(),
    }


@pytest.fixture(scope="module")
def reached(launch, interrupted) -> dict[str, Any]:
    """A second session in the same folder, with a goal that is soon met."""
    launcher = launch(*WITHIN_REACH)
    status, output = launcher.end()
    folder = RunFolder(launcher.folder)
    return {
        "status": status,
        "output": output,
        "left": launcher.components(),
        "result": folder.read_result(),
        "folder": folder,
    }


def test_every_component_is_a_process_of_its_own(interrupted):
    assert set(interrupted["killed"]) == COMPONENTS


def test_what_is_killed_is_started_again_and_the_run_goes_on(interrupted):
    for name, process in interrupted["killed"].items():
        assert interrupted["restarted"][name].pid != process.pid
    assert min(interrupted["result"]["restarts"].values()) >= 1
    assert "trainer ended with SIGKILL; starting it again" in interrupted["output"]
    assert interrupted["result"]["steps"] > 60


def test_ctrl_c_ends_all_processes_in_order(interrupted):
    assert interrupted["status"] == 130
    assert interrupted["left"] == {}
    assert interrupted["result"]["ended_by"] == "interrupted"
    assert "is killed" not in interrupted["output"]
    assert "run --game tictactoe --folder" in interrupted["output"]


def test_a_run_ends_by_itself_when_its_goal_is_met(reached):
    assert reached["status"] == 0, reached["output"]
    assert reached["left"] == {}
    assert reached["result"]["reached"] is True
    assert "goal met: lost_lines ≤ 1e+06" in reached["output"]


def test_a_resumed_run_goes_on_where_it_was(interrupted, reached):
    before, after = interrupted["result"], reached["result"]
    assert after["games"] >= before["games"]
    assert after["steps"] >= before["steps"]
    assert after["wall_clock_seconds"] > before["wall_clock_seconds"]
    assert (before["sessions"], after["sessions"]) == (1, 2)
    log = reached["folder"].log("trainer").read_text()
    assert [int(step) for step in re.findall(r"resumed at training step (\d+)", log)][-1] > 60


def test_a_run_leaves_behind_what_its_readme_says(reached):
    folder = reached["folder"]
    settings = yaml.safe_load(folder.settings.read_text())
    assert settings["search"]["num_simulations"] == 4
    assert settings["evaluation"]["goal"]["at_most"] == 1_000_000
    assert folder.read_facts() == {"game": "tictactoe", "seed": 0, "name": "folder"}
    assert [path for path in folder.models.iterdir() if path.name.isdigit()]
    for name in ("environment", "replay", "network", "trainer", "agent-1", "evaluator"):
        assert folder.log(name).stat().st_size > 0
    for name in ("models.config", "monitoring.config", "batching.config", "stock-commands.txt"):
        assert (folder.serving / name).exists()
    for path in (folder.path / "checkpoints", folder.replay, folder.tensorboard):
        assert any(path.iterdir())
    evaluations = [json.loads(line) for line in folder.evaluations.read_text().splitlines()]
    result = folder.read_result()
    assert result["evaluation"] == evaluations[-1]
    assert result["goal"] == "lost_lines ≤ 1e+06"
    assert {"seed", "machine", "restarts", "ended_by"} <= set(result)


def test_the_agent_can_be_played_against_with_nothing_running(reached, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("hint\nquit\n"))
    assert main(["play", "--run", str(reached["folder"].path)]) == 0
    assert "visits" in capsys.readouterr().out
