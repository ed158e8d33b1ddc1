"""The command `muprover`: what each component is told on its command line.

Heavy imports are inside each command, so that help is quick and only trainer and network need
TensorFlow.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from muprover.config import SettingsError

EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
ENVIRONMENT_PORT, REPLAY_PORT, NETWORK_PORT = 50000, 50001, 50002

Command = Callable[[argparse.Namespace], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and answers its exit status: 0 done, 1 failed, 2 wrongly used."""
    argv = [with_dashes(a) for a in (sys.argv[1:] if arguments is None else arguments)]
    args = make_parser().parse_args(argv)
    from muprover.services.client import ServiceError
    from muprover.services.server import PortError

    try:
        return int(args.command(args) or 0)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except (SettingsError, PortError) as error:
        print(f"muprover: {error}", file=sys.stderr)
        return EXIT_USAGE
    except ServiceError as error:
        print(f"muprover: {error}", file=sys.stderr)
        return 1


def with_dashes(argument: str) -> str:
    """`--replay_buffer=x` as `--replay-buffer=x`."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="muprover",
        description="MuZero, trained by components that talk over gRPC.",
        epilog="Begin with: muprover run --game tictactoe",
    )
    version = f"muprover {metadata.version('muprover')}"
    parser.add_argument("--version", action="version", version=version)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add in (
        _add_run,
        _add_play,
        _add_evaluate,
        _add_environment,
        _add_replay,
        _add_network,
        _add_trainer,
        _add_agent,
        _add_config,
        _add_games,
    ):
        add(commands)
    return parser


# One function a command: its options, and what it does.


def _add_run(commands: Any) -> None:
    parser = _parser(commands, "run", _run, "train a game with all components on this machine")
    _add_game(parser)
    add = parser.add_argument
    add("--name", help="of the run (default: the game and the time it starts)")
    add("--runs", type=Path, default=Path("runs"), metavar="DIR", help="(default: %(default)s)")
    add("--folder", type=Path, metavar="DIR", help="of this run; one that exists is resumed")
    add("--seed", type=_natural, help="of all randomness (default: 0, or the resumed run's)")
    add("--time-limit", type=_positive, metavar="MINUTES", help="end then (default: 60)")
    add("--agents", type=_natural, default=1, metavar="N", help="processes (default: %(default)s)")
    add("--num-games", type=_natural, metavar="N", help="that each agent plays at once")
    add(
        "--min-games",
        type=_natural,
        default=1,
        metavar="N",
        help="stored before training begins (default: %(default)s)",
    )
    _add_logging(parser)


def _run(args: argparse.Namespace) -> int:
    _require_tensorflow("run")
    from muprover.launcher import RunOptions, launch

    return launch(
        RunOptions(
            source=args.game,
            settings_file=args.config,
            overrides=tuple(args.set),
            name=args.name,
            runs=args.runs,
            folder=args.folder,
            seed=args.seed,
            time_limit_minutes=args.time_limit,
            agents=args.agents,
            num_games=args.num_games,
            min_games=args.min_games,
            log_level=args.log_level,
        )
    )


def _add_environment(commands: Any) -> None:
    parser = commands.add_parser(
        "environment",
        help="serve a game's rules",
        description="Serves a game's rules: one stream plays many games. "
        "`muprover environment check HOST:PORT` tests a server written by others.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=_environment)
    parser.add_argument(
        "check", nargs="*", metavar="check HOST:PORT", help="test a server of this protocol"
    )
    _add_game(parser, required=False)
    _add_port(parser, ENVIRONMENT_PORT)
    parser.add_argument(
        "--workers",
        type=_natural,
        default=1,
        metavar="N",
        help="processes that play the games (default: %(default)s, the server's own)",
    )
    _add_component(parser)


def _environment(args: argparse.Namespace) -> int:
    if args.check:
        return _environment_check(args)
    if args.game is None:
        raise SettingsError("muprover environment needs --game G")
    _start_logging("environment", args)
    from muprover.services.environment import serve

    serve(_game(args), args.port, workers=args.workers, metrics_port=args.metrics_port)
    return 0


def _environment_check(args: argparse.Namespace) -> int:
    word, *addresses = args.check
    if word != "check" or len(addresses) != 1:
        raise SettingsError(
            f"given 'muprover environment {' '.join(args.check)}'; "
            "use: muprover environment check HOST:PORT [--game G]"
        )
    from muprover.services.environment_check import print_check

    game = _game(args) if args.game else None
    return 0 if print_check(_address(addresses[0]), game) else 1


def _add_replay(commands: Any) -> None:
    parser = _parser(
        commands,
        "replay",
        _replay,
        "keep self-played games and sample from them",
        "Keeps games durably in --logdir. `muprover replay backup HOST:PORT --file F` writes all "
        "stored games of a running server to a file, `restore` reads them back.",
    )
    parser.add_argument("action", nargs="*", metavar="backup|restore HOST:PORT", help="see above")
    _add_game(parser)
    _add_port(parser, REPLAY_PORT)
    parser.add_argument(
        "--logdir", type=Path, metavar="DIR", help="where games are kept (default: ./replay)"
    )
    parser.add_argument("--file", type=Path, help="of a backup")
    _add_component(parser)
    parser.add_argument("--seed", type=_natural, help="of sampling (default: drawn afresh)")


def _replay(args: argparse.Namespace) -> int:
    _start_logging("replay", args)
    game = _game(args)
    if args.action:
        return _replay_action(args)
    from muprover.services.replay import serve

    logdir = args.logdir or Path("replay")
    serve(game, args.port, logdir=logdir, metrics_port=args.metrics_port, seed=args.seed)
    return 0


def _replay_action(args: argparse.Namespace) -> int:
    if len(args.action) != 2 or args.action[0] not in ("backup", "restore") or not args.file:
        raise SettingsError(
            "use: muprover replay backup|restore HOST:PORT --game G --file F; "
            f"given '{' '.join(args.action)}' and file {args.file}"
        )
    from muprover.services.replay_backup import backup, restore

    word, address = args.action
    config = _game(args).config
    if word == "backup":
        print(f"{backup(_address(address), config, args.file)} games written to {args.file}")
    else:
        added, duplicates = restore(_address(address), config, args.file)
        print(f"{added} games restored, {duplicates} were there already")
    return 0


def _add_network(commands: Any) -> None:
    parser = _parser(
        commands,
        "network",
        _network,
        "serve networks as TensorFlow Serving does",
        "Serves SavedModel versions by TensorFlow Serving's protocols, files and flags.",
    )
    from muprover.model.serving.command import add_arguments

    add_arguments(parser)
    _add_logging(parser)


def _network(args: argparse.Namespace) -> int:
    _require_tensorflow("network")
    _start_logging("network", args)
    from muprover.model.serving.command import run

    return run(args)


def _add_trainer(commands: Any) -> None:
    parser = _parser(commands, "trainer", _trainer, "learn from the replay server's games")
    _add_game(parser)
    add = parser.add_argument
    add("--replay-buffer", type=_address, default=f"localhost:{REPLAY_PORT}", metavar="HOST:PORT")
    add(
        "--min-games",
        type=_natural,
        default=1,
        metavar="N",
        help="stored before training begins (default: %(default)s)",
    )
    add(
        "--saved-models",
        type=Path,
        required=True,
        metavar="DIR",
        help="where versions of the network are written",
    )
    add(
        "--logdir",
        type=Path,
        required=True,
        metavar="DIR",
        help="for checkpoints and TensorBoard; training resumes from what is there",
    )
    add("--seed", type=_natural, default=0, help="(default: %(default)s)")
    add("--num-devices", type=_natural, default=1, metavar="N", help="GPUs that share a batch")
    add("--threads", type=_natural, metavar="N", help="of TensorFlow (default: as it likes)")
    add("--keep-exports", type=_natural, default=5, metavar="N", help="(default: %(default)s)")
    _add_component(parser, health=True)


def _trainer(args: argparse.Namespace) -> int:
    _require_tensorflow("trainer")
    _start_logging("trainer", args)
    from muprover.model.trainer import train

    train(
        _game(args),
        replay_buffer=args.replay_buffer,
        min_games=args.min_games,
        saved_models=args.saved_models,
        logdir=args.logdir,
        seed=args.seed,
        metrics_port=args.metrics_port,
        health_port=args.health_port,
        num_devices=args.num_devices,
        threads=args.threads,
        keep_exports=args.keep_exports,
    )
    return 0


def _add_agent(commands: Any) -> None:
    parser = _parser(commands, "agent", _agent, "play many games at once and store them")
    _add_game(parser)
    _add_servers(parser)
    add = parser.add_argument
    add("--replay-buffer", type=_address, default=f"localhost:{REPLAY_PORT}", metavar="HOST:PORT")
    add("--num-games", type=_natural, metavar="N", help="played at once (default: the game's)")
    add("--groups", type=_natural, default=2, metavar="N", help="of games, in turn (default: 2)")
    add("--agent-name", metavar="NAME", help="(default: host and process)")
    add("--max-games-total", type=_natural, metavar="N", help="end after so many (default: never)")
    add("--seed", type=_natural, default=0, help="(default: %(default)s)")
    _add_component(parser, health=True)


def _agent(args: argparse.Namespace) -> int:
    _start_logging("agent", args)
    from muprover.agent import run

    return run(
        _game(args),
        environment=args.environment,
        replay_buffer=args.replay_buffer,
        network=args.network,
        num_games=args.num_games,
        groups=args.groups,
        agent_name=args.agent_name,
        metrics_port=args.metrics_port,
        health_port=args.health_port,
        seed=args.seed,
        model_name=args.model_name,
        max_games_total=args.max_games_total,
    )


def _add_evaluate(commands: Any) -> None:
    parser = _parser(
        commands,
        "evaluate",
        _evaluate,
        "measure how well the served network plays",
        "Plays the agent as it is served, without noise: matches by seat, mean returns, and exact "
        "oracles where the game has them.",
    )
    _add_game(parser)
    _add_servers(parser)
    add = parser.add_argument
    add("--watch", action="store_true", help="evaluate each new version until stopped")
    add("--json", action="store_true", help="answer in JSON")
    add("--output", type=Path, metavar="FILE", help="add a line of JSON for each evaluation")
    add(
        "--matches",
        action=argparse.BooleanOptionalAction,
        help="play against others too (default: yes, but not with --watch)",
    )
    add("--seed", type=_natural, default=0, help="(default: %(default)s)")
    _add_component(parser, health=True)


def _evaluate(args: argparse.Namespace) -> int:
    _start_logging("evaluator", args)
    from muprover.evaluator import run

    return run(
        _game(args),
        environment=args.environment,
        network=args.network,
        watch=args.watch,
        as_json=args.json,
        output=args.output,
        metrics_port=args.metrics_port,
        health_port=args.health_port,
        seed=args.seed,
        model_name=args.model_name,
        matches=args.matches,
    )


def _add_play(commands: Any) -> None:
    parser = _parser(commands, "play", _play, "play against the agent in the terminal")
    _add_game(parser, required=False)
    add = parser.add_argument
    add("--run", type=Path, metavar="DIR", help="folder of a run; nothing need be running")
    add("--network", type=_address, metavar="HOST:PORT", help="or a network server")
    add("--model-name", default="muprover", help="there (default: %(default)s)")
    add("--seat", choices=["first", "second", "both", "watch"], default="first", help="yours")
    add("--num-simulations", type=_natural, metavar="N", help="(default: as evaluated)")
    add("--seed", type=_natural, help="(default: drawn afresh)")
    add("--log-level", default="warning", help=argparse.SUPPRESS)
    add("--log-format", default="text", help=argparse.SUPPRESS)


def _play(args: argparse.Namespace) -> int:
    _start_logging("play", args)
    from muprover.play import run

    if (args.run is None) == (args.network is None):
        raise SettingsError("whom to play? give either --run FOLDER or --network HOST:PORT")
    if args.run is None:
        if args.game is None:
            raise SettingsError("muprover play --network H:P needs --game G")
        game, load = _game(args), None
    else:
        _require_tensorflow("play --run")
        from muprover.runfolder import RunFolder

        folder = RunFolder(args.run)
        game = folder.load()

        def load() -> Any:
            from muprover.model.policy import load_policy  # TensorFlow takes seconds to import

            return load_policy(folder.models)

    return run(
        game,
        network=args.network,
        load=load,
        seat=args.seat,
        num_simulations=args.num_simulations,
        model_name=args.model_name,
        seed=args.seed,
    )


def _add_config(commands: Any) -> None:
    parser = _parser(commands, "config", _config, "show a game's settings")
    _add_game(parser, required=False)
    parser.add_argument("--schema", action="store_true", help="print the JSON Schema of settings")


def _config(args: argparse.Namespace) -> int:
    if args.schema:
        import json

        from muprover.config import Config

        print(json.dumps(Config.model_json_schema(), indent=2))
        return 0
    if args.game is None:
        raise SettingsError("muprover config needs --game G, or --schema")
    import yaml

    print(yaml.safe_dump(_game(args).config.model_dump(mode="json"), sort_keys=False), end="")
    return 0


def _add_games(commands: Any) -> None:
    _parser(commands, "games", _games, "list the games that come with MuProver")


def _games(args: argparse.Namespace) -> int:
    from muprover.game import game_names, load_game

    for name in game_names():
        about = (load_game(name).module.__doc__ or "").strip().partition("\n")[0]
        print(f"{name:18} {about}")
    print("\nA game of your own: give the path of its .py file as --game.")
    return 0


# Options that several commands share.


def _parser(
    commands: Any, name: str, command: Command, short: str, description: str = ""
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=short, description=description or f"{short[0].upper()}{short[1:]}."
    )
    parser.set_defaults(command=command)
    return parser


def _add_game(parser: argparse.ArgumentParser, required: bool = True) -> None:
    group = parser.add_argument_group("game and settings")
    group.add_argument(
        "--game",
        required=required,
        metavar="G",
        help="a name (`muprover games` lists them), a .py file or a dotted module",
    )
    group.add_argument("--config", metavar="FILE", help="settings that lie above the game's (YAML)")
    group.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="PATH=VALUE",
        help="one setting above all, like search.num_simulations=50; may be repeated",
    )


def _add_port(parser: argparse.ArgumentParser, default: int) -> None:
    parser.add_argument(
        "--port", type=_port, default=default, metavar="P", help="(default: %(default)s; 0: any)"
    )


def _add_servers(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    for name, port in (("environment", ENVIRONMENT_PORT), ("network", NETWORK_PORT)):
        add(
            f"--{name}",
            type=_address,
            default=f"localhost:{port}",
            metavar="HOST:PORT",
            help=f"of the {name} server (default: %(default)s)",
        )
    add("--model-name", default="muprover", help="on the network server (default: %(default)s)")


def _add_component(parser: argparse.ArgumentParser, health: bool = False) -> None:
    group = parser.add_argument_group("operation")
    group.add_argument(
        "--metrics-port", type=_port, metavar="P", help="for Prometheus (default: none; 0: any)"
    )
    if health:
        group.add_argument(
            "--health-port", type=_port, metavar="P", help="of grpc.health.v1 (default: none)"
        )
    _add_logging(group)


def _add_logging(parser: Any) -> None:
    parser.add_argument(
        "--log-level",
        choices=["debug", "info", "warning", "error"],
        default="info",
        help="(default: %(default)s)",
    )
    parser.add_argument(
        "--log-format", choices=["text", "json"], default="text", help="(default: %(default)s)"
    )


def _game(args: argparse.Namespace) -> Any:
    from muprover.game import load_game

    return load_game(args.game, args.config, args.set)


def _start_logging(component: str, args: argparse.Namespace) -> None:
    from muprover.logs import configure_logging

    configure_logging(component, args.log_level, args.log_format)


def _require_tensorflow(command: str) -> None:
    if importlib.util.find_spec("tensorflow") is None:
        raise SettingsError(
            f"muprover {command} needs TensorFlow; install it: pip install 'muprover[tensorflow]'"
        )
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


# What a word on the command line must be; argparse prints the sentence.


def _natural(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"given '{text}'; must be a whole number, 0 or more")
    return int(text)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"given '{text}'; must be a number above 0")
    return value


def _port(text: str) -> int:
    if not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"given '{text}'; a port is a number from 0 to 65535")
    return int(text)


def _address(text: str) -> str:
    if "://" in text:  # dns:///…, unix://…: gRPC's own forms
        return text
    host, colon, port = text.rpartition(":")
    if not (colon and host and port.isdigit() and 0 < int(port) <= 65535):
        raise argparse.ArgumentTypeError(f"given '{text}'; an address is HOST:PORT")
    return text


if __name__ == "__main__":
    sys.exit(main())
