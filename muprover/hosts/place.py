"""Where a run lies on one of its hosts. Several hosts may share these folders, or none."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from muprover.config import SettingsError
from muprover.runfolder import RunFolder, locked, try_lock, write_text

log = logging.getLogger(__name__)

Tree = dict[str, Any]
Kind = TypeVar("Kind")
RUN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Place:
    """The folders of a run, as its hosts see them; those of a host have its name in theirs."""

    host: str
    run: str
    dir: str  # MuProver's on each host; below the home folder unless it begins with /
    models: str  # of all runs' versions, likewise

    @property
    def folder(self) -> RunFolder:
        """As all hosts see it."""
        return RunFolder(expand(self.dir) / "runs" / self.run)

    def folder_for(self, components: Iterable[str]) -> RunFolder:
        """The same, but what is this host's lies where only this host writes."""
        return HostFolder(self.folder.path, self.own, self.versions(components))

    def versions(self, components: Iterable[str]) -> Path | None:
        """Of this run, where these components have them; None if they need none.

        What is pulled from the trainer lies apart, as both may see one folder.
        """
        folder = expand(self.models) / self.run
        if "trainer" in components:
            return folder
        return folder / f"pulled-{self.own.name}" if "network" in components else None

    @property
    def own(self) -> Path:
        """What only this host's supervisor writes."""
        name = re.sub(r"[^A-Za-z0-9.-]", "_", self.host.rpartition("@")[2])
        return self.folder.path / "hosts" / name

    @property
    def orders(self) -> Path:
        """What the supervisor is to keep running."""
        return self.own / "orders.json"

    @property
    def state(self) -> Path:
        """What the supervisor says of it."""
        return self.own / "state.json"

    @property
    def lock(self) -> Path:
        """Held by the supervisor and its components; holds the supervisor's process id."""
        return self.own / "lock"

    @property
    def log(self) -> Path:
        return self.folder.log(f"supervisor-{self.own.name}")

    def supervisor(self) -> int | None:
        """The process id of the supervisor that runs now."""
        try:
            with self.lock.open("r+") as file:
                if try_lock(file.fileno()):
                    fcntl.flock(file, fcntl.LOCK_UN)
                    return None
                pid = int(file.read() or 0)
            os.kill(pid, 0)
        except (OSError, ValueError):
            return None
        return pid or None

    @contextmanager
    def hold(self) -> Iterator[int]:
        """Takes the lock for this process and those that inherit its file descriptor."""
        folder = self.folder.path
        with (
            locked(folder / "lock", f"a `muprover run` is going on in {folder}", shared=True),
            locked(self.lock, f"another supervisor is at work in {self.own}") as file,
        ):
            os.ftruncate(file, 0)
            os.write(file, str(os.getpid()).encode())
            yield file
            os.ftruncate(file, 0)


@dataclass(frozen=True)
class HostFolder(RunFolder):
    own: Path
    versions: Path | None  # None: no component of this host has any

    @property
    def models(self) -> Path:
        return self.versions or super().models

    @property
    def serving(self) -> Path:
        return self.own / "serving"


def expand(path: str) -> Path:
    """A folder of a host's, here on that host."""
    return Path.home() / Path(path).expanduser()


def check_run_name(name: str) -> str:
    if not RUN_NAME.fullmatch(name):
        raise SettingsError(f"run '{name}': name it by letters, digits, _, . and - alone")
    return name


def read_as(kind: type[Kind], path: Path) -> Kind:
    """A JSON file that is written as a whole; `kind()` where there is none, or where it is damaged,
    of which is told."""
    try:
        return TypeAdapter(kind).validate_json(path.read_bytes(), strict=True)
    except FileNotFoundError:
        pass
    except ValidationError as error:
        log.warning("%s is damaged, and taken for empty: %s", path, error.errors()[0]["msg"])
    except OSError as error:
        log.warning("%s cannot be read, and is taken for empty: %s", path, error.strerror)
    return kind()


def write_tree(path: Path, tree: Tree) -> None:
    """As a whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(tree, indent=2, ensure_ascii=False) + "\n")
