"""Games on disk: an append-only log of records in a few files.

What `append` has returned from is on the disk; a crash in mid-write leaves a torn tail, which the
next start cuts off, and a record that has gone bad is reported and skipped. Games are forgotten in
the order in which they came: a file whose games are all forgotten is deleted, so the disk holds
the window and at most one file more.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO

from muprover.config import SettingsError
from muprover.replay.records import GAME, encode, read_records

log = logging.getLogger(__name__)

_SMALLEST_FILE = 1 << 20  # bytes, before another one is begun
_LARGEST_FILE = 64 << 20
_RECORDS_AT_ONCE = 256  # that are loaded
_FORMAT = "1"


Record = tuple[int, bytes]  # a kind of `records`, and what is kept


class StoreError(SettingsError):
    """A folder that cannot be used as this store."""


class DiskError(OSError):
    """Nothing was kept: the disk refused it. Later appends may succeed."""


@dataclass
class _File:
    path: Path
    size: int = 0  # bytes of whole records
    games: int = 0  # not yet forgotten


class Store:
    """The log in a folder, which one process at a time may open."""

    def __init__(self, folder: Path, contract: dict[str, str]) -> None:
        self._folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = _lock(folder)
        except OSError as error:
            raise StoreError(f"cannot use replay store {folder}: {error.strerror}") from None
        try:
            _check_identity(folder, contract)
            self._files = deque(_File(path) for path in sorted(folder.glob("games-*.log")))
        except BaseException:
            self._lock.close()
            raise
        self._log: IO[bytes] | None = None  # the newest file, open for appending

    @property
    def nbytes(self) -> int:
        """Of disk."""
        return sum(file.size for file in list(self._files))  # others append meanwhile

    def load(self, keep: Callable[[Sequence[Record]], int]) -> None:
        """Calls `keep` with some (kind, bytes) records after the other, oldest first; it answers
        how many to count as games. To be called once, before anything is appended."""
        try:
            for file in self._files:
                self._load(file, keep)
            self._delete_forgotten()
        except OSError as error:
            raise StoreError(f"cannot read replay store {self._folder}: {error}") from None

    def append(self, records: Sequence[Record]) -> None:
        """Keeps (kind, bytes) records, all or none; they are on the disk when this returns.

        Raises `DiskError`, and then keeps none.
        """
        data = b"".join(encode(kind, payload) for kind, payload in records)
        try:
            file, log_file = self._newest()
            try:
                _write_all(log_file, data)
                os.fdatasync(log_file.fileno())
            except OSError:
                self._take_back(file)
                raise
        except OSError as error:
            raise DiskError(error.errno, _explain(error, self._folder)) from None
        file.size += len(data)
        file.games += sum(kind == GAME for kind, _ in records)

    def forget(self, count: int) -> None:
        """Drops the `count` oldest games."""
        for file in self._files:
            dropped = min(count, file.games)
            file.games -= dropped
            count -= dropped
        self._delete_forgotten()

    def games(self) -> Iterator[bytes]:
        """The games on the disk now, oldest first, some forgotten ones included; may be iterated
        in another thread while others append and forget."""
        return _games([(file.path, file.size) for file in list(self._files)])

    def close(self) -> None:
        if self._log is not None:
            self._log.close()
        self._lock.close()

    def _load(self, file: _File, keep: Callable[[Sequence[Record]], int]) -> None:
        length = file.path.stat().st_size
        with file.path.open("rb") as stream:
            records = read_records(stream, file.path, length)
            while some := list(islice(records, _RECORDS_AT_ONCE)):
                file.games += keep([(kind, data) for kind, data, _ in some])
                file.size = some[-1][2]
        excess = length - file.size
        if excess and file is self._files[-1]:
            log.warning("%s: cut %d bytes of an unfinished write", file.path, excess)
            os.truncate(file.path, file.size)
        elif excess:
            log.error("%s: the last %d bytes are damaged; skipped", file.path, excess)
            file.size = length

    def _newest(self) -> tuple[_File, IO[bytes]]:
        """The file to append to: another one once the newest is large for what is stored."""
        limit = min(_LARGEST_FILE, max(_SMALLEST_FILE, self.nbytes // 8))
        if self._log is None and self._files:
            self._log = self._files[-1].path.open("r+b", buffering=0)
            self._log.seek(self._files[-1].size)
        if self._log is None or self._files[-1].size >= limit:
            self._begin_file()
        assert self._log is not None
        return self._files[-1], self._log

    def _begin_file(self) -> None:
        number = int(self._files[-1].path.stem.split("-")[1]) + 1 if self._files else 1
        path = self._folder / f"games-{number:08d}.log"
        new = path.open("xb", buffering=0)
        _sync_folder(self._folder)
        if self._log is not None:
            self._log.close()
        self._log = new
        self._files.append(_File(path))
        self._delete_forgotten()

    def _take_back(self, file: _File) -> None:
        """Removes what a failed append has left. If that fails too, it is a torn record, which
        the next append overwrites or the next start cuts off."""
        assert self._log is not None
        with contextlib.suppress(OSError):
            os.ftruncate(self._log.fileno(), file.size)
        with contextlib.suppress(OSError):
            self._log.close()
        self._log = None

    def _delete_forgotten(self) -> None:
        while len(self._files) > 1 and not self._files[0].games:
            self._files[0].path.unlink(missing_ok=True)
            self._files.popleft()


def _games(files: Sequence[tuple[Path, int]]) -> Iterator[bytes]:
    for path, length in files:
        with contextlib.suppress(FileNotFoundError), path.open("rb") as stream:
            yield from (
                data for kind, data, _ in read_records(stream, path, length) if kind == GAME
            )


def _write_all(file: IO[bytes], data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def _lock(folder: Path) -> IO[str]:
    file = (folder / "lock").open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise
        raise StoreError(
            f"replay store {folder} is open in another process; give each server its own --logdir"
        ) from None
    return file


def _check_identity(folder: Path, contract: dict[str, str]) -> None:
    """Refuses a store of another contract or format; marks a new one with this one's."""
    path = folder / "store.json"
    identity = {"format": _FORMAT, **contract}
    try:
        if not path.exists():
            _write_durably(path, json.dumps(identity, indent=2))
        stored = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(stored, dict) or "format" not in stored:
            raise ValueError("it names no format")
    except OSError as error:
        raise StoreError(f"cannot use replay store {folder}: {error.strerror}") from None
    except (TypeError, ValueError) as error:
        raise StoreError(f"{path} is damaged: {error}") from None
    different = [
        f"{name} is {stored[name]} there, {value} here"
        for name, value in identity.items()
        if name in stored and stored[name] != value
    ]
    if different:
        raise StoreError(
            f"replay store {folder} is of another experiment: {'; '.join(different)}; "
            "choose another --logdir"
        )


def _write_durably(path: Path, text: str) -> None:
    aside = path.with_suffix(".tmp")
    with aside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    aside.rename(path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _explain(error: OSError, folder: Path) -> str:
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    what = "its disk is full" if error.errno in full else "its disk failed"
    return f"replay store {folder}: {what} ({error.strerror}); nothing of this was kept"
