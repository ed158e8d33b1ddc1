"""The commands of what serves: environment, replay, network."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from muprover.commands.options import (
    ENVIRONMENT_PORT,
    REPLAY_PORT,
    CommandBuilder,
    address,
    count,
    game_of,
    positive,
    require_tensorflow,
    start_logging,
)
from muprover.config import SettingsError
from muprover.model.compiled import keep_compiled


def add_environment(commands: Any) -> None:
    command = CommandBuilder(
        commands,
        "environment",
        environment,
        "serve a game's rules, or check a server that does",
        "Serves a game's rules: one stream plays many games at once.\n\n"
        "`check` tells the author of such a server, in any language, what breaks the protocol.",
        usage="muprover environment --game G [options]\n"
        "       muprover environment check HOST:PORT [--game G]",
    )
    command.add("action", nargs="*", metavar="check HOST:PORT", help="the server to be checked")
    command.game(required=False).port(ENVIRONMENT_PORT)
    command.add(
        "--workers",
        type=count,
        default=1,
        metavar="N",
        help="processes that games are played in (default: %(default)s, the server's own)",
    )
    command.add(
        "--answer-timeout",
        type=positive,
        default=120.0,
        metavar="S",
        help="end the process of games that have answered nothing for so many seconds "
        "(default: %(default)g)",
    )
    command.operation(health=True)
    command.examples(
        "muprover environment --game connect_four --workers 2",
        "muprover environment check localhost:50000",
    )


def environment(args: argparse.Namespace) -> int:
    if args.action:
        return check_environment(args)
    if args.game is None:
        raise SettingsError("muprover environment needs --game G")
    start_logging("environment", args)
    from muprover.services.environment import serve

    serve(
        game_of(args),
        args.port,
        workers=args.workers,
        answer_timeout=args.answer_timeout,
        metrics_port=args.metrics_port,
        health_port=args.health_port,
        host=args.host,
    )
    return 0


def check_environment(args: argparse.Namespace) -> int:
    where = _address_after(args, ["check"], "muprover environment check HOST:PORT [--game G]")
    from muprover.services.environment_check import print_check

    return 0 if print_check(where, game_of(args) if args.game else None) else 1


def add_replay(commands: Any) -> None:
    command = CommandBuilder(
        commands,
        "replay",
        replay,
        "keep self-played games and serve samples of them",
        "Keeps games on disk, in --logdir, and serves batches of them; started again with the same "
        "folder\nit goes on with the games that are there.\n\n"
        "`backup` writes all games of a running server to a file; `restore` adds them to one.",
        usage="muprover replay --game G --logdir D [options]\n"
        "       muprover replay backup|restore HOST:PORT --game G --file F",
    )
    command.add(
        "action",
        nargs="*",
        metavar="backup|restore HOST:PORT",
        help="a server whose games are to be written to a file, or read from one",
    )
    command.game().port(REPLAY_PORT)
    command.add(
        "--logdir",
        type=Path,
        default=Path("replay"),
        metavar="D",
        help="folder in which games are kept (default: ./%(default)s)",
    )
    command.seed(default=None, of="of what is sampled")
    command.group("backup and restore").add("--file", type=Path, metavar="F", help="of the backup")
    command.operation(health=True)
    command.examples(
        "muprover replay --game tictactoe --logdir replay",
        "muprover replay backup localhost:50001 --game tictactoe --file games.backup",
    )


def replay(args: argparse.Namespace) -> int:
    start_logging("replay", args)
    game = game_of(args)
    if args.action:
        return copy_games(args)
    from muprover.services.replay import serve

    serve(
        game,
        args.port,
        logdir=args.logdir,
        metrics_port=args.metrics_port,
        health_port=args.health_port,
        host=args.host,
        seed=args.seed,
    )
    return 0


def copy_games(args: argparse.Namespace) -> int:
    """Backs up a replay server, or restores it."""
    usage = "muprover replay backup|restore HOST:PORT --game G --file F"
    where = _address_after(args, ["backup", "restore"], usage)
    if args.file is None:
        raise SettingsError(f"no --file given; use: {usage}")
    from muprover.services.replay_backup import backup, restore

    config = game_of(args).config
    if args.action[0] == "backup":
        print(f"{backup(where, config, args.file)} games written to {args.file}")
    else:
        added, duplicates = restore(where, config, args.file)
        print(f"{added} games restored, {duplicates} were there already")
    return 0


def _address_after(args: argparse.Namespace, words: list[str], usage: str) -> str:
    """The HOST:PORT that follows one of `words`."""
    word, *rest = args.action
    if word not in words or len(rest) != 1:
        raise SettingsError(f"given '{' '.join(args.action)}'; use: {usage}")
    try:
        return address(rest[0])
    except argparse.ArgumentTypeError as error:
        raise SettingsError(str(error)) from None


def add_network(commands: Any) -> None:
    command = CommandBuilder(
        commands,
        "network",
        network,
        "serve the network's versions as TensorFlow Serving does",
        "Serves SavedModel versions, with TensorFlow Serving's protocols, files and flags.",
        usage="muprover network --model-config-file FILE [options]",
    )
    from muprover.model.serving.flags import add_arguments

    command.group("server")
    add_arguments(command.parser)
    command.operation(metrics=False)
    command.examples(
        "muprover network --model-config-file models.config",
        "muprover network --model-base-path models --model-source trainer.example:50004",
        "muprover network --model-name muprover --model-base-path runs/NAME/models",
    )


def network(args: argparse.Namespace) -> int:
    require_tensorflow("network")
    start_logging("network", args)
    keep_compiled()
    from muprover.model.serving.command import run

    return run(args)


def add_pull(commands: Any) -> None:
    command = CommandBuilder(
        commands,
        "pull",
        pull,
        "keep a folder of versions as a trainer elsewhere has it",
        "Keeps a folder of versions as a trainer elsewhere has it, for network servers that cannot "
        "do\nso themselves (TensorFlow Serving). `muprover network` needs only --model-source.",
        usage="muprover pull --source HOST:PORT --saved-models D [options]",
    )
    command.group("versions")
    command.add(
        "--source",
        type=address,
        required=True,
        metavar="HOST:PORT",
        help="--model-port of the trainer",
    )
    command.add(
        "--saved-models",
        type=Path,
        required=True,
        metavar="D",
        help="folder for the versions, in which the network server looks for them",
    )
    command.operation(health=True)
    command.examples("muprover pull --source trainer.example:50004 --saved-models models")


def pull(args: argparse.Namespace) -> int:
    start_logging("pull", args)
    from muprover.services.model_pull import pull_until_stopped

    pull_until_stopped(
        args.source,
        args.saved_models,
        metrics_port=args.metrics_port,
        health_port=args.health_port,
    )
    return 0
