"""The commands for several hosts without Kubernetes: up, status, logs, down."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from muprover.commands.options import CommandBuilder, count, natural, port, positive
from muprover.config import SettingsError

HOSTS_FILE = Path("hosts.config")
MODEL_PORT = 50004


def add_up(commands: Any) -> None:
    command = CommandBuilder(
        commands,
        "up",
        up,
        "train a game on several hosts, reached by ssh",
        "Starts a run's components on the hosts that a file names, line by line `service "
        "host:number`:\nports of environment, replay and network, the least number of games of the "
        "trainer, how many agents.\nAll hosts are looked at first, and all that is wrong is said "
        "at once. What is started stays when the\nterminal goes, and is started again when it "
        "crashes. The same command goes on with a run that has ended.",
        usage="muprover up -g G -c hosts.config -r DIR -m MODELS -n RUN [options]\n"
        "       muprover up --example [-c FILE]",
    )
    command.game("-g", required=False).group("hosts and folders")
    add = command.add
    add(
        "-c",
        "--hosts",
        type=Path,
        default=HOSTS_FILE,
        metavar="FILE",
        help="which host does what (default: %(default)s)",
    )
    add("--example", action="store_true", help="write a sample of that file, and nothing else")
    add(
        "-r",
        "--dir",
        metavar="DIR",
        help="MuProver's folder on each host, below the home folder unless it begins with /: the "
        "run lies in DIR/runs/RUN; Python is that of DIR/.venv or DIR/venv, if there is one",
    )
    add(
        "-m",
        "--models",
        metavar="MODELS",
        help="folder of all runs' models there, likewise (default: DIR/models)",
    )
    add("-n", "--name", metavar="RUN", help="of the run (default: the game's name)")
    add("--python", metavar="PATH", help="Python with MuProver, on each host")
    add(
        "--model-port",
        type=port,
        default=MODEL_PORT,
        metavar="P",
        help="where the trainer gives its versions to a network server on another host "
        "(default: %(default)s)",
    )
    command.group("run")
    add = command.add
    add("--seed", type=natural, metavar="S", help="(default: 0, or that of the run)")
    add(
        "--num-games",
        type=count,
        metavar="N",
        help="that each agent plays at once (default: self_play.games_per_agent)",
    )
    add("--threads", type=count, metavar="N", help="of TensorFlow in trainer and network, each")
    add("--wait", action="store_true", help="show how it goes until the goal is met, then end all")
    add("--time-limit", type=positive, metavar="MINUTES", help="of --wait (default: none)")
    command.operation(metrics=False)
    command.examples(
        "muprover up --example",
        "muprover up -g tictactoe -c hosts.config -r muprover -m muprover/models -n first",
        "muprover status",
        "muprover logs -f",
        "muprover down",
    )


def up(args: argparse.Namespace) -> int:
    from muprover.hosts.hostsfile import read_hosts, write_example

    if args.example:
        write_example(args.hosts)
        print(f"{args.hosts} is written: change its lines to your hosts")
        return 0
    if args.game is None or args.dir is None:
        raise SettingsError("muprover up needs -g G and -r DIR (see muprover up --help)")
    if args.time_limit is not None and not args.wait:
        raise SettingsError(
            "--time-limit is of --wait, which ends the run; without it the run goes on until "
            "`muprover down`: give both, or neither"
        )
    from muprover.components import Layout
    from muprover.game import load_game
    from muprover.hosts.place import check_run_name
    from muprover.hosts.preflight import Plan
    from muprover.hosts.status import wait
    from muprover.hosts.up import UpOptions
    from muprover.hosts.up import up as start
    from muprover.services.locks import in_use

    hosts = read_hosts(args.hosts)
    game = load_game(args.game)
    if args.wait and not hosts.has("evaluator"):
        raise SettingsError(f"--wait needs a line for the evaluator in {args.hosts}")
    plan = Plan(
        hosts=hosts,
        run=check_run_name(args.name or game.name),
        dir=args.dir,
        models=args.models or f"{args.dir}/models",
        model_port=args.model_port,
        python=args.python,
    )
    layout = Layout(
        agents=hosts.agents,
        games_per_agent=args.num_games,
        min_games=hosts.line("trainer").number,
        threads=args.threads,
        log_level=args.log_level,
        log_format=args.log_format,
    )
    options = UpOptions(
        source=args.game,
        settings_file=args.config,
        overrides=tuple(args.set),
        seed=args.seed,
        needs_goal=args.wait,
        layout=layout,
        locks=in_use(),
    )
    record = start(plan, options, print)
    if args.wait:
        return 0 if wait(record, args.time_limit) else 1
    shown = [f"--tls {args.tls}"] * bool(args.tls)
    shown += [f"--token-file {args.token_file}"] * bool(args.token_file)
    play = record.play_there() or " ".join(
        [f"muprover play --game {args.game} --network {record.network}", *shown]
    )
    print(
        f"run {record.run} is up, goal {record.goal or 'none'}; all of it stays when you leave\n"
        f"  muprover status, muprover logs -f, muprover down\n"
        f"  {play}"
    )
    return 0


def _run_name(command: CommandBuilder) -> None:
    command.add(
        "-n", "--name", metavar="RUN", help="(default: the one that was started last from here)"
    )


def add_status(commands: Any) -> None:
    command = CommandBuilder(
        commands,
        "status",
        status,
        "show what runs on which host, and how training goes (after `muprover up`)",
        "Asks all hosts of a run.\n\nExit status: 0 if all that should run does, 1 if not.",
    )
    _run_name(command)
    command.add(
        "--seconds",
        type=positive,
        default=2.0,
        metavar="S",
        help="between the two looks, over which speeds are measured (default: %(default)g)",
    )
    command.add("--json", action="store_true", help="answer in JSON")


def status(args: argparse.Namespace) -> int:
    from muprover.hosts.record import find
    from muprover.hosts.status import describe
    from muprover.hosts.status import status as read

    found = read(find(args.name), args.seconds)
    print(json.dumps(found.to_json(), indent=2) if args.json else describe(found))
    return 0 if found.all_run else 1


def add_logs(commands: Any) -> None:
    command = CommandBuilder(
        commands, "logs", logs, "print what a run's components write (after `muprover up`)"
    )
    command.add(
        "component",
        nargs="?",
        metavar="COMPONENT",
        help="one kind (agent) or name (agent-2, supervisor) of them (default: all)",
    )
    _run_name(command)
    command.add("-f", "--follow", action="store_true", help="go on until Ctrl-C")
    command.add(
        "--tail", type=natural, default=20, metavar="N", help="lines of each (default: %(default)s)"
    )


def logs(args: argparse.Namespace) -> int:
    from muprover.hosts.logs import follow_logs, print_logs
    from muprover.hosts.record import find

    def write(line: str) -> None:
        print(line, flush=args.follow)

    (follow_logs if args.follow else print_logs)(find(args.name), args.component, args.tail, write)
    return 0


def add_down(commands: Any) -> None:
    command = CommandBuilder(
        commands,
        "down",
        down,
        "end a run on all of its hosts, in order (after `muprover up`)",
        "Ends agents, evaluator, trainer and servers, in this order. What the run has stays on its "
        "hosts;\nthe same `muprover up` goes on with it.",
    )
    _run_name(command)


def down(args: argparse.Namespace) -> int:
    from muprover.hosts.down import down as end
    from muprover.hosts.record import find

    end(find(args.name), print)
    return 0
