"""Thousands of exported versions, and one server that serves each: nothing may grow.

python tests/soak/versions.py --versions 3000
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

from network_servers import MODEL, network_server, tiny_exporter, until

from soak.usage import Usage, disk_mb, usage

KEEP = 5  # versions on the disk
SERVED_EVERY = 10  # at least one of so many is waited for
MOST_REMEMBERED = 110  # versions, by the server


class Count(NamedTuple):
    """How things stand after so many versions."""

    version: int
    usage: Usage  # of the process: exporter and server
    disk_mb: float
    statuses: int  # versions that the server remembers
    metrics: int  # lines of text


def run(folder: Path, versions: int, counts: int = 10) -> list[Count]:
    """Exports versions as fast as the server takes them up; counts now and then."""
    exporter = tiny_exporter(folder, keep=KEEP)
    exporter.export(1)
    counted = []
    with network_server(folder, num_versions=2, poll_seconds=0.01) as server:

        def served() -> int:
            newest = server.manager.get(MODEL)
            return newest.number

        for version in range(2, versions + 1):
            exporter.export(version)
            if version % SERVED_EVERY == 0:
                until(lambda version=version: served() >= version)  # type: ignore[misc]
            if version % max(1, versions // counts) == 0:
                now = usage(os.getpid())
                assert now is not None
                text = server.metrics.render().count(b"\n")
                statuses = len(server.manager.statuses(MODEL))
                counted.append(Count(version, now, disk_mb(folder), statuses, text))
    return counted


def growth(counted: list[Count]) -> list[str]:
    """What has grown between the first and the last count."""
    early, late = counted[0], counted[-1]
    most = {
        "memory": (late.usage.memory_mb, 1.05 * early.usage.memory_mb),
        "threads": (late.usage.threads, early.usage.threads + 2),
        "files": (late.usage.files, early.usage.files + 2),
        "disk": (late.disk_mb, 1.1 * early.disk_mb),
        "versions remembered": (late.statuses, MOST_REMEMBERED),
        "lines of metrics": (late.metrics, early.metrics),
    }
    return [
        f"{what}: {now:g}, at most {at_most:g}"
        for what, (now, at_most) in most.items()
        if now > at_most
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--versions", type=int, default=3000)
    args = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        counted = run(Path(folder), args.versions)
    print("| versions | memory | threads | files | disk | remembered | lines of metrics |")
    print("|---|---|---|---|---|---|---|")
    for c in counted:
        print(
            f"| {c.version:,} | {c.usage.memory_mb:.1f} MB | {c.usage.threads} | {c.usage.files} | "
            f"{c.disk_mb:.2f} MB | {c.statuses} | {c.metrics} |"
        )
    print(f"{args.versions:,} versions in {time.monotonic() - began:.0f} s")
    for what in (grown := growth(counted)):
        print(f"has grown: {what}")
    return 1 if grown else 0


if __name__ == "__main__":
    sys.exit(main())
