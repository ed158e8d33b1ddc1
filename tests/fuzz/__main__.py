"""Feeds garbage to every RPC, REST endpoint and file, and counts what was taken without harm.

    make fuzz                                        a million messages, and a table
    python tests/fuzz --runs 20000 --only replay.Add,file.store
    python tests/fuzz --engine plain                 without atheris: mutations of what is known

    make fuzz ARGS="--keep 8"                        keep some of what covers more in the corpus

Each target has a process, whose memory is compared between its first tenth and its end. What does
harm stays in the folder that is named then; put it into tests/fuzz/corpus/TARGET/ to keep it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from fuzz import plain, sockets, targets

SOCKET_SHARE = 0.03  # of all messages, over real connections
LEAST_RUNS = 100
LARGEST_KEPT = 2048  # bytes
SHARED_MEMORY = "/dev/shm"  # where no message waits for a disk


def main() -> int:
    args = parse()
    in_memory = SHARED_MEMORY if os.access(SHARED_MEMORY, os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="fuzz-", dir=in_memory))
    known = targets.load()
    names = [name for name in args.only.split(",") if name] or list(known)
    if unknown := sorted(set(names) - set(known)):
        sys.exit(f"no target {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    chosen = [known[name] for name in names]
    total = sum(target.share for target in chosen)
    began = time.monotonic()

    def one(target: Any) -> dict[str, Any]:
        runs = max(LEAST_RUNS, int(args.runs * target.share / total))
        row = fuzz(target.name, runs, args, folder)
        keep_interesting(folder_of(target.name, folder), target.name, args.keep)
        print(in_words(row), flush=True)
        return row

    with ThreadPoolExecutor(args.jobs) as jobs:
        rows = list(jobs.map(one, chosen))
    if not args.only:
        rows += sockets.fuzz(int(args.runs * SOCKET_SHARE), args.seed, folder)
    show(rows, time.monotonic() - began)
    harm = [row["target"] for row in rows if row["harm"]]
    if harm:
        print(f"\nharm was done to {', '.join(harm)}; logs and what did it: {folder}")
    return 1 if harm else 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--runs", type=int, default=1_000_000, help="messages in all (default: %(default)s)")
    add("--only", default="", help="names of targets")
    add("--engine", choices=["atheris", "plain"], default="atheris")
    add("--jobs", type=int, default=os.cpu_count() or 1)
    add("--seed", type=int, default=1)
    add("--keep", type=int, default=0, help="of each target's new data, in the corpus")
    add("--hang", type=int, default=120, help="s that one message may take (default: %(default)s)")
    return parser.parse_args()


def fuzz(name: str, runs: int, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One target in a process of its own."""
    path = folder_of(name, folder)
    path.mkdir()
    command = [sys.executable, str(Path(__file__).with_name("process.py")), name, str(runs)]
    command += [str(path), args.engine, str(args.seed), str(args.hang)]
    with (path / "log").open("wb") as log:
        status = subprocess.call(command, stdout=log, stderr=log, cwd=path)
    file = path / "result.json"
    row = json.loads(file.read_text()) if file.exists() else {"messages": 0, "seconds": 0.0}
    tail = (path / "log").read_text(errors="replace")[-1500:]
    row |= {"target": name, "harm": "" if not status and row.get("done") else tail}
    return row


def folder_of(name: str, folder: Path) -> Path:
    return folder / name.replace("/", "-")


def keep_interesting(path: Path, name: str, most: int) -> None:
    """Copies what libFuzzer has found to cover more, the smallest of it, into the corpus."""
    corpus = plain.CORPUS / name
    found = [p for p in (path / "corpus").glob("*") if len(p.name) == 40]  # by its SHA-1
    small = sorted((p for p in found if p.stat().st_size <= LARGEST_KEPT), key=size_and_name)
    for unit in small[:most]:
        corpus.mkdir(parents=True, exist_ok=True)
        shutil.copy(unit, corpus / unit.name[:12])


def size_and_name(path: Path) -> tuple[int, str]:
    return path.stat().st_size, path.name


def in_words(row: dict[str, Any]) -> str:
    verdict = f"HARM:\n{row['harm']}" if row["harm"] else "ok"
    return f"{row['target']:34} {row['messages']:9,} messages, {row['seconds']:6.0f} s: {verdict}"


def show(rows: list[dict[str, Any]], seconds: float) -> None:
    print("\n| target | messages | a second | slowest | memory | of it since the first tenth | |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['target']} | {row['messages']:,} | "
            f"{row['messages'] / max(row['seconds'], 1e-9):,.0f} | {row.get('slowest', 0):.2f} s | "
            f"{row.get('mb', 0):.0f} MB | {row.get('growth_mb', 0):+.1f} MB | "
            f"{'HARM' if row['harm'] else 'ok'} |"
        )
    total = sum(row["messages"] for row in rows)
    print(f"| all | {total:,} | {total / seconds:,.0f} | | | | {seconds:.0f} s |")


if __name__ == "__main__":
    sys.exit(main())
