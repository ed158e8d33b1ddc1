"""`muprover up` on localhost, behind locks, with all of its processes: left alone, killed, ended,
gone on with."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from small_settings import SMALL
from trial_locks import TOKEN, certificates, token_file, using

from muprover.components import free_ports
from muprover.runfolder import RunFolder
from muprover.services.client import open_channel
from muprover.services.locks import Locks
from muprover.v1 import replay_pb2, replay_pb2_grpc

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc"),
    pytest.mark.timeout(1200),
]

NAMES = {"environment", "replay", "network", "trainer", "evaluator", "agent-1"}
OUT_OF_REACH = ["evaluation.goal.at_most=-1"]
WITHIN_REACH = ["evaluation.goal.at_most=1000000", "evaluation.goal.consecutive=1"]
SMALL_RUN = [*SMALL, "training.export_interval=50"]


class Runs:
    """`muprover up` and its companions, for one run in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "hosts.config"
        self.environment = os.environ | {"XDG_STATE_HOME": str(folder / "state")}
        self.run_folder = RunFolder(folder / "dir" / "runs" / "first")
        self.ports = free_ports(3)
        self.certificates = certificates(folder / "trial")
        self.token = token_file(folder / "token", TOKEN)
        self.write_hosts(agents=1)

    def write_hosts(self, agents: int) -> None:
        environment, replay, network = self.ports
        self.file.write_text(
            f"environment localhost:{environment}\nreplay localhost:{replay}\n"
            f"network localhost:{network}\ntrainer localhost:1\n"
            f"agent localhost:{agents}\nevaluator localhost\n"
        )

    def up_words(self, settings: list[str]) -> list[str]:
        where = ["-c", str(self.file), "-r", str(self.folder / "dir")]
        where += ["-m", str(self.folder / "models"), "-n", "first"]
        where += ["--tls", str(self.certificates), "--token-file", str(self.token)]
        chosen = [word for setting in settings for word in ("--set", setting)]
        return ["up", "-g", "tictactoe", *where, *chosen]

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "muprover.cli", *words]

    def call(self, *words: str, fails: bool = False) -> str:
        """What a command writes."""
        done = subprocess.run(
            self.command(*words),
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=400,
            check=False,
        )
        assert bool(done.returncode) is fails, done.stdout
        return done.stdout

    def up_from_terminal(self, *words: str) -> str:
        """Runs a command on a terminal that is closed when it is done; answers what it showed."""
        child, terminal = pty.fork()
        if child == 0:
            os.execve("/bin/sh", ["sh", "-c", '"$@"; sleep 600', "sh", *words], self.environment)
        shown = b""
        while b"muprover down" not in shown:
            shown += os.read(terminal, 4096)  # raises when the terminal is gone
        os.close(terminal)  # SIGHUP to all that belongs to it
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGHUP
        return shown.decode()

    def status(self) -> dict[str, Any]:
        done = subprocess.run(
            self.command("status", "--json", "--seconds", "0.1"),
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def is_running_again(self, name: str) -> bool:
        process = by_name(self.status())[name]
        return process["restarts"] == 1 and process["pid"] is not None

    def has_only_new(self, before: dict[str, Any]) -> bool:
        """Whether all processes run, and none of those that ran before."""
        old, new = by_name(before), by_name(self.status())
        return all(new[name]["pid"] not in (None, old[name]["pid"]) for name in old)

    def wait_for(self, condition: Callable[[], bool], seconds: float = 400) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, self.call("logs", "--tail", "30")
            time.sleep(0.5)

    @property
    def supervisor(self) -> int | None:
        """The child of the process that holds the lock."""
        keeper = (self.run_folder.path / "hosts" / "localhost" / "lock").read_text()
        children = Path(f"/proc/{keeper}/task/{keeper}/children").read_text().split()
        return int(children[0]) if children else None

    def left(self) -> list[int]:
        """Processes whose command lines name the folder."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_text().split("\0")
            except OSError:
                continue  # it has just ended
            mine = any(str(self.folder) in word for word in words)
            if mine and ("muprover.cli" in words or "muprover.hosts.daemon" in words):
                found.append(int(path.parent.name))
        return found


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Iterator[Runs]:
    runs = Runs(tmp_path_factory.mktemp("hosts"))
    yield runs
    for pid in runs.left():
        os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def first(runs) -> dict[str, Any]:
    """A session from a terminal that goes: a component is killed, an agent joins, then the end."""
    words = runs.command(*runs.up_words([*SMALL_RUN, *OUT_OF_REACH]))
    shown = runs.up_from_terminal(*words)
    runs.wait_for(lambda: (runs.status()["training"]["steps"] or 0) > 60)
    started = runs.status()
    os.kill(by_name(started)["agent-1"]["pid"], signal.SIGKILL)
    runs.wait_for(lambda: runs.is_running_again("agent-1"))
    restarted = runs.status()
    table = runs.call("status")
    runs.write_hosts(agents=2)
    again = runs.call(*runs.up_words([]))
    joined = runs.status()
    follower = subprocess.Popen(
        runs.command("logs", "trainer", "-f", "--tail", "0"),
        env=runs.environment,
        stdout=subprocess.PIPE,
        text=True,
        # where tests run in the background, Ctrl-C is ignored by all that they start
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    followed = follower.stdout.readline()  # of an export, as they are many
    follower.send_signal(signal.SIGINT)
    locked = seen_from_outside(runs)
    os.kill(runs.supervisor, signal.SIGKILL)
    runs.wait_for(lambda: runs.has_only_new(joined))
    survived = runs.status()
    down = runs.call("down")
    return {
        "shown": shown,
        "started": started,
        "restarted": restarted,
        "table": table,
        "again": again,
        "joined": joined,
        "followed": followed,
        "locked": locked,
        "survived": survived,
        "follower": follower.wait(60),
        "down": down,
        "left": runs.left(),
        "status": runs.call("status", fails=True),
        "logs": runs.call("logs"),
    }


@pytest.fixture(scope="module")
def second(runs, first) -> dict[str, Any]:
    """A session that goes on, with a goal that is soon met, and somebody who waits for it."""
    output = runs.call(*runs.up_words(WITHIN_REACH), "--wait", "--time-limit", "6")
    return {"output": output, "left": runs.left(), "status": runs.status()}


def seen_from_outside(runs: Runs) -> dict[str, str]:
    """What the replay server tells those who have no certificate, or no token."""
    told = {}
    for name, locks in {
        "stranger": Locks(),
        "without token": Locks(runs.certificates),
        "partner": Locks(runs.certificates, token_file=runs.token),
    }.items():
        with using(locks), open_channel(f"localhost:{runs.ports[1]}") as channel:
            stub = replay_pb2_grpc.ReplayServiceStub(channel)
            try:
                stub.Stats(replay_pb2.StatsRequest(), timeout=60)
                told[name] = "OK"
            except grpc.RpcError as error:
                told[name] = error.code().name
    return told


def by_name(status: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {process["name"]: process for process in status["processes"]}


def test_what_was_started_stays_when_the_terminal_goes(first):
    assert (
        "localhost: started environment, replay, network, trainer, evaluator, 1 agent"
        in (first["shown"])
    )
    processes = by_name(first["started"])
    assert set(processes) == NAMES
    assert {process["state"] for process in processes.values()} == {"running"}
    assert first["started"]["training"]["games"] > 0


def test_a_killed_component_is_started_again_on_its_host(first):
    before, after = by_name(first["started"]), by_name(first["restarted"])
    assert after["agent-1"]["pid"] not in (None, before["agent-1"]["pid"])
    assert {name: process["restarts"] for name, process in after.items()} == {
        name: int(name == "agent-1") for name in NAMES
    }
    assert "agent-1 ended with SIGKILL; starting it again" in first["logs"]


def test_status_shows_every_process_and_how_training_goes(first):
    lines = first["table"].splitlines()
    assert lines[0].startswith("run first: tictactoe, 0")
    assert "goal not met yet: lost_lines ≤ -1" in lines[0]
    rows = {line.split()[1]: line.split() for line in lines if line.startswith("localhost")}
    assert set(rows) == NAMES
    assert rows["agent-1"][2] == "running"
    assert rows["agent-1"][5] == "1"
    assert any(line.startswith("training steps: ") for line in lines)


def test_up_once_more_starts_only_what_is_new(first):
    assert "localhost: goes on with environment, replay, network, trainer" in first["again"]
    before, after = by_name(first["restarted"]), by_name(first["joined"])
    assert set(after) == NAMES | {"agent-2"}
    for name in NAMES:
        assert after[name]["pid"] == before[name]["pid"], name


def test_logs_are_followed_as_they_are_written(first):
    assert first["followed"].startswith("trainer  ")
    assert first["follower"] == 130
    for name in NAMES | {"agent-2", "supervisor-localhost"}:
        assert f"{name}  " in first["logs"]


def test_who_has_no_certificate_and_no_token_is_kept_out(first, runs):
    assert first["locked"] == {
        "stranger": "UNAVAILABLE",
        "without token": "UNAUTHENTICATED",
        "partner": "OK",
    }
    folder = runs.run_folder.path / "hosts" / "localhost" / "locks"
    files = {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}
    assert files == dict.fromkeys(("ca.crt", "tls.crt", "tls.key", "token"), 0o600)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert TOKEN not in first["logs"]


def test_a_killed_supervisor_is_started_again_and_starts_all_anew(first):
    assert "the supervisor ended with -9; starting another" in first["logs"]
    processes = by_name(first["survived"])
    assert set(processes) == NAMES | {"agent-2"}
    assert {process["state"] for process in processes.values()} == {"running"}


def test_down_ends_all_in_order_and_leaves_nothing(first, runs):
    assert first["down"] == "localhost: ended\n"
    assert first["left"] == []
    assert "not running" in first["status"]
    text = runs.run_folder.log("supervisor-localhost").read_text()
    orders = [line.partition(": ")[2] for line in text.splitlines() if "INFO" in line]
    assert "orders 2: replay, environment, network, trainer, evaluator, agent-1, agent-2" in (
        "\n".join(orders)
    )
    assert "orders 3: replay, environment, network, trainer\n" in "\n".join(orders)
    assert "orders 4: replay, environment, network\n" in "\n".join(orders)
    assert "is killed" not in text


def test_up_goes_on_where_it_was_and_says_when_the_goal_is_met(first, second, runs):
    log = runs.run_folder.log("trainer").read_text()
    assert "resumed at training step" in log
    assert "PROVEN after" in second["output"]
    assert "lost_lines ≤ 1e+06" in second["output"]
    assert second["left"] == []
    proven = second["status"]["proven"]
    assert proven["evaluation"]["goal_met"] is True
    assert proven["seconds"] > by_name(first["started"])["replay"]["seconds"]


def test_a_run_lies_where_it_was_told_to(second, runs):
    folder = runs.run_folder
    assert folder.models.resolve() == runs.folder / "models" / "first"
    assert [path for path in folder.models.iterdir() if path.name.isdigit()]
    assert folder.load().config.search.num_simulations == 4
    assert any(folder.replay.iterdir())
    assert folder.read_facts() == {"game": "tictactoe", "seed": 0, "name": "first"}
