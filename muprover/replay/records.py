"""Records in a file, each with its checksum: the format of the store, and of backups.

A record is a magic number, a length, a kind, the CRC-32 of length, kind and bytes (all
little-endian, of 32 bits), and the bytes.
"""

from __future__ import annotations

import logging
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

log = logging.getLogger(__name__)

GAME = 1  # a `GameHistory` message
COUNTERS = 2  # a `ReplayCounters` message
CONTRACT = 3  # a `ContractResponse` message, at the beginning of a backup

_MAGIC = b"MPRg"
_HEADER = struct.Struct("<4sIII")
_MAX_RECORD = 1 << 30


def encode(kind: int, data: bytes) -> bytes:
    """The record."""
    return _HEADER.pack(_MAGIC, len(data), kind, _checksum(len(data), kind, data)) + data


def read_records(stream: IO[bytes], path: Path, length: int) -> Iterator[tuple[int, bytes, int]]:
    """(kind, bytes, where it ends) of each sound record in the first `length` bytes; damage
    between them is reported."""
    at = 0
    while at < length:
        record = _read(stream, at)
        if record is None:
            begin, found = at, _resume(stream, at + 1)
            if found is None:
                return  # nothing sound follows: for the caller to judge
            at = found
            log.error("%s: bytes %d to %d are damaged; skipped", path, begin, at)
            continue
        kind, data = record
        at += _HEADER.size + len(data)
        yield kind, data, at


def _checksum(length: int, kind: int, data: bytes) -> int:
    return zlib.crc32(data, zlib.crc32(struct.pack("<II", length, kind)))


def _read(stream: IO[bytes], at: int) -> tuple[int, bytes] | None:
    """The record at `at`; None if there is none, or no sound one."""
    stream.seek(at)
    header = stream.read(_HEADER.size)
    if len(header) < _HEADER.size:
        return None
    magic, length, kind, checksum = _HEADER.unpack(header)
    if magic != _MAGIC or length > _MAX_RECORD:
        return None
    data = stream.read(length)
    if len(data) < length or _checksum(length, kind, data) != checksum:
        return None
    return kind, data


def _resume(stream: IO[bytes], at: int) -> int | None:
    """Where the next sound record begins."""
    stream.seek(at)
    rest = stream.read()  # a file is bounded, and damage is rare
    offset = rest.find(_MAGIC)
    while offset >= 0:
        if _read(stream, at + offset) is not None:
            return at + offset
        offset = rest.find(_MAGIC, offset + 1)
    return None
