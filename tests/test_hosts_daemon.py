"""The keeper of a host's supervisor: signals reach the supervisor, or end what would start one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from muprover.components import free_ports
from muprover.hosts.on_host import _start_supervisor, stop
from muprover.hosts.orders import Ordered, Orders
from muprover.hosts.place import Place
from muprover.hosts.state import State

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")

SCRIPT = """
import os, signal, sys
from muprover.hosts import daemon
from muprover.hosts.place import Place
from muprover.logs import configure_logging

def supervise(place, lock):
    print("begins", flush=True)
    {child}

daemon.supervise = supervise
daemon.PAUSE_SECONDS = 20.0
configure_logging("supervisor")
place = Place("localhost", "run", {folder!r}, {folder!r})
place.own.mkdir(parents=True)
{before}
sys.exit(daemon.Keeper(place).run())
"""
DIES = "os.kill(os.getpid(), signal.SIGKILL)"
WAITS = "print(signal.sigwait([signal.SIGTERM, signal.SIGHUP]).name, flush=True); return 0"


def keeper(folder: Path, child: str, before: str = "") -> subprocess.Popen[str]:
    code = SCRIPT.format(folder=str(folder), child=child, before=before)
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # whoever kills its own group hits no test
    )


def test_who_is_told_to_end_between_two_supervisors_starts_no_other(tmp_path):
    with keeper(tmp_path, child=DIES) as process:
        assert "starting another" in process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=15)
    assert (process.returncode, said) == (0, "begins\n")


def test_a_signal_that_comes_before_there_is_a_supervisor_reaches_it(tmp_path):
    """And not, as 0 stands for all, every process of the group."""
    before = (
        "supervise_once = daemon.Keeper._supervise\n"
        "def told_before(*args):\n"
        "    os.kill(os.getpid(), signal.SIGHUP)\n"
        "    return supervise_once(*args)\n"
        "daemon.Keeper._supervise = told_before"
    )
    with keeper(tmp_path, child=WAITS, before=before) as process:
        said, _ = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, "begins\nSIGHUP\n")


def test_a_killed_supervisor_is_followed_by_another(tmp_path):
    with keeper(tmp_path, child=DIES, before="daemon.PAUSE_SECONDS = 0.1") as process:
        assert [process.stdout.readline() for _ in range(3)] == ["begins\n"] * 3
        process.terminate()
        assert process.wait(15) == 0


def started(folder: Path) -> Place:
    """A supervisor of a replay and an environment server, as `muprover up` starts one."""
    place = Place("localhost", "run", str(folder), str(folder / "models"))
    replay, environment = free_ports(2)
    game = ["--game", "tictactoe", "--host", "localhost"]
    commands = {
        "replay": ["replay", *game, "--port", str(replay), "--logdir", str(folder / "store")],
        "environment": ["environment", *game, "--port", str(environment)],
    }
    (place.folder.path / "logs").mkdir(parents=True)
    ordered = [
        Ordered(name, words, str(place.folder.log(name)), 30.0, {})
        for name, words in commands.items()
    ]
    Orders(number=1, names=list(commands), components=ordered).write(place)
    _start_supervisor(place)
    return place


def pids(place: Place, count: int) -> dict[str, int]:
    """The processes of components, once so many run."""
    deadline = time.monotonic() + 120
    while True:
        told = State.read(place).components
        running = {c.name: c.pid for c in told if c.pid is not None}
        if len(running) == count:
            return running
        assert time.monotonic() < deadline, place.log.read_text()
        time.sleep(0.05)


def test_a_supervisor_survives_what_is_killed_and_ends_what_it_is_told_to(tmp_path):
    place = started(tmp_path)
    try:
        first = pids(place, 2)
        os.kill(first["environment"], signal.SIGKILL)
        until(lambda: pids(place, 2)["environment"] != first["environment"])
        assert pids(place, 2)["replay"] == first["replay"]

        keeper = place.supervisor()
        children = Path(f"/proc/{keeper}/task/{keeper}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGKILL)
        until(lambda: set(pids(place, 2).values()).isdisjoint(first.values()))
        assert place.supervisor() == keeper
        assert "the supervisor ended with -9; starting another" in place.log.read_text()

        assert stop({"place": vars(place), "kinds": ["environment"]}) == {"was_running": True}
        assert set(pids(place, 1)) == {"replay"}
        assert State.read(place).orders == 2
    finally:
        stop({"place": vars(place), "kinds": None})
    assert place.supervisor() is None
    assert [c.state for c in State.read(place).components] == ["ended"]


def until(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.05)
