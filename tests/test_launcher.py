"""Supervision: what crashes is started again, what ends is ended in order."""

import errno
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

import muprover.supervisor as supervision
from muprover import runfolder
from muprover.components import GRACE_SECONDS, Layout, free_ports
from muprover.config import SettingsError
from muprover.game import load_game
from muprover.hosts.place import write_tree
from muprover.launcher import RunOptions, Session, prepare
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


def test_logs_that_become_long_are_cut_and_written_on(script, monkeypatch):
    monkeypatch.setattr(supervision, "MOST_LOG_BYTES", 1000)
    monkeypatch.setattr(supervision, "LOG_SECONDS", 0.0)
    code = (
        "import itertools, time\n"
        "for number in itertools.count():\n"
        "    print(f'line {number}', flush=True); time.sleep(0.001)"
    )
    supervisor = Supervisor([script("talker", code)])
    supervisor.start()
    (component,) = supervisor.components
    before = component.log.with_name("talker.log.1")
    try:
        until(lambda: supervisor.check() or before.exists())
        assert before.read_text().startswith("line 0\n")
        first = before.read_text()
        until(lambda: supervisor.check() or before.read_text() != first)  # and once more
        assert len(before.read_text()) < 20_000
        until(lambda: component.log.read_text().startswith("line "))  # no hole at its begin
    finally:
        supervisor.stop()


def test_a_standby_takes_the_place_of_what_dies(script, monkeypatch):
    monkeypatch.setattr(supervision, "STANDBY_SECONDS", 0.0)
    code = (
        "import time; from muprover.standby import await_turn, is_standby\n"
        "print('standby' if is_standby() else 'first', flush=True); await_turn()\n"
        "print('works', flush=True); time.sleep(60)"
    )
    component = script("sleeper", code)
    component.has_standby = True
    told: list[str] = []
    supervisor = Supervisor([component], told.append)
    supervisor.start()
    until(lambda: component.log.read_text() == "first\nworks\n")
    supervisor.check()
    until(lambda: component.log.read_text().endswith("standby\n"))
    ready, dead = component.standby, component.process
    os.kill(dead.pid, signal.SIGKILL)
    until(lambda: supervisor.check() or component.process is ready)
    until(lambda: component.log.read_text().endswith("standby\nworks\n"))
    assert told == ["sleeper ended with SIGKILL; its standby takes its place"]
    supervisor.check()
    assert component.is_backed
    another = component.standby
    supervisor.stop()
    assert [p.poll() is not None for p in (ready, another)] == [True, True]


def test_a_standby_ends_with_whoever_would_have_told_it_to_go_on(script):
    component = script("sleeper", "from muprover.standby import await_turn; await_turn()")
    component.has_standby = True
    component.back()
    component.standby.stdin.close()
    assert component.standby.wait(15) == 0


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


def test_a_component_that_crashes_for_ever_is_tried_for_ever(script):
    supervisor = Supervisor([script("broken", "import sys; sys.exit(1)")], gives_up=False)
    told: list[str] = []
    supervisor.tell = told.append
    supervisor.start()
    (component,) = supervisor.components
    component.crashes = 10_000
    component.process.wait()
    supervisor.check()
    assert told == ["broken ended with status 1; starting it again in 10.0 s"]


def test_a_signal_may_arrive_while_a_lock_is_held_that_is_needed_then(tmp_path):
    """As when it interrupts `Event.wait`, which holds the event's lock at its begin and its end."""
    code = (
        "import signal, threading\n"
        "from muprover.signals import on_signals\n"
        "stop = threading.Event()\n"
        "with on_signals({signal.SIGTERM: stop.set}):\n"
        "    with stop._cond:\n"
        "        signal.raise_signal(signal.SIGTERM)\n"
        "    assert stop.wait(30)\n"
        "assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


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
        options(tmp_path / "run", seed=7, overrides=("search.num_simulations=9",))
    )
    assert (game.config.search.num_simulations, seed) == (9, 7)
    _, game, seed = prepare(options(folder.path))
    assert (game.config.search.num_simulations, seed) == (9, 7)
    _, game, _ = prepare(options(folder.path, overrides=("training.learning_rate=0.5",)))
    assert game.config.training.learning_rate == 0.5
    assert game.config.search.num_simulations == 9


