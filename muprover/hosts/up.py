"""`muprover up`: a run's components on their hosts, or once more on them."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from muprover.components import Layout
from muprover.config import SettingsError
from muprover.game import Game, load_game
from muprover.hosts.connection import Connections, Host, HostsError, Message
from muprover.hosts.down import stop
from muprover.hosts.locks import read_locks
from muprover.hosts.preflight import Findings, Plan, check_names, look_at_all
from muprover.hosts.record import Record, read_record
from muprover.launcher import RunOptions, prepare
from muprover.runfolder import RunFolder
from muprover.services.locks import Locks

Writer = Callable[[str], None]


@dataclass(frozen=True)
class UpOptions:
    """The command line of `muprover up`, but for what is in the plan."""

    source: str  # of the game
    settings_file: str | None
    overrides: tuple[str, ...]
    seed: int | None
    needs_goal: bool
    layout: Layout  # its number of agents is that of all hosts
    locks: Locks  # of what is started


def up(plan: Plan, options: UpOptions, write: Writer) -> Record:
    """Looks at all hosts, then starts everything; raises `HostsError` with all that is wrong."""
    source = options.source
    load_game(source, options.settings_file, options.overrides)  # wrong settings first
    locks = read_locks(options.locks)
    is_file = source.endswith(".py")
    text = Path(source).read_text(encoding="utf-8") if is_file else None
    with Connections(plan.hosts.names) as connections:
        write(f"looking at {', '.join(plan.hosts.names)}")
        findings = look_at_all(plan, connections, {"source": source, "text": text})
        if not findings.problems:
            findings.problems += check_names(plan, findings, options.locks)
        stored = _stored(plan, findings)
        files: dict[str, str] = {}
        game, seed = None, 0
        try:
            files, game, seed = _prepare(plan, options, stored, write)
        except SettingsError as error:
            findings.problems.append(str(error))
        if options.needs_goal and game is not None and not game.config.evaluation.goal:
            findings.problems.append("--wait needs a goal, and the settings have none")
        if findings.problems or game is None:
            raise HostsError("\n  ".join(["nothing was started:", *findings.problems]))
        if not plan.is_one_host and not options.locks.keeps_out:
            write(
                "anyone who reaches these hosts may use the servers of the run there: lock them "
                "with --tls or --token-file, or keep strangers off their network"
            )
        record = Record.of(plan, game, {h.name: h.python for h in connections.hosts})
        _end_the_left(record, write)
        record.save()
        _start(plan, options, connections, findings, {"files": files, "locks": locks}, seed, write)
    return record


def _end_the_left(record: Record, write: Writer) -> None:
    """Ends what other hosts did for the run, if they are no longer asked to."""
    before = read_record(record.run)
    if before is None or before.is_down:
        return
    if (before.dir, before.models) != (record.dir, record.models):
        raise HostsError(
            f"nothing was started: run {record.run} is up with -r {before.dir} -m {before.models}; "
            f"end it first (muprover down -n {record.run}), or choose another -n"
        )
    left = [host for host in before.components if host not in record.components]
    with Connections(left, before.pythons) as connections:
        _, wrong = connections.each(lambda host: stop(before, host))
    for host in left:
        problem = f"may still do its part in the run: {wrong[host]}" if host in wrong else "ended"
        write(f"{host}: {problem}")


def _stored(plan: Plan, findings: Findings) -> Message | None:
    """The run that is gone on with, as the trainer's host has it, or any other; None: a new one."""
    first = plan.hosts.line("trainer").host
    hosts = [first, *(name for name in plan.hosts.names if name != first)]
    runs = [findings.answers[name]["run"] for name in hosts if name in findings.answers]
    return next((run for run in runs if run), None)


def _prepare(
    plan: Plan, options: UpOptions, stored: Message | None, write: Writer
) -> tuple[dict[str, str], Game, int]:
    """The files that make the run, by name, its game and its seed.

    They are made here as `muprover run` makes them, from those of the run as it is stored.
    """
    with tempfile.TemporaryDirectory() as scratch, io.StringIO() as said:
        folder = RunFolder(Path(scratch) / plan.run)
        if stored:
            folder.path.mkdir()
            for name, text in stored["files"].items():
                (folder.path / name).write_text(text, encoding="utf-8")
        known = f"{plan.dir}/runs/{plan.run}"
        given = RunOptions(
            source=options.source,
            settings_file=options.settings_file,
            overrides=options.overrides,
            folder=folder.path,
            seed=options.seed,
        )
        try:
            with redirect_stdout(said):
                _, game, seed = prepare(given)
        except SettingsError as error:
            raise SettingsError(str(error).replace(str(folder.path), known)) from None
        for line in said.getvalue().splitlines():
            write(line.replace(str(folder.path), known))
        files = [path for path in sorted(folder.path.iterdir()) if path.is_file()]
        return {path.name: path.read_text(encoding="utf-8") for path in files}, game, seed


def _start(
    plan: Plan,
    options: UpOptions,
    connections: Connections,
    findings: Findings,
    brought: Message,
    seed: int,
    write: Writer,
) -> None:
    """Lets every host do its part; raises `HostsError` if one does not.

    brought: `files` of the run and its `locks`.
    """

    def ask(host: Host) -> Message:
        layout = vars(options.layout) | {"only": tuple(plan.hosts.components(host.name))}
        return host.ask(
            "start",
            {
                "place": vars(plan.place(host.name)),
                **brought,
                "layout": layout,
                "servers": plan.servers(host.name),
                "elsewhere": findings.addresses.get(host.name, {}),
                "listen": "localhost" if plan.is_one_host else "[::]",
                "seed": seed,
            },
        )

    answers, wrong = connections.each(ask)
    for host in plan.hosts.names:
        if host in answers:
            done = "goes on with" if answers[host]["was_running"] else "started"
            write(f"{host}: {done} {_listed(plan.hosts.components(host))}")
    if wrong:
        told = [f"{host}: {problem}" for host, problem in wrong.items()]
        raise HostsError(
            "\n  ".join(
                [
                    "not all was started (muprover up tries again, muprover down ends the rest):",
                    *told,
                ]
            )
        )


def _listed(components: list[str]) -> str:
    """`replay, 4 agents`."""
    agents = sum(name.startswith("agent-") for name in components)
    others = [name for name in components if not name.startswith("agent-")]
    many: list[Any] = [f"{agents} agent{'s' if agents > 1 else ''}"] if agents else []
    return ", ".join([*others, *many])
