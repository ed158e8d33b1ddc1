"""`Puller`: keeps a folder of versions as a trainer elsewhere has it, for a network server here."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import BinaryIO

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge

from muprover.config import SettingsError
from muprover.modelfolder import (
    ModelFile,
    ModelVersion,
    pieces,
    read_version,
    remove_abandoned,
    remove_old_versions,
    remove_version,
    sync,
    sync_tree,
    version_numbers,
)
from muprover.services.client import ServiceError
from muprover.services.health import HealthPort
from muprover.services.models import RemoteModels
from muprover.services.server import start_metrics
from muprover.services.waiting import Patience, Stopped, stop_on_signals

log = logging.getLogger(__name__)

STAGING = ".pull"  # in the folder: what has arrived of the next version
LEAST_KEPT = 2  # versions: who searches in the last one can end


class DamagedError(RuntimeError):
    """Content that is not what it was said to be."""


class Puller:
    """Pulls the newest version, again and again, in a thread of its own.

    A version appears in the folder when all of its files have arrived and are what the trainer said
    they are. What has arrived of one stays, also over a restart, and is not asked for again. As
    many versions stay as the trainer keeps.
    """

    def __init__(
        self,
        address: str,
        folder: Path,
        registry: CollectorRegistry = REGISTRY,
        on_version: Callable[[], None] = lambda: None,
    ) -> None:
        self._models = RemoteModels(address)
        self._folder = folder
        self._staged = folder / STAGING / "version"  # files that are complete, in their places
        self._lock = _claim(folder)
        self._on_version = on_version
        self._same: dict[int, ModelVersion] = {}  # versions that are here as they are there
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pull", daemon=True)
        self._bytes = Counter("muprover_pull_bytes", "Fetched of versions.", registry=registry)
        self._failures = Counter(
            "muprover_pull_failures", "Attempts to pull that failed.", registry=registry
        )
        self._newest = Gauge(
            "muprover_pull_version", "The newest version pulled.", registry=registry
        )

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Ends in the middle of whatever arrives."""
        self._stop.set()
        self._models.close()
        if self._thread.is_alive():
            self._thread.join()
        os.close(self._lock)

    def update(self, versions: tuple[ModelVersion, ...]) -> None:
        """Makes the folder as the trainer's, which holds `versions`."""
        if not versions:  # a trainer that has only begun: what is here is better than nothing
            return
        newest = versions[-1]
        self._compare(versions)
        if newest.number not in self._same:
            self._pull(newest)
        self._newest.set(newest.number)
        self._on_version()
        for number in version_numbers(self._folder):
            if number > newest.number:
                log.warning("removing version %d: the trainer has begun anew", number)
                remove_version(self._folder, number)
        remove_old_versions(self._folder, max(LEAST_KEPT, len(versions)))

    def _run(self) -> None:
        known: list[int] = []
        reach, work = Patience(self._stop), Patience(self._stop)
        with suppress(Stopped):
            while not self._stop.is_set():
                try:
                    versions = self._models.watch(known)
                    reach.rewarded()
                except ServiceError as error:
                    self._fail(error, reach)
                    known = []
                    continue
                try:
                    self.update(versions)
                    work.rewarded()
                except (ServiceError, DamagedError, OSError) as error:
                    self._fail(error, work)
                    # what is damaged there will still be so: wait for another version
                    known = _numbers(versions) if isinstance(error, DamagedError) else []
                else:
                    known = _numbers(versions)

    def _fail(self, error: Exception, patience: Patience) -> None:
        """Says what went wrong, and pauses."""
        if self._stop.is_set():
            return
        self._failures.inc()
        if isinstance(error, OSError):
            error = OSError(f"nothing pulled into {self._folder}: {error.strerror or error}")
        patience.wait(error)

    def _compare(self, versions: tuple[ModelVersion, ...]) -> None:
        """Removes versions that are not what the trainer has by the same number."""
        here = version_numbers(self._folder)
        self._same = {number: v for number, v in self._same.items() if number in here}
        for version in versions:
            number = version.number
            if number not in here or self._same.get(number) == version:
                continue
            if read_version(self._folder, number) == version:
                self._same[number] = version
            else:
                log.warning("version %d is not the trainer's, or is damaged: removing it", number)
                remove_version(self._folder, number)
                self._same.pop(number, None)

    def _pull(self, version: ModelVersion) -> None:
        """Completes what has arrived of a version, and puts it in its place."""
        remove_abandoned(self._folder)
        self._tidy(version)
        for file in version.files:
            self._complete(file)
        sync_tree(self._staged)
        os.rename(self._staged, self._folder / str(version.number))
        sync(self._folder)
        self._same[version.number] = version
        log.info("pulled version %d", version.number)

    def _tidy(self, version: ModelVersion) -> None:
        """Removes what has arrived of other versions only."""
        self._staged.mkdir(parents=True, exist_ok=True)
        parts = {self._part(file) for file in version.files}
        for part in self._staged.parent.glob("*.part"):
            if part not in parts:
                part.unlink()
        places = {self._staged / file.path for file in version.files}
        for path in sorted(self._staged.rglob("*"), reverse=True):
            if path.is_dir():
                with suppress(OSError):
                    path.rmdir()  # if it is empty
            elif path not in places:
                path.unlink()

    def _complete(self, file: ModelFile) -> None:
        """Brings a file to its place in the version to be; does nothing if it is there."""
        place, part = self._staged / file.path, self._part(file)
        if _holds(place, file):
            return
        twin = self._twin(file)
        if twin is not None:
            shutil.copyfile(twin, part)
        with part.open("a+b", buffering=0) as arrived:
            digest = hashlib.sha256()
            arrived.seek(0)
            for piece in pieces(arrived):
                digest.update(piece)
            for piece in self._rest(file, arrived.tell()):
                _write(arrived, piece)
                digest.update(piece)
        if digest.digest() != file.sha256:
            part.unlink()
            self._same.clear()  # if it was a twin that is damaged, look again
            raise DamagedError(f"{file.path} is not what the trainer said")
        place.parent.mkdir(parents=True, exist_ok=True)
        os.replace(part, place)

    def _rest(self, file: ModelFile, offset: int) -> Iterator[bytes]:
        """What has not arrived of a file."""
        if offset >= file.size:
            return
        with closing(self._models.fetch(file, offset)) as fetched:
            for piece in fetched:
                offset += len(piece)
                if offset > file.size:
                    raise DamagedError(f"{file.path} is longer than the trainer said")
                self._bytes.inc(len(piece))
                yield piece

    def _twin(self, file: ModelFile) -> Path | None:
        """The same content in a version that is here: versions of a run share their graph."""
        for number, version in self._same.items():
            for other in version.files:
                if other.sha256 == file.sha256:
                    return self._folder / str(number) / other.path
        return None

    def _part(self, file: ModelFile) -> Path:
        """Where a file arrives; named after its content, so that it is never gone on with by
        another's."""
        return self._staged.parent / f"{file.sha256.hex()}.part"


