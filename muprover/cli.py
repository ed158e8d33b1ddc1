"""The command `muprover`. Heavy imports are inside each command, so that help is quick and only
trainer, network and run need TensorFlow."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import metadata

from muprover.commands.cluster import add_cluster
from muprover.commands.hosts import add_down, add_logs, add_status, add_up
from muprover.commands.local import add_certificates, add_config, add_games, add_play, add_run
from muprover.commands.options import EXIT_USAGE, Parser, take_locks, with_dashes
from muprover.commands.servers import add_environment, add_network, add_pull, add_replay
from muprover.commands.workers import add_agent, add_evaluate, add_trainer
from muprover.config import SettingsError

EXIT_FAILURE = 1
EXIT_INTERRUPTED = 130

COMMANDS = (
    add_run,
    add_play,
    add_evaluate,
    add_environment,
    add_replay,
    add_network,
    add_pull,
    add_trainer,
    add_agent,
    add_up,
    add_status,
    add_logs,
    add_down,
    add_cluster,
    add_certificates,
    add_config,
    add_games,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and answers its exit status: 0 done, 1 failed, 2 wrongly used."""
    args = parse(sys.argv[1:] if arguments is None else arguments)
    try:
        take_locks(args)
        return int(args.command(args) or 0)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except Exception as error:
        status = status_of(error)
        if status is None:
            raise
        print(f"muprover: {error}", file=sys.stderr)
        return status


def status_of(error: Exception) -> int | None:
    """The exit status that goes with an error whose message is meant for people; None otherwise."""
    from muprover.cluster.connection import ClusterError
    from muprover.hosts.connection import HostsError
    from muprover.services.client import ServiceError
    from muprover.services.common import PortError

    if isinstance(error, SettingsError | PortError):
        return EXIT_USAGE
    failures = (ServiceError, ClusterError, HostsError)
    return EXIT_FAILURE if isinstance(error, failures) else None


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """A command line, understood; ends the process where it cannot be."""
    args, unknown = make_parser().parse_known_args([with_dashes(word) for word in arguments])
    args.parser.refuse_unknown(unknown)
    return args


def make_parser() -> Parser:
    parser = Parser(
        prog="muprover",
        description="MuZero, trained by components that talk over gRPC.",
        epilog="Begin with: muprover run --game tictactoe\n"
        "Each command explains itself: muprover COMMAND --help",
    )
    version = f"muprover {metadata.version('muprover')}"
    parser.add_argument("--version", action="version", version=version)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add in COMMANDS:
        add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
