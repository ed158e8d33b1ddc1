"""Supervision: what crashes is started again, what ends is ended in order."""

import os
import signal
import subprocess
import sys
import time

import pytest

import muprover.supervisor as supervision
from muprover.config import SettingsError
from muprover.launcher import Run, RunOptions, free_ports, prepare
from muprover.progress import EvaluationLog, Snapshot, describe_evaluation, scrape
from muprover.runfolder import RunFolder
from muprover.supervisor import Component, ComponentError, Supervisor


@pytest.fixture
def script(monkeypatch, tmp_path):
    """Makes components run Python code instead of a command of MuProver's."""
    start = subprocess.Popen

    def popen(command, **options):
        code = command[3]
        return start([sys.executable, "-c", code], **options)

    monkeypatch.setattr(supervision.subprocess, "Popen", popen)

    def make(name: str, code: str) -> Component:
        return Component(name, [code], tmp_path / f"{name}.log", grace_seconds=5.0)

    return make


def until(condition, seconds=15.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)


def test_a_killed_component_is_started_again(script):
    supervisor = Supervisor([script("sleeper", "import time; time.sleep(60)")])
    supervisor.start()
    (component,) = supervisor.components
    first = component.process.pid
    os.kill(first, signal.SIGKILL)

    def restarted() -> bool:
        supervisor.check()
        return component.process is not None and component.process.pid != first

    until(restarted)
    assert component.restarts == 1
    supervisor.stop()
    assert component.process.poll() is not None


def test_a_component_that_always_crashes_is_given_up_with_its_log(script, monkeypatch):
    monkeypatch.setattr(supervision, "LONGEST_PAUSE", 0.01)
    supervisor = Supervisor([script("broken", "raise SystemExit('out of luck')")])
    supervisor.start()

    def check_for_ever() -> None:
        while True:
            supervisor.check()
            time.sleep(0.01)

    with pytest.raises(ComponentError, match="out of luck"):
        check_for_ever()


def test_a_wrongly_used_component_is_not_tried_again(script):
    supervisor = Supervisor([script("wrong", "import sys; sys.exit(2)")])
    supervisor.start()
    supervisor.components[0].process.wait()
    with pytest.raises(ComponentError, match="status 2"):
        supervisor.check()


def test_a_component_that_ends_well_is_done(script):
    supervisor = Supervisor([script("trainer", "")])
    supervisor.start()
    supervisor.components[0].process.wait()
    supervisor.check()
    supervisor.check()
    assert supervisor.is_done("trainer")
    assert supervisor.components[0].restarts == 0


def test_components_end_in_the_reverse_order(script, tmp_path):
    code = (
        "import signal, sys, time\n"
        "def end(*_):\n"
        "    open({path!r}, 'a').write({name!r} + '\\n'); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)"
    )
    order = tmp_path / "order"
    names = ["replay", "trainer", "agent-1", "agent-2"]
    supervisor = Supervisor(
        [script(name, code.format(path=str(order), name=name)) for name in names]
    )
    supervisor.start()
    until(lambda: all(c.log.read_text() for c in supervisor.components))
    supervisor.stop()
    ended = order.read_text().split()
    assert sorted(ended[:2]) == ["agent-1", "agent-2"]
    assert ended[2:] == ["trainer", "replay"]


def test_what_does_not_end_is_killed(script):
    code = (
        "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print('ready', flush=True)\ntime.sleep(60)"
    )
    stubborn = script("stubborn", code)
    stubborn.grace_seconds = 0.3
    supervisor = Supervisor([stubborn])
    supervisor.start()
    until(lambda: stubborn.log.read_text())
    supervisor.stop()
    assert stubborn.process.returncode == -signal.SIGKILL


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's parent death signal")
def test_components_end_when_the_launcher_is_killed(tmp_path):
    code = (
        "import sys, time\nfrom pathlib import Path\n"
        "from muprover.supervisor import Component, Supervisor\n"
        f"log = Path({str(tmp_path / 'log')!r})\n"
        "c = Component('environment', ['environment', '--game', 'tictactoe', '--port', '0'], log)\n"
        "Supervisor([c]).start(); print(c.process.pid, flush=True); time.sleep(60)"
    )
    launcher = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    pid = int(launcher.stdout.readline())
    launcher.kill()
    launcher.wait()

    def gone() -> bool:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().split(")")[1].split()[0] == "Z"  # nobody's child to wait for it

    until(gone)


