"""Child processes that are restarted when they crash, and ended in order."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from muprover import standby

log = logging.getLogger(__name__)

CRASHES = 5  # in a row, each soon after its start, and a component is given up
SOON_SECONDS = 120.0  # for one that ends by itself: TensorFlow alone may take half a minute
SOON_KILLED_SECONDS = 20.0  # for one that is killed
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 10.0  # s before a component is started again
PAUSE_GROWTH, MOST_GROWTHS = 4, 10
MOST_LOG_BYTES = 64 << 20  # of one log; what was before is kept once
LOG_SECONDS = 10.0  # between two looks at how long logs are
STANDBY_SECONDS = 15.0  # of work, before a standby is started: to get ready takes all cores

_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


class ComponentError(RuntimeError):
    """A component that cannot be kept running; the message ends with the last of its log."""


@dataclass
class Component:
    """A command line, and the process that runs it now."""

    name: str
    arguments: Sequence[str]
    log: Path
    grace_seconds: float = 30.0
    environment: Mapping[str, str] = field(default_factory=dict)  # besides what there is
    has_standby: bool = False  # whether a second process is kept ready to take its place
    process: subprocess.Popen[bytes] | None = None
    standby: subprocess.Popen[bytes] | None = None
    standby_at: float = 0.0  # when another may be started
    started: float = 0.0
    crashes: int = 0  # in a row, soon after the start
    restarts: int = 0
    restart_at: float = 0.0
    is_done: bool = False  # ended by itself, with status 0

    def start(self, keep: int | None = None) -> None:
        """keep: a file descriptor that the process inherits."""
        self.process = self._promoted() or self._spawn(keep, subprocess.DEVNULL, {})
        self.started = time.monotonic()
        self.standby_at = self.started + STANDBY_SECONDS

    @property
    def is_backed(self) -> bool:
        """Whether its standby is there, ready or about to be."""
        return self.standby is not None and self.standby.poll() is None

    def back(self, keep: int | None = None) -> None:
        """Starts its standby, if it is due."""
        if self.has_standby and not self.is_backed and time.monotonic() >= self.standby_at:
            self.standby = self._spawn(keep, subprocess.PIPE, {standby.VARIABLE: "1"})
            self.standby_at = time.monotonic() + 4 * STANDBY_SECONDS

    def end_standby(self) -> None:
        ended, self.standby = self.standby, None  # a signal may have it ended by another thread
        if ended is not None:
            ended.kill()
            ended.wait()

    def _promoted(self) -> subprocess.Popen[bytes] | None:
        """Its standby, told to take the place; None if there is none."""
        promoted, self.standby = self.standby, None
        if promoted is None or promoted.stdin is None or promoted.poll() is not None:
            return None
        try:
            with promoted.stdin as turn:
                turn.write(standby.GO)
        except OSError:  # it has just died
            return None
        return promoted

    def _spawn(
        self, keep: int | None, stdin: int, environment: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as file:
            return subprocess.Popen(
                [sys.executable, "-m", "muprover.cli", *self.arguments],
                stdin=stdin,
                stdout=file,
                stderr=file,
                env={**os.environ, **self.environment, **environment},
                pass_fds=() if keep is None else (keep,),
                start_new_session=True,  # Ctrl-C is the launcher's
                preexec_fn=partial(end_with_parent, os.getpid()),
            )

    def tail(self, lines: int = 12) -> str:
        """The last of its log."""
        text = self.log.read_text(encoding="utf-8", errors="replace")
        return "\n".join(text.splitlines()[-lines:])


@dataclass
class Supervisor:
    """Starts components in the order given, and ends them in the reverse one."""

    components: list[Component] = field(default_factory=list)
    tell: Callable[[str], None] = log.warning  # what people should know
    gives_up: bool = True  # where nobody watches, it is better to go on trying
    _keep: int | None = None
    _looked_at_logs: float = 0.0

    def start(self, keep: int | None = None) -> None:
        """keep: a file descriptor that all components inherit."""
        self._keep = keep
        for component in self.components:
            component.start(keep)

    def check(self) -> None:
        """Restarts what has crashed, after a pause; raises `ComponentError` if one always does.
        Cuts logs that have become long."""
        self._cut_logs()
        for component in self.components:
            process = component.process
            if process is None:
                if time.monotonic() >= component.restart_at:
                    component.restarts += 1
                    component.start(self._keep)
            elif process.poll() is None:
                component.back(self._keep)
            elif not component.is_done:
                self._on_exit(component, process.returncode)

    def _cut_logs(self) -> None:
        if time.monotonic() - self._looked_at_logs >= LOG_SECONDS:
            self._looked_at_logs = time.monotonic()
            for component in self.components:
                with contextlib.suppress(OSError):  # a full disk: it is looked at again
                    cut_log(component.log)

    def stop(self, components: Sequence[Component] | None = None) -> None:
        """Ends everything, or these: each group is told, then waited for, before the next one."""
        ending = self.components if components is None else components
        for component in ending:
            component.end_standby()
        for group in _in_groups(reversed(ending)):
            for component in group:
                _signal(component, signal.SIGTERM)
            deadline = time.monotonic() + max(c.grace_seconds for c in group)
            for component in group:
                self._await(component, deadline)

    def replace(self, components: Sequence[Component]) -> None:
        """Ends what is not among these, starts what is new; what is the same is left alone."""
        running = {c.name: c for c in self.components}
        kept = {c.name: running[c.name] for c in components if _is_same(c, running.get(c.name))}
        self.stop([c for c in self.components if c.name not in kept])
        self.components = [kept.get(c.name, c) for c in components]
        for component in self.components:
            if component.name not in kept:
                component.start(self._keep)

    def kill(self) -> None:
        """Ends everything at once."""
        for component in self.components:
            component.end_standby()
            if component.process is not None and component.process.poll() is None:
                _kill_group(component)

    def is_done(self, name: str) -> bool:
        return any(c.is_done for c in self.components if c.name == name)

    def _on_exit(self, component: Component, status: int) -> None:
        if status == 0:
            component.is_done = True
            component.end_standby()
            self.tell(f"{component.name} is done")
            return
        _kill_group(component)  # what it has left behind
        alive = time.monotonic() - component.started
        soon = SOON_KILLED_SECONDS if status < 0 else SOON_SECONDS
        component.crashes = component.crashes + 1 if alive < soon else 1
        how = signal.Signals(-status).name if status < 0 else f"status {status}"
        if self.gives_up and (status == 2 or component.crashes >= CRASHES):
            raise ComponentError(
                f"{component.name} ended with {how}, {component.crashes} time(s) in a row; "
                f"the last of {component.log}:\n{component.tail()}"
            )
        growths = min(component.crashes - 1, MOST_GROWTHS)
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * PAUSE_GROWTH**growths)
        component.process = None
        component.restart_at = time.monotonic()
        if component.is_backed:
            self.tell(f"{component.name} ended with {how}; its standby takes its place")
            return
        self.tell(f"{component.name} ended with {how}; starting it again in {pause:.1f} s")
        component.restart_at += pause

    def _await(self, component: Component, deadline: float) -> None:
        if component.process is None:
            return
        try:
            component.process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.tell(f"{component.name} did not end in time and is killed")
            _kill_group(component)
            component.process.wait()


def cut_log(log: Path) -> None:
    """Moves what a log that is too long holds to `<name>.1`, in place of what was there; whoever
    appends to it goes on."""
    if log.stat().st_size > MOST_LOG_BYTES:
        shutil.copyfile(log, log.with_name(f"{log.name}.1"))
        os.truncate(log, 0)


def _is_same(one: Component, other: Component | None) -> bool:
    def facts(component: Component) -> tuple[object, ...]:
        return list(component.arguments), dict(component.environment), component.log

    return other is not None and facts(one) == facts(other)


def _in_groups(components: Iterable[Component]) -> list[list[Component]]:
    """Neighbours whose names differ only in a number end together."""
    groups: list[list[Component]] = []
    for component in components:
        kind = component.name.rstrip("0123456789-")
        if groups and groups[-1][0].name.rstrip("0123456789-") == kind:
            groups[-1].append(component)
        else:
            groups.append([component])
    return groups


def _signal(component: Component, number: signal.Signals) -> None:
    process = component.process
    if process is not None and process.poll() is None:
        process.send_signal(number)


def _kill_group(component: Component) -> None:
    """The component, and whatever it has started."""
    if component.process is not None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(component.process.pid, signal.SIGKILL)


def end_with_parent(parent: int) -> None:
    """Linux: this process gets SIGTERM when its parent is gone, however it went."""
    if _LIBC is None:
        return
    pr_set_pdeathsig = 1
    _LIBC.prctl(pr_set_pdeathsig, signal.SIGTERM)
    if os.getppid() != parent:  # it went before the line above
        os._exit(1)
