"""Trains a game to its goal with several seeds, one run after the other, and reports every run.

    python tests/benchmarks/proof.py --game tictactoe --seeds 5 [--time-limit 15] [--json FILE]

The seconds are those of `result.json`: from the start of the processes to the goal.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from muprover.progress import describe_evaluation
from muprover.runfolder import machine


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--game", default="tictactoe")
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0, 1, … (default: %(default)s)")
    parser.add_argument("--time-limit", default="15", metavar="MINUTES", help="of each run")
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the run folders there")
    args = parser.parse_args()
    results = [run(args, seed) for seed in range(args.seeds)]
    report(args.game, results)
    if args.json:
        args.json.write_text(json.dumps({"machine": machine(), "runs": results}, indent=2) + "\n")
    return 0 if all(result["reached"] for result in results) else 1


def run(args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """One run's `result.json`."""
    parent = args.keep or Path(tempfile.mkdtemp(prefix="muprover-proof-"))
    folder = parent / f"{args.game}-seed-{seed}"
    command = [sys.executable, "-m", "muprover.cli", "run", "--game", args.game]
    command += ["--seed", str(seed), "--folder", str(folder), "--time-limit", args.time_limit]
    for setting in args.set:
        command += ["--set", setting]
    status = subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    result["status"] = status
    print(
        f"seed {seed}: {'reached' if result['reached'] else 'NOT reached'} after "
        f"{result['wall_clock_seconds']:.0f} s, {result['games']:,} games, "
        f"{result['steps']:,} steps; {describe_evaluation(result['evaluation'])}",
        flush=True,
    )
    if not args.keep:
        shutil.rmtree(parent)
    return result


def report(game: str, results: list[dict[str, Any]]) -> None:
    """All runs as a table in Markdown, and the machine."""
    seconds = [result["wall_clock_seconds"] for result in results]
    print("\n| seed | reached | seconds | games | training steps |\n|---|---|---|---|---|")
    for r in results:
        reached = "yes" if r["reached"] else "no"
        print(
            f"| {r['seed']} | {reached} | {r['wall_clock_seconds']:.0f} "
            f"| {r['games']:,} | {r['steps']:,} |"
        )
    reached = sum(result["reached"] for result in results)
    print(
        f"\n{game}: {reached} of {len(results)} runs reached the goal; seconds: median "
        f"{statistics.median(seconds):.0f}, least {min(seconds):.0f}, most {max(seconds):.0f}"
    )
    facts = machine()
    print(f"on {facts['cpu']}, {facts['cores']} cores, TensorFlow {facts['tensorflow']}")


if __name__ == "__main__":
    sys.exit(main())
