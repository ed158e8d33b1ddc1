"""The keeper of a host's supervisor: signals reach the supervisor, or end what would start one."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

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
