"""Lets things happen to a run, and accounts for what came of it.

    make chaos ARGS="--minutes 10 --interval 30 --faults kill"
    python tests/chaos [--minutes 2] [--faults kill,stop,link,disk,tear,model,checkpoint,clock]
    python tests/chaos --cluster [--release R]       pods of a release, on the cluster of KUBECONFIG

Its exit status is 0 if nothing was lost or doubled, all went on at full speed after each fault, and
the proof was reached. As root on Linux it runs in a network and a mount namespace of its own, so
that links can be cut and a small disk be filled without harm to the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

from chaos import cluster
from chaos.faults import FAULTS, Clock, Fault, Scene, preloads
from chaos.ledger import Ledger, acknowledged, backed_up
from chaos.watch import Recovery, Run
from muprover.launcher import Status
from muprover.runfolder import RunFolder

WARM_SECONDS = 20.0  # at full speed, before the first fault


class Event(NamedTuple):
    """A fault, and how the run took it."""

    seconds: float  # since the first
    fault: str
    what: str
    recovery: Recovery


def main() -> int:
    if "--cluster" in sys.argv:
        return cluster.main()
    args = parse()
    enter_namespaces(args)
    rng = random.Random(args.seed)
    print(f"chaos: seed {args.seed}, run folder {args.folder}", flush=True)
    run, scene = start(args, rng)
    try:
        events = let_happen(args, scene)
        report = balance(args, scene, events)
    finally:
        status = run.end()
    report["exit_status"] = status
    show(events, report)
    path = args.folder.with_suffix(".json")
    path.write_text(json.dumps({"events": [e._asdict() for e in events], **report}, indent=1))
    if args.folder.is_mount():  # it goes with this process
        shutil.copytree(args.folder / "logs", args.folder.with_suffix(".logs"))
    print(f"\nall of it: {path}; what the run printed: {run.output}")
    wrong = list(problems(events, report, not args.no_proof))
    for problem in wrong:
        print(f"not as it should be: {problem}")
    return 1 if wrong else 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--game", default="tictactoe")
    add("--minutes", type=float, default=10.0, help="of faults (default: %(default)g)")
    add("--interval", type=float, default=30.0, help="s between two (default: %(default)g)")
    add("--faults", default=",".join(FAULTS), help="(default: %(default)s)")
    add("--pause", type=float, default=10.0, help="s that faults last which end")
    add("--only", default="", help="what `kill` and `link` pick from (default: all)")
    add("--agents", default="1")
    add("--standby", action="store_true", help="of trainer and network server")
    add("--share", type=float, default=0.7, help="of the speed before, that is full speed")
    add("--disk", default="400m", help="size of the disk (default: %(default)s)")
    add("--wait", type=float, default=60.0, help="s that a recovery may take (default: 60)")
    add("--patience", type=float, default=600.0, help="s that the start may take (default: 600)")
    add("--no-proof", action="store_true", help="is asked for: the time is too short for it")
    add("--seed", type=int, default=0)
    add("--set", action="append", default=[], metavar="PATH=VALUE")
    add("--folder", type=Path)
    args = parser.parse_args()
    name = f"chaos-{datetime.now():%Y%m%d-%H%M%S}"
    args.folder = (args.folder or Path("runs") / name).resolve()
    unknown = set(args.faults.split(",")) - set(FAULTS)
    if unknown:
        parser.error(f"no fault {', '.join(unknown)}; there are {', '.join(FAULTS)}")
    return args


NAMES = ("net", "mnt")


def enter_namespaces(args: argparse.Namespace) -> None:
    """Runs this again in a network and a mount namespace of its own, if that is allowed."""
    if "CHAOS_OUTER_NET" in os.environ:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        if "disk" in args.faults.split(","):
            args.folder.mkdir(parents=True, exist_ok=True)
            size = f"size={args.disk}"
            subprocess.run(["mount", "-t", "tmpfs", "-o", size, "chaos", args.folder], check=True)
        return
    outer = {f"CHAOS_OUTER_{kind.upper()}": os.readlink(f"/proc/self/ns/{kind}") for kind in NAMES}
    os.environ |= outer
    if not subprocess.run(["unshare", "-nm", "true"], stderr=subprocess.DEVNULL).returncode:
        words = [sys.executable, *sys.argv, "--folder", str(args.folder)]
        os.execvp("unshare", ["unshare", "-nm", *words])
    print("no namespaces: links are not cut, no disk is filled", flush=True)


def start(args: argparse.Namespace, rng: random.Random) -> tuple[Run, Scene]:
    """A run at full speed."""
    options = ["--game", args.game, "--time-limit", "1000", "--agents", args.agents]
    options += ["--log-level", "debug"]  # agents say then what was acknowledged
    options += ["--standby"] * args.standby
    never_ends = ["evaluation.goal.consecutive=1000000", "replay.max_size=10000000"]
    for setting in [*never_ends, *args.set]:
        options += ["--set", setting]
    environment, clock = {}, None
    if "clock" in args.faults.split(",") and not Clock.why_not():
        args.folder.parent.mkdir(parents=True, exist_ok=True)
        clock = args.folder.with_suffix(".clock")
        clock.write_text("+0\n")
        environment = {
            "LD_PRELOAD": preloads(args.folder.parent),
            "FAKETIME_TIMESTAMP_FILE": str(clock),
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
    run = Run(args.folder, options, environment)
    only = tuple(args.only.split(",")) if args.only else ()
    scene = Scene(run, Ledger(run.folder), rng, args.pause, clock, only)
    run.wait_for(run.all_answer, args.patience, "all components answer")
    run.wait_for(lambda: run.count("steps") > 50, args.patience, "training has begun")
    time.sleep(WARM_SECONDS)
    return run, scene


def let_happen(args: argparse.Namespace, scene: Scene) -> list[Event]:
    """One fault after the other, each kind as often as the others."""
    kinds = possible(args.faults.split(","))
    run, events, began = scene.run, [], time.monotonic()
    deck: list[str] = []
    while time.monotonic() < began + 60 * args.minutes:
        if not deck:
            deck = scene.rng.sample(kinds, len(kinds))
        name = deck.pop()
        started = time.monotonic()
        fault = FAULTS[name](scene)
        event = suffer(name, fault, scene, args, began)
        events.append(event)
        print(in_words(event), flush=True)
        if run.launcher.poll() is not None:
            print("the run has ended; no more faults", flush=True)
            break
        time.sleep(max(0.0, started + args.interval - time.monotonic()))
    return events


def possible(names: list[str]) -> list[str]:
    kinds = []
    for name in names:
        if reason := FAULTS[name].why_not():
            print(f"not possible here: {name}: {reason}", flush=True)
        else:
            kinds.append(name)
    return kinds


def suffer(name: str, fault: Fault, scene: Scene, args: argparse.Namespace, began: float) -> Event:
    run = scene.run
    before = run.speed_before(time.monotonic())
    at = since = time.monotonic()
    what = fault.begin()
    if fault.lasts:
        what += f", {args.pause:g} s"
        time.sleep(args.pause)
        fault.end()
        since = time.monotonic() if not isinstance(fault, Clock) else at
    until = max(since + args.wait, at + args.interval)
    return Event(at - began, name, what, run.await_recovery(since, before, args.share, until))


def balance(args: argparse.Namespace, scene: Scene, events: list[Event]) -> dict[str, Any]:
    """What is to be found at the end, and what is."""
    replay = scene.run.process("replay")
    if replay is None:
        scene.run.wait_for(lambda: scene.run.process("replay") is not None, 60, "replay is back")
        replay = scene.run.process("replay")
    assert replay is not None
    known = acknowledged(scene.run.folder)  # first: more are played meanwhile
    games = scene.ledger.balance(known, backed_up(f"localhost:{replay.option('--port')}"))
    return {
        "games": games,
        "trainer_resumed_at": scene.ledger.resumed_steps(),
        "trainer_had_saved": [death.least_step for death in scene.ledger.deaths],
        "trainer_went_back_too_far": scene.ledger.went_back(),
        "steps": scene.run.count("steps"),
        "proof_at_step": proof(scene.run.folder),
        "faults": len(events),
        "load": os.getloadavg(),
    }


def proof(folder: RunFolder) -> int | None:
    """The training step at which the game's goal was met twice in a row; None: it never was."""
    lines = [json.loads(line) for line in folder.evaluations.read_text().splitlines()]
    for one, two in pairwise(lines):
        if one.get("in_a_row", 0) >= 1 and two.get("in_a_row", 0) >= 2:
            return int(two["training_step"])
    return None


