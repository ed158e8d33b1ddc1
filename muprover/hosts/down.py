"""`muprover down`: ends a run on all of its hosts, in order, so that nothing is lost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from muprover.hosts.connection import Connections, Host, HostsError, Message
from muprover.hosts.on_host import kind
from muprover.hosts.record import Record

# Agents hand in unfinished games, and the trainer its checkpoint, before the servers go.
ORDER: tuple[Sequence[str] | None, ...] = (("agent", "evaluator"), ("trainer",), None)


def down(record: Record, write: Callable[[str], None]) -> None:
    """Raises `HostsError` if a host could not be asked; the others are ended all the same."""
    wrong: dict[str, str] = {}
    were_running: set[str] = set()
    with Connections(record.components, record.pythons) as connections:
        for kinds in ORDER:
            asked = [
                host
                for host in connections.hosts
                if host.name not in wrong and _has(record, host.name, kinds)
            ]
            answers, failed = connections.each(partial(stop, record, kinds=kinds), asked)
            wrong |= failed
            were_running |= {host for host, answer in answers.items() if answer["was_running"]}
    for host in record.components:
        if host not in wrong:
            write(f"{host}: {'ended' if host in were_running else 'was not running'}")
    if wrong:
        told = [f"{host}: {problem}" for host, problem in wrong.items()]
        raise HostsError("\n  ".join(["not all was ended (`muprover down` tries again):", *told]))
    replace(record, is_down=True).save()


def stop(record: Record, host: Host, kinds: Sequence[str] | None = None) -> Message:
    """Ends components of these kinds on a host; None: all, and its supervisor."""
    return host.ask("stop", {"place": vars(record.place(host.name)), "kinds": kinds})


def _has(record: Record, host: str, kinds: Sequence[str] | None) -> bool:
    return kinds is None or any(kind(name) in kinds for name in record.components[host])
