"""Folders of versions of a network: `<folder>/<N>/…`, as trainers and pullers write them and as
network servers look at them.

A version appears whole or not at all: it is written beside its place, under a name that is no
number, synced, then renamed. It is never changed, and goes the same way.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
import stat
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

log = logging.getLogger(__name__)

STAGING = ".tmp-"  # no number, so no server takes it for a version
ABANDONED_SECONDS = 3600.0  # where folders cannot be locked
PIECE_BYTES = 1 << 20  # of a file, in memory at a time


@dataclass(frozen=True)
class ModelFile:
    """A file of a version: where it lies in the version's folder, and what its content is."""

    path: str  # with slashes
    size: int
    sha256: bytes


@dataclass(frozen=True)
class ModelVersion:
    """A version, by number and content; files are in the order of their paths."""

    number: int
    files: tuple[ModelFile, ...]


def version_numbers(folder: Path) -> list[int]:
    """The versions in a folder, ascending."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    return sorted(int(name) for name in names if name.isascii() and name.isdigit())


def read_version(folder: Path, number: int) -> ModelVersion:
    """What version `number` of a folder holds; its links are left out."""
    top = folder / str(number)
    files = (_read_file(top, path) for path in sorted(_regular_files(top)))
    return ModelVersion(number, tuple(files))


def pieces(file: BinaryIO) -> Iterator[bytes]:
    """The rest of an open file, little by little."""
    while piece := file.read(PIECE_BYTES):
        yield piece


def remove_version(folder: Path, number: int) -> None:
    # renamed first, so that no server ever finds half of it
    doomed = folder / f"{STAGING}old-{number}-{uuid.uuid4().hex}"
    with contextlib.suppress(OSError):
        os.rename(folder / str(number), doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def remove_old_versions(folder: Path, keep: int) -> None:
    """Leaves the newest `keep` versions of a folder."""
    for number in version_numbers(folder)[:-keep]:
        remove_version(folder, number)


@contextlib.contextmanager
def staging_folder(folder: Path) -> Iterator[Path]:
    """A new folder to write a version in, locked while it lives; removed if not published."""
    staging = folder / f"{STAGING}{uuid.uuid4().hex}"
    staging.mkdir()
    descriptor = os.open(staging, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield staging
    finally:
        os.close(descriptor)
        shutil.rmtree(staging, ignore_errors=True)  # no longer there once published


def remove_abandoned(folder: Path) -> None:
    """Removes what was being written or removed by processes that were killed."""
    for staging in folder.glob(f"{STAGING}*"):
        if _is_abandoned(staging):
            log.info("removing %s, left by a process that did not end", staging)
            shutil.rmtree(staging, ignore_errors=True)


def sync_tree(folder: Path) -> None:
    for path, _, files in os.walk(folder):
        for name in files:
            sync(Path(path) / name)
        sync(Path(path))


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _regular_files(top: Path) -> Iterator[str]:
    """Paths below `top`, which is no link itself; raises `OSError` where it cannot be read."""
    if top.is_symlink():
        raise NotADirectoryError(f"{top} is a link")
    for folder, _, names in os.walk(top, onerror=_raise):
        for name in names:
            path = Path(folder) / name
            if stat.S_ISREG(path.lstat().st_mode):
                yield path.relative_to(top).as_posix()


def _read_file(top: Path, path: str) -> ModelFile:
    digest, size = hashlib.sha256(), 0
    with (top / path).open("rb", buffering=0) as file:
        for piece in pieces(file):
            digest.update(piece)
            size += len(piece)
    return ModelFile(path, size, digest.digest())


def _raise(error: OSError) -> None:
    raise error


def _is_abandoned(staging: Path) -> bool:
    try:
        descriptor = os.open(staging, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return time.time() - os.fstat(descriptor).st_mtime > ABANDONED_SECONDS
    finally:
        os.close(descriptor)
    return True
