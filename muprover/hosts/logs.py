"""`muprover logs`: what a run's components write on all of its hosts, on one stream."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue

from muprover.hosts.connection import Connections, Host, HostsError
from muprover.hosts.record import Record

AGAIN_SECONDS = 5.0  # before a host that was lost is asked once more

Writer = Callable[[str], None]


def print_logs(record: Record, component: str | None, tail: int, write: Writer) -> None:
    """The last lines of each component; of one kind or name, if that is given."""
    with Connections(record.components, record.pythons) as connections:
        _, wrong = connections.each(lambda host: _read(record, host, component, tail, write))
    for host, problem in wrong.items():
        write(f"[{host}: {problem}]")


def follow_logs(record: Record, component: str | None, tail: int, write: Writer) -> None:
    """The same, and whatever is written from now on, until Ctrl-C."""
    lines: SimpleQueue[str] = SimpleQueue()
    with Connections(record.components, record.pythons) as connections:
        for host in connections.hosts:
            args = (record, host, component, tail, lines.put)
            threading.Thread(target=_follow, args=args, daemon=True).start()
        while True:
            write(lines.get())


def _follow(record: Record, host: Host, component: str | None, tail: int, write: Writer) -> None:
    while True:
        try:
            _read(record, host, component, tail, write, follow=True)
        except HostsError as error:
            write(f"[{host.name}: {error}; asking again]")
        tail = 0
        time.sleep(AGAIN_SECONDS)


def _read(
    record: Record,
    host: Host,
    component: str | None,
    tail: int,
    write: Writer,
    follow: bool = False,
) -> None:
    place = vars(record.place(host.name))
    message = {"place": place, "component": component, "tail": tail, "follow": follow}
    with host.start("logs") as call:
        call.send(message)
        for line in call.lines():
            with suppress(ValueError):
                name, text = json.loads(line)
                write(f"{name}  {text}")
        call.process.wait()
        if call.process.returncode:
            raise HostsError(host.describe(call))
