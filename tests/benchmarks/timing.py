"""How the benchmarks measure and report: medians on one core, in turn, as a table and as JSON."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Rows = Sequence[Mapping[str, Any]]


def use_one_core() -> None:
    """Pins this process and keeps the libraries' thread pools at one. Before they are imported."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    for name in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
        os.environ[name] = "1"
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")


def first_call(function: Callable[[], Any]) -> float:
    """Seconds of the call that compiles."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def medians_in_turn(
    sides: Mapping[str, Callable[[], Any]], seconds: float = 1.5, repetitions: int = 7
) -> dict[str, float]:
    """Median seconds of each side; the sides take turns, so that all see the same machine."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    while any(len(t) < repetitions or sum(t) < seconds for t in times.values()):
        for name, function in sides.items():
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    return {name: float(np.median(t)) for name, t in times.items()}


def machine() -> dict[str, Any]:
    """What a figure was measured on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "load": os.getloadavg(),
        "python": platform.python_version(),
    }


def report(tables: Mapping[str, Rows], path: str | Path | None, **facts: Any) -> None:
    """Prints tables by title, and writes them with the machine to `path` as JSON."""
    print(json.dumps(machine() | facts))
    for title, rows in tables.items():
        show(title, rows)
    write(path, {"tables": tables}, **facts)


def show(title: str, rows: Rows) -> None:
    print(f"\n{title}:")
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [columns, *([_text(row.get(name, "")) for name in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    for line in cells:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))


def write(path: str | Path | None, result: Mapping[str, Any], **facts: Any) -> None:
    """Writes a result, with the machine, as JSON; nothing without a path."""
    if path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        whole = {"machine": machine() | facts, **result}
        Path(path).write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n")


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)
