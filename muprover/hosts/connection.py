"""How a host is asked: by the system's ssh, or at once where it is this machine."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Self, TypeVar

CONNECT_SECONDS = 10
ANSWER_SECONDS = 180.0  # Python alone may take long to start on a busy host
OPTIONS = (
    "-T",
    *("-o", "BatchMode=yes"),  # never asks for a password
    *("-o", f"ConnectTimeout={CONNECT_SECONDS}"),
    *("-o", "ServerAliveInterval=10"),
    *("-o", "ServerAliveCountMax=3"),
    *("-o", "ControlMaster=auto"),
    *("-o", "ControlPersist=60"),
)
SSH_FAILED = 255
HINTS = {
    "Permission denied": "give it your key: ssh-copy-id {host}",
    "Host key verification failed": "connect once by hand to accept its key: ssh {host}",
    "REMOTE HOST IDENTIFICATION HAS CHANGED": "its key is not the one that ssh knows: ssh {host}",
    "Could not resolve hostname": "is its name right?",
}

Message = dict[str, Any]
Answer = TypeVar("Answer")


class HostsError(RuntimeError):
    """What a host refuses, lacks or does not answer, in words for people."""


class Host:
    """One host, as it is written in hosts.config."""

    def __init__(self, name: str, control: Path, python: str = "") -> None:
        """control: folder for ssh's connections. python: its interpreter, once that is known."""
        self.name = name
        self.python = python or (sys.executable if self.is_here else "")
        self._ssh = ["ssh", *OPTIONS, "-o", f"ControlPath={control}/%C"]
        self._destination = re.sub(r"[\[\]]", "", name)  # of addresses with colons

    @property
    def is_here(self) -> bool:
        return self.name == "localhost"

    def shell(self, script: str) -> str:
        """What a script for `sh` prints there; raises `HostsError` unless it ends well."""
        return self._ask(self.open("exec sh"), script)

    def ask(self, action: str, message: Message) -> Message:
        """What `muprover.hosts.on_host` answers there; raises `HostsError` in its words."""
        answer = self._ask(self.start(action), json.dumps(message) + "\n")
        return read_answer(answer)

    def start(self, action: str) -> Call:
        """The same, but left running, with pipes to and from it."""
        command = f"exec {shlex.quote(self.python)} -m muprover.hosts.on_host {action}"
        return self.open(command if self.is_here else f"cd / && {command}")

    def open(self, command: str) -> Call:
        where = ["sh", "-c"] if self.is_here else [*self._ssh, "--", self._destination]
        return Call([*where, command])

    def close(self) -> None:
        """Ends ssh's connection, if there is one."""
        if not self.is_here:
            with suppress(OSError, subprocess.TimeoutExpired):
                command = [*self._ssh, "-O", "exit", "--", self._destination]
                subprocess.run(command, capture_output=True, timeout=5, check=False)

    def _ask(self, call: Call, message: str) -> str:
        with call:
            try:
                answer, _ = call.process.communicate(message, ANSWER_SECONDS)
            except subprocess.TimeoutExpired:
                raise HostsError(f"did not answer within {ANSWER_SECONDS:g} s") from None
            if call.process.returncode:
                raise HostsError(self.describe(call))
        return answer

    def describe(self, call: Call) -> str:
        """Why a call has failed."""
        status, complaints = call.process.returncode, call.complaints
        lines = [line for line in complaints.splitlines() if line.strip()]
        last = lines[-1].strip() if lines else f"status {status}"
        if status != SSH_FAILED or self.is_here:
            return last.removeprefix("muprover: ")
        hints = [
            h.format(host=self._destination) for sign, h in HINTS.items() if sign in complaints
        ]
        return f"cannot be reached: {last}" + (f" ({hints[0]})" if hints else "")


class Call:
    """A process with pipes, here or at the other end of ssh, in a `with`."""

    def __init__(self, command: list[str]) -> None:
        # no pipe: ssh's shared connection would hold it open
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115 - closed in __exit__
        try:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._complaints,
                text=True,
                errors="replace",
                start_new_session=True,  # Ctrl-C is for the one who asks
            )
        except FileNotFoundError:
            raise HostsError("the command ssh is not installed here") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        self._complaints.close()

    @property
    def complaints(self) -> str:
        """What it has written to standard error."""
        self._complaints.seek(0)
        return self._complaints.read().decode(errors="replace")

    def send(self, message: Message) -> None:
        """One line; a process that has gone says why when it is read from."""
        assert self.process.stdin is not None
        with suppress(OSError):
            self.process.stdin.write(json.dumps(message) + "\n")
            self.process.stdin.flush()

    def lines(self) -> Iterator[str]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            yield line.rstrip("\n")

    def end(self) -> None:
        """Closes its input, at which what runs on the other host ends, and waits for it."""
        for pipe in (self.process.stdin, self.process.stdout):
            with suppress(OSError):
                assert pipe is not None
                pipe.close()
        try:
            self.process.wait(5.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def read_answer(text: str) -> Message:
    """The last line, as JSON; a shell's start-up files may have written others before it."""
    lines = text.splitlines()
    try:
        answer = json.loads(lines[-1])
    except (IndexError, ValueError):
        raise HostsError(f"answered something else than was asked: {text[-200:]!r}") from None
    if not isinstance(answer, dict):
        raise HostsError(f"answered something else than was asked: {text[-200:]!r}")
    return answer


class Connections:
    """All hosts of a file; their connections are shared by whatever is asked, in a `with`."""

    def __init__(self, names: Iterable[str], pythons: Mapping[str, str] | None = None) -> None:
        self._control = Path(tempfile.mkdtemp(prefix="muprover-ssh-", dir="/tmp"))  # sockets: short
        found = pythons or {}
        self.hosts = [Host(name, self._control, found.get(name, "")) for name in names]
        self._threads = ThreadPoolExecutor(max(1, len(self.hosts)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        list(self._threads.map(Host.close, self.hosts))
        self._threads.shutdown()
        shutil.rmtree(self._control, ignore_errors=True)

    def each(
        self, ask: Callable[[Host], Answer], hosts: Iterable[Host] | None = None
    ) -> tuple[dict[str, Answer], dict[str, str]]:
        """Asks all hosts, or these, at once: answers by host, and what went wrong elsewhere."""
        asked = list(self.hosts if hosts is None else hosts)
        answers: dict[str, Answer] = {}
        wrong: dict[str, str] = {}

        def one(host: Host) -> None:
            try:
                answers[host.name] = ask(host)
            except HostsError as error:
                wrong[host.name] = str(error)

        list(self._threads.map(one, asked))
        return answers, wrong
