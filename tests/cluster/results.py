"""The table of what was done to a cluster and what was seen; one row for each test."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

FOLDER = Path(os.environ.get("RESULTS", "runs/cluster-test"))
TITLES = ["#", "done", "seen", "outcome", "load"]

Row = dict[str, str]


class Results:
    """Rows by number; those of earlier tests on the same cluster stay until they are done again."""

    def __init__(self) -> None:
        self._path = FOLDER / "results.json"
        self._rows: dict[str, Row] = {}
        self.new: list[Row] = []
        if self._path.exists():
            self._rows = {row["#"]: row for row in json.loads(self._path.read_text())["rows"]}

    def add(self, number: str, done: str, seen: list[str], outcome: str) -> None:
        load = f"{os.getloadavg()[0]:.0f}" if hasattr(os, "getloadavg") else ""
        row = dict(zip(TITLES, [number, done, "; ".join(seen), outcome, load], strict=True))
        self._rows[number] = row
        self.new.append(row)

    def write(self, **facts: Any) -> None:
        rows = sorted(self._rows.values(), key=lambda row: _order(row["#"]))
        FOLDER.mkdir(parents=True, exist_ok=True)
        facts |= {"at": time.strftime("%Y-%m-%d %H:%M:%S %z")}
        text = json.dumps({"facts": facts, "rows": rows}, indent=2, ensure_ascii=False)
        self._path.write_text(text + "\n", encoding="utf-8")
        lines = [_line(TITLES), _line(["---"] * len(TITLES))]
        lines += [_line([row[title] for title in TITLES]) for row in rows]
        (FOLDER / "results.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _order(number: str) -> tuple[int, str]:
    """Words first, then numbers."""
    digits = number.split(",")[0].rstrip("abcdefgh")
    return (int(digits), number) if digits.isdigit() else (0, "")
