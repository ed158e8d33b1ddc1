"""hosts.config, the file that says which host does what: `service host:number`, line by line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from muprover.config import SettingsError

EXAMPLE = """\
# Which host does what: `service host:number`. A host is a name or an address that ssh knows,
# perhaps with a user before it (`me@gpu-1`); `localhost` is this machine, without ssh. The hosts
# must find each other by these names or addresses, and let each other in at these ports.

environment  localhost:50000      # the port
replay       localhost:50001      # the port
network      localhost:50002      # the port
trainer      localhost:1          # the number of games after which training begins
agent        localhost:1          # how many; there may be several such lines
# agent      me@other-host:4
evaluator    localhost            # may be left out: then nobody notices that the goal is met
"""

WITH_PORT = ("environment", "replay", "network")
SERVICES = (*WITH_PORT, "trainer", "agent", "evaluator")
OPTIONAL = ("evaluator",)
MOST_LINES = 1000  # that say something
MOST_AGENTS = 10_000  # on all hosts
ALIASES = {"training": "trainer"}
NUMBERS = {  # what the number of a service is, with its least and its most
    **dict.fromkeys(WITH_PORT, ("a port", 1, 65535)),
    "trainer": ("a least number of games", 0, 10**9),
    "agent": ("a number of agents", 1, MOST_AGENTS),
    "evaluator": ("always 1, and may be left out", 1, 1),
}
HOST = re.compile(r"([A-Za-z0-9_][\w.+-]*@)?([A-Za-z0-9_][\w.-]*|\[[0-9A-Fa-f:.]+(%\w+)?\])")


@dataclass(frozen=True)
class Line:
    service: str
    host: str
    number: int
    place: int  # in the file, from 1


@dataclass(frozen=True)
class Hosts:
    """A file that has been understood."""

    lines: tuple[Line, ...]

    @property
    def names(self) -> list[str]:
        """The hosts, as they are written, each once."""
        return list(dict.fromkeys(line.host for line in self.lines))

    @property
    def agents(self) -> int:
        return sum(line.number for line in self.lines if line.service == "agent")

    def line(self, service: str) -> Line:
        return next(line for line in self.lines if line.service == service)

    def components(self, host: str) -> list[str]:
        """Of a host; agents are numbered through the whole file."""
        return [name for name, at in self._components() if at == host]

    def has(self, service: str) -> bool:
        return any(line.service == service for line in self.lines)

    def ports(self, host: str) -> dict[str, int]:
        """Of the servers on a host."""
        return {
            line.service: line.number
            for line in self.lines
            if line.host == host and line.service in WITH_PORT
        }

    def _components(self) -> Iterator[tuple[str, str]]:
        """Names, and where."""
        agents = 0
        for line in self.lines:
            if line.service == "agent":
                for _ in range(line.number):
                    agents += 1
                    yield f"agent-{agents}", line.host
            else:
                yield line.service, line.host


def read_hosts(path: Path) -> Hosts:
    """Understands the file at `path`; raises `SettingsError`, which names every wrong line."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        told = error.strerror if isinstance(error, OSError) else "it is no text"
        raise SettingsError(
            f"cannot read {path}: {told} (muprover up --example writes a sample)"
        ) from None
    return parse_hosts(text, str(path))


def parse_hosts(text: str, name: str) -> Hosts:
    """The lines of `text`; `name` is what the file is called where something is wrong with it."""
    lines: list[Line] = []
    wrong: list[str] = []
    for place, raw in enumerate(text.splitlines(), 1):
        words = raw.partition("#")[0].split()
        if not words:
            continue
        if len(lines) + len(wrong) == MOST_LINES:
            wrong.append(f"line {place}: more than {MOST_LINES} lines")
            break
        try:
            line = _parse_line(words, place)
            _check_beside(line, lines)
            lines.append(line)
        except ValueError as error:
            wrong.append(f"line {place} (`{' '.join(words)}`): {error}")
    if not wrong:
        have = {line.service for line in lines}
        missing = [s for s in SERVICES if s not in have and s not in OPTIONAL]
        wrong = [f"there is no line for {service}" for service in missing]
    if wrong:
        raise SettingsError("\n  ".join([f"{name} cannot be used:", *wrong]))
    return Hosts(tuple(lines))


def _parse_line(words: list[str], place: int) -> Line:
    """Raises `ValueError` in words."""
    if len(words) != 2:
        raise ValueError("a line is `service host:number`")
    service = ALIASES.get(words[0], words[0])
    if service not in SERVICES:
        near = get_close_matches(words[0], [*SERVICES, *ALIASES], 1)
        hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(SERVICES)}"
        raise ValueError(f"no service {words[0]}{hint}")
    host, number = _split(words[1], service)
    if not HOST.fullmatch(host):
        raise ValueError(f"'{host}' is no host: it is a name or an address, or user@ before one")
    what, least, most = NUMBERS[service]
    if not number.isdecimal() or not least <= int(number) <= most:
        raise ValueError(f"'{number}' after {host}: it is {what}, from {least} to {most}")
    return Line(service, host, int(number), place)


def _split(word: str, service: str) -> tuple[str, str]:
    host, colon, number = word.rpartition(":")
    if colon and not number.endswith("]"):
        return host, number
    if service == "evaluator":
        return word, "1"
    raise ValueError(f"no number after {word}: it is {NUMBERS[service][0]}, after a colon")


def _check_beside(line: Line, before: list[Line]) -> None:
    """Raises `ValueError` where a line does not go with those above it."""
    agents = line.number + sum(other.number for other in before if other.service == "agent")
    if line.service == "agent" and agents > MOST_AGENTS:
        raise ValueError(f"these would be {agents} agents; {MOST_AGENTS} are the most")
    for other in before:
        if line.service == other.service and line.service != "agent":
            raise ValueError(f"a second {line.service}; the first is in line {other.place}")
        if machine(line.host) == machine(other.host) and line.host != other.host:
            raise ValueError(
                f"line {other.place} calls the same host {other.host}; write it one way"
            )
        ports = line.service in WITH_PORT and other.service in WITH_PORT
        if ports and (line.host, line.number) == (other.host, other.number):
            raise ValueError(
                f"port {line.number} is that of {other.service}, in line {other.place}"
            )


def machine(host: str) -> str:
    """Without the user."""
    return host.rpartition("@")[2]


def write_example(path: Path) -> None:
    """Writes a sample; leaves a file that is there alone."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(EXAMPLE)
    except FileExistsError:
        raise SettingsError(f"{path} is there already; -c names another file") from None
    except OSError as error:
        raise SettingsError(f"cannot write {path}: {error.strerror}") from None
