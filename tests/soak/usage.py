"""What processes and folders hold, read from /proc."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

PAGE = os.sysconf("SC_PAGE_SIZE")
MB = 1 << 20


class Usage(NamedTuple):
    """Of one process, or of several together."""

    memory_mb: float  # resident
    anonymous_mb: float  # of this its own allocations; the rest are pages of files
    threads: int
    files: int  # descriptors


def usage(pid: int) -> Usage | None:
    """None for a process that has ended."""
    folder = Path(f"/proc/{pid}")
    try:
        _, resident, shared, *_ = map(int, (folder / "statm").read_text().split())
        threads = len(list((folder / "task").iterdir()))
        files = len(list((folder / "fd").iterdir()))
        return Usage(resident * PAGE / MB, (resident - shared) * PAGE / MB, threads, files)
    except OSError:
        return None


def disk_mb(folder: Path) -> float:
    """What the files below a folder take; those that vanish meanwhile do not count."""
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(path, name)).st_blocks * 512
            except OSError:
                continue
    return total / MB