def test_what_cannot_be_written_to_the_end_leaves_what_was_there(tmp_path, monkeypatch):
    folder, _, _ = prepare(options(tmp_path / "run"))
    folder.write_result({"games": 1})
    write_tree(tmp_path / "run" / "state.json", {"seconds": 1})
    files = [folder.settings, folder.result, tmp_path / "run" / "state.json"]
    before, names = [file.read_text() for file in files], set(os.listdir(folder.path))
    synced: list[int] = []
    sync = os.fsync

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    other = load_game("cartpole").config
    writes = [
        lambda: folder.write_settings(other),
        lambda: folder.write_result({"games": 2}),
        lambda: write_tree(files[2], {"seconds": 2}),
    ]
    monkeypatch.setattr(os, "fsync", full)
    for write in writes:
        with pytest.raises(OSError, match="No space left"):
            write()
    assert [file.read_text() for file in files] == before
    assert set(os.listdir(folder.path)) == names
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(sync(descriptor)))
    for write in writes:
        write()
    assert len(synced) == 2 * len(writes)  # each file, and the folder that it is in
    assert all(file.read_text() != text for file, text in zip(files, before, strict=True))


def test_another_seed_or_game_is_refused_on_resuming(tmp_path):
    prepare(options(tmp_path / "run", seed=7))
    with pytest.raises(SettingsError, match="begun with seed 7"):
        prepare(options(tmp_path / "run", seed=8))
    with pytest.raises(SettingsError, match=r"does not fit: .*num_actions is 9 there, 7 here"):
        prepare(RunOptions("connect_four", folder=tmp_path / "run"))
    with pytest.raises(SettingsError, match=r"--set does not fit: training.discount"):
        prepare(options(tmp_path / "run", overrides=("training.discount=0.5",)))


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("\\dots")
    with pytest.raises(SettingsError, match="holds no run"):
        prepare(options(tmp_path))
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_a_game_file_is_kept_with_the_run_wherever_that_goes(tmp_path, capsys):
    file = tmp_path / "mine.py"
    file.write_text("from muprover.games.tictactoe import *\n")
    prepare(RunOptions(str(file), folder=tmp_path / "run"))
    (tmp_path / "run").rename(tmp_path / "moved")
    moved = RunFolder(tmp_path / "moved")
    assert moved.source == str(tmp_path / "moved" / "mine.py")
    assert moved.load().name == "tictactoe"
    prepare(RunOptions(str(file), folder=moved.path))
    assert "has changed" not in capsys.readouterr().out
    file.write_text("from muprover.games.tictactoe import *  # better\n")
    prepare(RunOptions(str(file), folder=moved.path))
    assert f"{file} has changed; the run goes on with its copy" in capsys.readouterr().out


def test_a_folder_is_one_sessions_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(runfolder, "LOCK_SECONDS", 0.0)
    folder, _, _ = prepare(options(tmp_path / "run"))
    with folder.lock(), pytest.raises(SettingsError, match="is going on in"), folder.lock():
        pass
    with folder.lock():
        pass


def test_a_session_waits_as_long_as_components_of_the_one_before_may_take():
    assert max(GRACE_SECONDS.values()) < runfolder.LOCK_SECONDS


def test_all_components_get_a_metrics_port_and_a_log(tmp_path):
    given = options(tmp_path / "run", layout=Layout(agents=2))
    session = Session(given, *prepare(given))
    components = session.make_components()
    names = [c.name for c in components]
    assert names[:5] == ["replay", "environment", "network", "trainer", "evaluator"]
    assert names[5:] == ["agent-1", "agent-2"]
    assert len({c.arguments[c.arguments.index("--metrics-port") + 1] for c in components}) == 7
    assert len({c.log for c in components}) == 7
    serving = session.folder.serving
    assert (serving / "models.config").exists()
    assert "--gpus=all" in (serving / "stock-commands.txt").read_text()


def test_agents_of_another_session_play_other_games(tmp_path):
    given = options(tmp_path / "run", seed=7)
    first = Session(given, *prepare(given))
    assert first.chance == 7
    first.write_result()
    second = Session(given, *prepare(given))
    assert second.number == 2
    assert second.chance not in (7, 0)


def test_free_ports_are_different():
    ports = free_ports(20)
    assert len(set(ports)) == 20


def test_a_port_that_is_listened_on_is_not_free():
    (port,) = free_ports(1)
    with socket.create_server(("", port)):
        assert port not in free_ports(50)


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
        file.flush()
        assert log.newest() == {"version": 3}
        file.write('{"vers{"version": 4}\n')  # the evaluator was killed, and started again
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
