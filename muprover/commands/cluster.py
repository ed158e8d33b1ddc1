"""The command for a release on Kubernetes: cluster status, scale, logs, download, game."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from muprover.commands.options import CommandBuilder, count, natural, positive
from muprover.config import SettingsError

if TYPE_CHECKING:
    from muprover.cluster.release import Release

COMPONENTS = ("environment", "replay", "network", "trainer", "agent", "evaluator")


def add_cluster(commands: Any) -> None:
    command = CommandBuilder(
        commands,
        "cluster",
        cluster,
        "look after a release on Kubernetes",
        "Looks after a release of MuProver's chart, through the API server that a kubeconfig "
        "names:\nno port-forward, no address in the cluster is needed.",
        usage="muprover cluster ACTION [options]",
    )
    command.examples(
        "muprover cluster status --namespace training",
        "muprover cluster scale agents 8",
        "muprover cluster logs trainer --follow",
        "muprover cluster download runs/from-cluster",
        "muprover cluster game my_game.py",
    )
    actions = command.parser.add_subparsers(
        title="actions", metavar="ACTION", required=True, prog="muprover cluster"
    )
    for add in (_add_status, _add_scale, _add_logs, _add_download, _add_game):
        add(actions)


def cluster(args: argparse.Namespace) -> int:
    raise SettingsError("muprover cluster needs an action; see muprover cluster --help")


def _where(command: CommandBuilder) -> None:
    """The options by which a release is found."""
    command.group("which release")
    add = command.add
    add("--kubeconfig", metavar="FILE", help="(default: as kubectl finds it)")
    add("--context", metavar="NAME", help="of the kubeconfig (default: its current one)")
    add("--namespace", metavar="NAME", help="(default: the context's)")
    add("--release", metavar="NAME", help="as given to helm (default: the only one there)")


def _release(args: argparse.Namespace) -> Release:
    from muprover.cluster.connection import Cluster
    from muprover.cluster.release import Release

    return Release(Cluster(args.kubeconfig, args.context, args.namespace), args.release)


def _component(text: str) -> str:
    """`agent` or `agents`."""
    name = text.removesuffix("s")
    if name not in COMPONENTS:
        raise argparse.ArgumentTypeError(
            f"given '{text}'; a component is {', '.join(COMPONENTS[:-1])} or {COMPONENTS[-1]}"
        )
    return name


def _add_status(actions: Any) -> None:
    command = CommandBuilder(
        actions,
        "status",
        status,
        "show pods, versions served, speeds, and what has been reached",
        "Asks every pod for its metrics, some seconds apart, and shows what they say.",
    )
    command.add(
        "--seconds",
        type=positive,
        default=3.0,
        metavar="S",
        help="between two looks, over which speeds are measured; it looks on, up to five times as "
        "long, while no agent has made a move (default: %(default)g)",
    )
    command.add("--json", action="store_true", help="answer in JSON")
    _where(command)


def status(args: argparse.Namespace) -> int:
    from muprover.cluster.status import Status, describe

    found = Status(_release(args), args.seconds)
    print(json.dumps(found.to_json(), indent=2) if args.json else describe(found))
    return 0


def _add_scale(actions: Any) -> None:
    command = CommandBuilder(
        actions,
        "scale",
        scale,
        "change the number of agents, network servers or environment servers",
    )
    add = command.add
    add("component", type=_component, metavar="COMPONENT", help="agents, network or environment")
    add("count", type=natural, metavar="N", help="pods")
    _where(command)


def scale(args: argparse.Namespace) -> int:
    from muprover.cluster.scaling import SCALABLE, scale

    if args.component not in SCALABLE:
        raise SettingsError(
            f"there is one {args.component} in a release; what scales is {', '.join(SCALABLE)}"
        )
    print(scale(_release(args), args.component, args.count))
    return 0


def _add_logs(actions: Any) -> None:
    command = CommandBuilder(actions, "logs", logs, "print what components write")
    add = command.add
    add(
        "component",
        type=_component,
        nargs="?",
        metavar="COMPONENT",
        help="one of them (default: all)",
    )
    add("-f", "--follow", action="store_true", help="go on, also with pods that come later")
    add("--tail", type=count, default=50, metavar="N", help="lines of each (default: %(default)s)")
    add("--previous", action="store_true", help="of containers before their last restart")
    _where(command)


def logs(args: argparse.Namespace) -> int:
    from muprover.cluster.logs import follow_logs, print_logs

    def write(line: str) -> None:
        print(line, flush=args.follow)

    if args.follow and args.previous:
        raise SettingsError("--previous is of containers that have ended; leave out --follow")
    if args.follow:
        follow_logs(_release(args), args.component, args.tail, write)
    else:
        print_logs(_release(args), args.component, args.tail, args.previous, write)
    return 0


def _add_download(actions: Any) -> None:
    command = CommandBuilder(
        actions,
        "download",
        download,
        "bring the newest model and checkpoint here",
        "Makes the folder of a run, with settings, newest version and newest checkpoint; it is "
        "whole and verified,\nor not there.",
    )
    command.add("folder", type=Path, metavar="FOLDER", help="that is made")
    _where(command)


def download(args: argparse.Namespace) -> int:
    from muprover.cluster.download import download

    found = download(_release(args), args.folder)
    folder = shlex.quote(str(args.folder))
    checkpoint = f"checkpoint {found.checkpoint}" if found.checkpoint else "no checkpoint yet"
    size = f"{found.num_bytes / 1e6:.1f} MB"
    print(f"version {found.version} and {checkpoint}: {size}, verified")
    print(f"play against it:  muprover play --run {folder}")
    return 0


def _add_game(actions: Any) -> None:
    command = CommandBuilder(
        actions,
        "game",
        game,
        "let the release train a game of your own, without building an image",
        "Brings a game's file into the release and lets all components begin with it, in a run of "
        "its own.\nThe run of before stays on the volumes.",
    )
    command.add("file", type=Path, metavar="FILE", help="with the game, as for --game")
    _where(command)


def game(args: argparse.Namespace) -> int:
    from muprover.cluster.games import install

    print(install(_release(args), args.file))
    return 0
