"""Trains a game to its goal with several seeds, one run after the other, and reports every run.

    python tests/benchmarks/proof.py --game tictactoe --seeds 5 [--time-limit 15] [--json FILE]

The seconds are those of `result.json`: from the start of the processes to the goal.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

from muprover.progress import describe_evaluation
from muprover.runfolder import RunFolder, machine

INTERRUPTED = 130


def main() -> int:
    args = parse()
    folder = args.runs / f"proof-{Path(args.game).stem}-{datetime.now():%Y%m%d-%H%M%S}"
    file = args.json or folder.with_suffix(".json")
    signal.signal(signal.SIGINT, lambda *_: None)  # the run ends in order, and is reported
    results: list[dict[str, Any]] = []
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        results.append(run(args, folder / f"seed-{seed}", seed))
        print(in_words(results[-1]), flush=True)
        facts = {"game": args.game, "machine": machine(), "runs": results}
        file.write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        if results[-1]["status"] == INTERRUPTED:
            break
    print(report(args.game, results))
    print(f"\nall of it: {file}, {folder}")
    return 0 if all(result["reached"] for result in results) else 1


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--game", default="tictactoe")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--first-seed", type=int, default=0, metavar="S", help="(default: 0)")
    parser.add_argument("--time-limit", default="15", metavar="MINUTES", help="of each run")
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE")
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="D", help="for folders")
    parser.add_argument("--json", type=Path, metavar="F", help="for results (default: in --runs)")
    return parser.parse_args()


def run(args: argparse.Namespace, folder: Path, seed: int) -> dict[str, Any]:
    """One run's `result.json`, with its exit status; what it can tell, if it failed."""
    command = [sys.executable, "-m", "muprover.cli", "run", "--game", args.game]
    command += ["--seed", str(seed), "--folder", str(folder), "--time-limit", args.time_limit]
    for setting in args.set:
        command += ["--set", setting]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        status = process.wait()
    nothing = {
        "seed": seed,
        "reached": False,
        "ended_by": f"status {status}",
        "wall_clock_seconds": 0.0,
        "games": 0,
        "steps": 0,
        "evaluation": {},
    }
    return nothing | RunFolder(folder).read_result() | {"status": status}


def in_words(result: dict[str, Any]) -> str:
    verdict = "goal met" if result["reached"] else f"NOT met ({result['ended_by']})"
    return (
        f"seed {result['seed']}: {verdict} after {result['wall_clock_seconds']:.0f} s, "
        f"{result['games']:,} games, {result['steps']:,} training steps; "
        f"{describe_evaluation(result['evaluation'])}"
    )


def report(game: str, results: list[dict[str, Any]]) -> str:
    """All runs as a table in Markdown, and a line about them all, with the machine."""
    rows = ["", "| seed | goal met | seconds | games | training steps |", "|---|---|---|---|---|"]
    for result in results:
        met = "yes" if result["reached"] else f"no: {result['ended_by']}"
        rows.append(
            f"| {result['seed']} | {met} | {result['wall_clock_seconds']:.0f} "
            f"| {result['games']:,} | {result['steps']:,} |"
        )
    seconds = [result["wall_clock_seconds"] for result in results]
    met = sum(result["reached"] for result in results)
    facts = machine()
    rows += [
        "",
        f"{game}: {met} of {len(results)} runs met the goal; median "
        f"{statistics.median(seconds):.0f} s, least {min(seconds):.0f} s, most "
        f"{max(seconds):.0f} s; {facts['cores']} cores of {facts['cpu']}, "
        f"Python {facts['python']}, TensorFlow {facts['tensorflow']}",
    ]
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main())
