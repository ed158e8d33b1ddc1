"""What happens to a run. Each fault begins, lasts, and ends; those that end at once last 0 s."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path

from chaos.ledger import Ledger, in_store, newest_checkpoint
from chaos.watch import Process, Run

LIBFAKETIME = (
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
)
SERVERS = ("replay", "environment", "network")


@dataclass
class Scene:
    """Where faults happen."""

    run: Run
    ledger: Ledger
    rng: random.Random
    pause: float  # seconds that what can end lasts
    clock: Path | None = None  # the file that libfaketime reads
    only: tuple[str, ...] = ()  # what is killed or cut off; empty: all
    _decks: dict[str, list[str]] = field(default_factory=dict)  # by fault: whose turn comes

    def pick(self, *names: str) -> Process:
        """One of the components, or of these."""
        found = [p for p in self.run.processes() if not names or p.name in names]
        if not found:
            raise RuntimeError(f"no {' or '.join(names) or 'component'} is running")
        return self.rng.choice(found)

    def deal(self, fault: str, *names: str) -> Process:
        """As `pick`, in random order, but each as often as the others."""
        found = {p.name: p for p in self.run.processes() if not names or p.name in names}
        found = {name: p for name, p in found.items() if not self.only or name in self.only}
        deck = [name for name in self._decks.get(fault, []) if name in found]
        if not deck:
            deck = self.rng.sample(sorted(found), len(found))
        if not deck:
            raise RuntimeError(f"no {' or '.join(self.only or names) or 'component'} is running")
        self._decks[fault] = deck[1:]
        return found[deck[0]]

    def kill(self, process: Process) -> None:
        if process.name == "trainer":
            self.ledger.trainer_dies()
        os.kill(process.pid, signal.SIGKILL)


class Fault(ABC):
    """One kind of fault. `begin` answers what it has done to what, in words."""

    lasts = False

    def __init__(self, scene: Scene) -> None:
        self.scene = scene

    @classmethod
    def why_not(cls) -> str:
        """Why this machine cannot do that; empty if it can."""
        return ""

    @abstractmethod
    def begin(self) -> str: ...

    def end(self) -> None:  # noqa: B027 - most faults end as they begin
        """Puts an end to a fault that lasts."""


class Kill(Fault):
    """kill −9."""

    def begin(self) -> str:
        process = self.scene.deal("kill")
        self.scene.kill(process)
        return process.name


class Stop(Fault):
    """SIGSTOP, and later SIGCONT."""

    lasts = True

    def begin(self) -> str:
        self._process = self.scene.pick()
        os.kill(self._process.pid, signal.SIGSTOP)
        return self._process.name

    def end(self) -> None:
        os.kill(self._process.pid, signal.SIGCONT)


class Link(Fault):
    """No packet passes between a server and its clients; nobody is told."""

    lasts = True

    @classmethod
    def why_not(cls) -> str:
        if not in_own_network():
            return "needs a network namespace of its own (root, or unshare -rn)"
        return "" if _iptables() else "needs iptables"

    def begin(self) -> str:
        process = self.scene.deal("link", *SERVERS)
        self._port = process.option("--port")
        self._rules("-A")
        return process.name

    def end(self) -> None:
        self._rules("-D")

    def _rules(self, action: str) -> None:
        for command in _iptables():
            for side in ("--dport", "--sport"):
                words = [command, action, "OUTPUT", "-p", "tcp", side, self._port, "-j", "DROP"]
                subprocess.run(words, check=True)


class Disk(Fault):
    """The disk of the run's folder is full."""

    lasts = True

    @classmethod
    def why_not(cls) -> str:
        return "" if in_own_mounts() else "needs a small file system of its own (root)"

    def begin(self) -> str:
        self._ballast = self.scene.run.folder.path / "ballast"
        with self._ballast.open("wb", buffering=0) as file:
            size = 1 << 20
            while size:
                try:
                    file.write(bytes(size))
                except OSError:
                    size //= 4
        return f"{self._ballast.stat().st_size >> 20} MB of it"

    def end(self) -> None:
        self._ballast.unlink()


class Tear(Fault):
    """The replay server dies, and the last bytes of its store are gone, or are half a write."""

    def begin(self) -> str:
        scene = self.scene
        process = scene.pick("replay")
        os.kill(scene.run.launcher.pid, signal.SIGSTOP)  # it must not be started again meanwhile
        try:
            os.kill(process.pid, signal.SIGKILL)
            _await_end(process.pid)
            newest = max(scene.run.folder.replay.glob("games-*.log"))
            if scene.rng.randrange(2):
                return self._cut(newest)
            with newest.open("ab") as file:
                file.write(b"MPRg" + scene.rng.randbytes(200))
            return "replay: half a record more"
        finally:
            os.kill(scene.run.launcher.pid, signal.SIGCONT)

    def _cut(self, path: Path) -> str:
        """Takes bytes off; games in them are no longer to be found."""
        size = path.stat().st_size
        count = min(size, self.scene.rng.randrange(1, 3000))
        gone = {key for key, end in in_store(path) if end > size - count}
        self.scene.ledger.torn |= gone
        os.truncate(path, size - count)
        return f"replay: {count} bytes less, with {len(gone)} games"