def pull_until_stopped(
    address: str,
    folder: Path,
    metrics_port: int | None = None,
    health_port: int | None = None,
) -> None:
    """Pulls until SIGTERM or SIGINT; healthy once a version is there."""
    stop = stop_on_signals()
    start_metrics(metrics_port)
    health = HealthPort(health_port) if health_port is not None else None

    def on_version() -> None:
        if health:
            health.set_serving(True)

    puller = Puller(address, folder, on_version=on_version)
    puller.start()
    stop.wait()
    puller.close()
    if health:
        health.close()


def _claim(folder: Path) -> int:
    """Makes a folder that of one puller, and nobody else's; answers the descriptor of its lock."""
    staging = folder / STAGING
    if version_numbers(folder) and not staging.exists():
        raise SettingsError(
            f"{folder} has versions that were not pulled, perhaps a trainer's own; "
            "choose a folder for what is pulled, or empty this one"
        )
    try:
        staging.mkdir(parents=True, exist_ok=True)
        lock = os.open(staging, os.O_RDONLY)
    except OSError as error:
        raise SettingsError(f"cannot use folder {folder}: {error.strerror}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise SettingsError(f"another process pulls into {folder}; choose another") from None
    except OSError:
        log.warning("%s cannot be locked: let no other process pull into it", folder)
    return lock


def _holds(path: Path, file: ModelFile) -> bool:
    """Whether the content of `file` is at `path`."""
    try:
        with path.open("rb", buffering=0) as found:
            if os.fstat(found.fileno()).st_size != file.size:
                return False
            digest = hashlib.sha256()
            for piece in pieces(found):
                digest.update(piece)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return False
    return digest.digest() == file.sha256


def _write(file: BinaryIO, data: bytes) -> None:
    """All of it; what a full disk still takes stays, and is gone on from later."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def _numbers(versions: tuple[ModelVersion, ...]) -> list[int]:
    return [version.number for version in versions]
