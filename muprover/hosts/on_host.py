"""What a host is asked by `muprover up`, `status`, `logs` and `down`, through ssh.

Each function runs on that host: it reads one line of JSON from standard input and answers with one.
`python -m muprover.hosts.on_host ACTION` is not for people.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from muprover.config import SettingsError
from muprover.hosts.checks import check, connect, listen
from muprover.hosts.orders import Orders, write_orders
from muprover.hosts.place import Place, Tree
from muprover.hosts.state import State
from muprover.progress import scrape
from muprover.runfolder import write_text

START_SECONDS = 120.0  # for a supervisor to come up, behind one that is still ending
END_SECONDS = 150.0  # for components to end
LOOK_SECONDS = 0.3  # between two looks at logs


def start(message: Tree) -> Tree:
    """Lets a host do its part from now on; whatever else of the run it does is ended."""
    place = Place(**message["place"])
    place.folder.path.mkdir(parents=True, exist_ok=True)
    for name, text in message["files"].items():
        write_text(place.folder.path / name, text)
    number = write_orders(place, message)
    pid = place.supervisor()
    if pid is not None:
        os.kill(pid, signal.SIGHUP)
        _await_orders(place, number)
        return {"pid": pid, "was_running": True}
    return {"pid": _start_supervisor(place), "was_running": False}


def _start_supervisor(place: Place) -> int:
    """Starts the supervisor in a session of its own, so that it stays when we go."""
    place.log.parent.mkdir(parents=True, exist_ok=True)
    words = [sys.executable, "-m", "muprover.hosts.daemon", json.dumps(vars(place))]
    with place.log.open("ab") as log:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=place.folder.path,
            start_new_session=True,
        )
    deadline = time.monotonic() + START_SECONDS
    while State.read(place).pid != process.pid:
        if process.poll() is not None or time.monotonic() > deadline:
            said = deque(place.log.read_text(errors="replace").splitlines(), 3)
            raise SettingsError(f"the supervisor did not start; it said: {' / '.join(said)}")
        time.sleep(0.05)  # another process; no event tells
    return process.pid


def _await_orders(place: Place, number: int) -> None:
    """Until the supervisor has done as ordered, or is gone."""
    deadline = time.monotonic() + END_SECONDS
    while place.supervisor() and State.read(place).orders < number:
        if time.monotonic() > deadline:
            raise SettingsError(f"the supervisor has not done as told within {END_SECONDS:g} s")
        time.sleep(0.05)


def stop(message: Tree) -> Tree:
    """Ends components of some kinds, or all and the supervisor with them; says what was there."""
    place, kinds = Place(**message["place"]), message["kinds"]
    pid = place.supervisor()
    if pid is None:
        return {"was_running": False}
    if kinds is None:
        os.kill(pid, signal.SIGTERM)
        _await_end(place)
        return {"was_running": True}
    orders = Orders.read(place)
    staying = [c for c in orders.components if kind(c.name) not in kinds]
    if len(staying) < len(orders.components):
        orders = replace(orders, components=staying, number=orders.number + 1)
        orders.write(place)
        os.kill(pid, signal.SIGHUP)
        _await_orders(place, orders.number)
    return {"was_running": True}


def _await_end(place: Place) -> None:
    deadline = time.monotonic() + END_SECONDS
    while place.supervisor() is not None:
        if time.monotonic() > deadline:
            raise SettingsError(f"it has not ended within {END_SECONDS:g} s; see {place.log}")
        time.sleep(0.05)


def status(message: Tree) -> Tree:
    """What the supervisor and the components say: metrics twice, some seconds apart."""
    place = Place(**message["place"])
    orders = Orders.read(place)
    ports, tls = orders.metrics if place.supervisor() else {}, orders.tls
    looks = [_look(ports, tls)]
    if message["seconds"] and ports:
        time.sleep(message["seconds"])  # rates are of this time
        looks.append(_look(ports, tls))
    return {
        "running": place.supervisor() is not None,
        "exists": place.folder.exists,
        "state": asdict(State.read(place)),
        "now": time.time(),
        "looks": looks,
        "evaluation": _newest_evaluation(place.folder.evaluations),
    }


def _look(ports: dict[str, int], tls: bool) -> Tree:
    metrics = {name: scrape(port, tls) for name, port in ports.items()}
    return {"at": time.monotonic(), "metrics": metrics}


def _newest_evaluation(path: Path) -> Tree:
    with suppress(OSError, ValueError):
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 65536))
            whole = [line for line in file.read().splitlines(True) if line.endswith(b"\n")]
        answer: Tree = json.loads(whole[-1]) if whole else {}
        return answer
    return {}


def logs(message: Tree) -> None:
    """Writes the last lines of each log as JSON; goes on with what comes until nobody reads."""
    place = Place(**message["place"])
    wanted: str | None = message["component"]
    followed: dict[Path, LogFile] = {}
    gone = threading.Event()
    threading.Thread(target=_await_silence, args=(gone,), daemon=True).start()
    while True:
        for path in _log_files(place, wanted):
            if path not in followed:
                followed[path] = LogFile(path, message["tail"])
            for line in followed[path].new_lines():
                print(json.dumps([path.stem, line]))
        sys.stdout.flush()
        if not message["follow"] or gone.wait(LOOK_SECONDS):
            return


def _await_silence(gone: threading.Event) -> None:
    """Sets the event when whoever asked has left."""
    sys.stdin.read()
    gone.set()


def _log_files(place: Place, wanted: str | None) -> list[Path]:
    """Of this host's components and its supervisor; of one kind or name if it is `wanted`."""
    paths = [*map(place.folder.log, Orders.read(place).names), place.log]
    return [
        path
        for path in paths
        if path.exists() and (wanted is None or wanted in (path.stem, kind(path.stem)))
    ]


class LogFile:
    """A file that grows; its last lines come first."""

    def __init__(self, path: Path, tail: int) -> None:
        self._file = path.open("rb")
        last = deque(self._file, tail)
        self._pending: list[bytes] = list(last)

    def new_lines(self) -> Iterator[str]:
        """Whole lines."""
        if os.fstat(self._file.fileno()).st_size < self._file.tell():  # it was cut
            self._file.seek(0)
        rest = self._pending.pop() if self._pending and self._pending[-1][-1:] != b"\n" else b""
        lines, self._pending = [*self._pending, *(rest + self._file.read()).splitlines(True)], []
        for line in lines:
            if line.endswith(b"\n"):
                yield line.decode(errors="replace").rstrip("\n")
            else:
                self._pending.append(line)


def kind(name: str) -> str:
    """`agent` of `agent-2`."""
    return name.partition("-")[0]


ACTIONS: dict[str, Callable[[Tree], Any]] = {
    "check": check,
    "listen": listen,
    "connect": connect,
    "start": start,
    "stop": stop,
    "status": status,
    "logs": logs,
}


def main() -> int:
    action = ACTIONS[sys.argv[1]]
    try:
        answer = action(json.loads(sys.stdin.readline()))
        if answer is not None:
            print(json.dumps(answer))
    except (SettingsError, OSError) as error:
        print(f"muprover: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