def options(folder, **more) -> RunOptions:
    return RunOptions("tictactoe", folder=folder, **more)


def test_a_run_is_resumed_with_its_settings_and_seed(tmp_path):
    folder, game, seed = prepare(
        options(tmp_path / "run", seed=7, overrides=["search.num_simulations=9"])
    )
    assert (game.config.search.num_simulations, seed) == (9, 7)
    _, game, seed = prepare(options(folder.path))
    assert (game.config.search.num_simulations, seed) == (9, 7)
    _, game, _ = prepare(options(folder.path, overrides=["training.learning_rate=0.5"]))
    assert game.config.training.learning_rate == 0.5
    assert game.config.search.num_simulations == 9


def test_another_seed_or_game_is_refused_on_resuming(tmp_path):
    prepare(options(tmp_path / "run", seed=7))
    with pytest.raises(SettingsError, match="begun with seed 7"):
        prepare(options(tmp_path / "run", seed=8))
    with pytest.raises(SettingsError, match="does not fit"):
        prepare(RunOptions("connect_four", folder=tmp_path / "run"))


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("\\dots")
    with pytest.raises(SettingsError, match="holds no run"):
        prepare(options(tmp_path))
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_a_game_file_is_kept_with_the_run(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("from muprover.games.tictactoe import *\n")
    folder, _, _ = prepare(RunOptions(str(file), folder=tmp_path / "run"))
    file.unlink()
    assert RunFolder(tmp_path / "run").load().name == "tictactoe"
    assert (folder.path / "mine.py").exists()


def test_all_components_get_a_metrics_port_and_a_log(tmp_path):
    folder, game, seed = prepare(options(tmp_path / "run", agents=2))
    run = Run(options(tmp_path / "run", agents=2), folder, game, seed)
    supervisor, ports = run.make_components()
    names = [c.name for c in supervisor.components]
    assert names == [
        "replay",
        "environment",
        "network",
        "trainer",
        "evaluator",
        "agent-1",
        "agent-2",
    ]
    assert len(set(ports.values())) == len(names)
    assert (folder.serving / "models.config").exists()
    assert "--gpus=all" in (folder.serving / "stock-commands.txt").read_text()


def test_free_ports_are_different():
    ports = free_ports(20)
    assert len(set(ports)) == 20


def test_only_new_and_whole_lines_count_as_evaluations(tmp_path):
    path = tmp_path / "evaluations.jsonl"
    path.write_text('{"version": 1, "goal_met": true}\n')
    log = EvaluationLog(path)
    assert log.newest() == {}
    with path.open("a") as file:
        file.write('{"version": 2}\n{"versi')
        file.flush()
        assert log.newest() == {"version": 2}
        file.write('on": 3}\n')
    assert log.newest() == {"version": 3}


def test_a_silent_component_has_no_metrics():
    (port,) = free_ports(1)
    assert scrape(port) == {}


def test_progress_is_told_with_units():
    snapshot = Snapshot(
        seconds=65,
        games=12345,
        steps=1250,
        loss=2.3456,
        model_version=1250,
        model_age=3.2,
        rates={"games": 170.4, "steps": 9.94},
        evaluation={"metrics": {"lost_lines": 26}, "version": 1000},
    )
    told = dict(snapshot.describe())
    assert told["games"] == "12,345 (170/s)"
    assert told["training steps"] == "1,250 (9.9/s)"
    assert told["served model"] == "version 1,250, 3 s old"
    assert told["evaluation"] == "lost lines 26 (version 1,000)"
    assert describe_evaluation({}) == "none yet"