def in_words(event: Event) -> str:
    again, full, share = event.recovery
    return (
        f"[{event.seconds:5.0f} s] {event.fault:10} {event.what:44} goes on after {_s(again)}, "
        f"at full speed after {_s(full)} (best {share:.0%})"
    )


def _s(seconds: float | None) -> str:
    return "   —  " if seconds is None else f"{seconds:5.1f} s"


def show(events: list[Event], report: dict[str, Any]) -> None:
    print("\n| fault | times | goes on, median | most | full speed, median | most | never |")
    print("|---|---|---|---|---|---|---|")
    for name in dict.fromkeys(row(e) for e in events):
        some = [e.recovery for e in events if row(e) == name]
        again = sorted(r.again for r in some if r.again is not None)
        full = sorted(r.full for r in some if r.full is not None)
        never = sum(r.full is None for r in some)
        cells = [
            f"{values[len(values) // 2]:.1f} s | {values[-1]:.1f} s" if values else "— | —"
            for values in (again, full)
        ]
        print(f"| {name} | {len(some)} | {cells[0]} | {cells[1]} | {never} |")
    print("\n| account | |\n|---|---|")
    for name, value in report.pop("games").items():
        report[f"games {name}"] = value
    for name, value in report.items():
        print(f"| {name.replace('_', ' ')} | {value} |")


def row(event: Event) -> str:
    """Kills and cuts are told apart by whom they hit."""
    whom = event.what.partition(",")[0]
    return f"{event.fault} {whom}" if event.fault in ("kill", "link") else event.fault


def problems(events: list[Event], report: dict[str, Any], needs_proof: bool) -> Iterator[str]:
    """What is not as it should be."""
    if not events:
        yield "no fault has happened"
    for event in events:
        if event.recovery.full is None:
            yield f"never at full speed again: {in_words(event)}"
    for name in ("games lost", "games doubled"):
        if report[name]:
            yield f"{name}: {report[name]}"
    if report["trainer_went_back_too_far"]:
        yield f"resumed at, but had saved: {report['trainer_went_back_too_far']}"
    if needs_proof and report["proof_at_step"] is None:
        yield "the goal was not proven"
    if report["exit_status"] != Status.INTERRUPTED:
        yield f"the run ended with {report['exit_status']}, not {Status.INTERRUPTED.value}"


if __name__ == "__main__":
    sys.exit(main())