class Model(Fault):
    """The newest version is damaged, and so is a newer one; the network server begins anew."""

    def begin(self) -> str:
        scene = self.scene
        models = scene.run.folder.models
        version = max(int(path.name) for path in models.iterdir() if path.name.isdigit())
        aside = models / f".tmp-chaos-{version}"
        shutil.copytree(models / str(version), aside)
        for folder in (aside, models / str(version)):
            _damage(next((folder / "variables").glob("*.data-*")))
        aside.rename(models / str(version + 1))
        process = scene.pick("network")
        scene.kill(process)
        return f"versions {version} and {version + 1}, network killed"


class Checkpoint(Fault):
    """The newest checkpoint is damaged; the trainer begins anew, with the one before."""

    def begin(self) -> str:
        scene = self.scene
        scene.run.wait_for(lambda: len(self._sound()) > 1, 120, "there are two sound checkpoints")
        process = scene.pick("trainer")
        *_, before, newest = self._sound()
        scene.ledger.trainer_dies(before)
        os.kill(process.pid, signal.SIGKILL)
        _damage(next(self._folder.glob(f"training-{newest}.data-*")))
        return f"step {newest}, trainer killed"

    @property
    def _folder(self) -> Path:
        return self.scene.run.folder.path / "checkpoints"

    def _sound(self) -> list[int]:
        """Steps of checkpoints, but for one damaged before, which is newer than the last saved."""
        last = newest_checkpoint(self.scene.run.folder)
        steps = (int(p.stem.split("-")[1]) for p in self._folder.glob("training-*.index"))
        return sorted(step for step in steps if step <= last)


class Clock(Fault):
    """The wall clock jumps by an hour, to and fro; monotonic clocks go on, as they must."""

    lasts = True

    @classmethod
    def why_not(cls) -> str:
        return "" if faketime() and shutil.which("cc") else "needs libfaketime and a C compiler"

    def begin(self) -> str:
        by = self.scene.rng.choice((-3600, 3600))
        self._set(by)
        return f"by {by:+d} s"

    def end(self) -> None:
        self._set(0)

    def _set(self, seconds: int) -> None:
        assert self.scene.clock is not None
        aside = self.scene.clock.with_suffix(".tmp")
        aside.write_text(f"{seconds:+d}\n")
        aside.rename(self.scene.clock)


class Launcher(Fault):
    """The launcher is killed; the components end by themselves, and the run is gone on with."""

    def begin(self) -> str:
        run = self.scene.run
        self.scene.ledger.trainer_dies()
        run.launcher.kill()
        run.launcher.wait()
        run.start()
        return "the launcher; started again"


FAULTS: dict[str, type[Fault]] = {
    "kill": Kill,
    "stop": Stop,
    "link": Link,
    "disk": Disk,
    "tear": Tear,
    "model": Model,
    "checkpoint": Checkpoint,
    "clock": Clock,
    "launcher": Launcher,
}


def in_own_network() -> bool:
    return os.readlink("/proc/self/ns/net") != os.environ.get("CHAOS_OUTER_NET", "")


def in_own_mounts() -> bool:
    return os.readlink("/proc/self/ns/mnt") != os.environ.get("CHAOS_OUTER_MNT", "")


def faketime() -> str | None:
    return next((path for path in LIBFAKETIME if Path(path).exists()), None)


def preloads(folder: Path) -> str:
    """What makes a process see another time, for LD_PRELOAD; compiled into a folder."""
    sleep = folder / "sleep.so"
    source = Path(__file__).with_name("sleep.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", sleep, source], check=True)
    return f"{sleep} {faketime()}"


def _iptables() -> list[str]:
    """For both versions of IP."""
    for suffix in ("-legacy", ""):
        commands = [f"iptables{suffix}", f"ip6tables{suffix}"]
        if all(shutil.which(command) for command in commands):
            return commands
    return []


def _damage(path: Path) -> None:
    """Other bytes in the middle of a file."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(os.urandom(64))


def _await_end(pid: int) -> None:
    """Until a killed process holds no file any more; its parent may not have looked yet."""
    while True:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return
        except OSError:
            return
        time.sleep(0.01)
