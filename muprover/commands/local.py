"""The commands for a person at a terminal: run, play, config, games."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from muprover.commands.options import (
    MODEL_NAME,
    CommandBuilder,
    address,
    count,
    game_of,
    natural,
    positive,
    require_tensorflow,
    start_logging,
)
from muprover.config import SettingsError

if TYPE_CHECKING:
    from muprover.game import Game
    from muprover.policy import Policy


def add_run(commands: Any) -> None:
    command = CommandBuilder(
        commands,
        "run",
        run,
        "train a game with all components on this machine",
        "Starts environment, replay, network, trainer, agents and evaluator on free local ports,\n"
        "restarts what crashes, shows how it goes, and ends when the game's goal is met, at the "
        "time limit\nor on Ctrl-C. A folder of a run that has ended is gone on with.\n\n"
        "Exit status: 0 goal met, 1 not met, 2 wrongly used, 130 Ctrl-C.",
        usage="muprover run --game G [options]",
    )
    command.game().group("run")
    add = command.add
    add("--name", help="of the run (default: the game and the time)")
    add(
        "--runs",
        type=Path,
        default=Path("runs"),
        metavar="D",
        help="folder of run folders (default: %(default)s)",
    )
    add("--folder", type=Path, metavar="D", help="of this run, instead of --runs and --name")
    add(
        "--seed",
        type=natural,
        metavar="S",
        help="of all randomness (default: 0, or that of the run that is gone on with)",
    )
    add(
        "--time-limit",
        type=positive,
        default=60.0,
        metavar="MINUTES",
        help="of this session (default: %(default)g)",
    )
    add("--agents", type=count, default=1, metavar="N", help="processes (default: %(default)s)")
    add(
        "--num-games",
        type=count,
        metavar="N",
        help="that each agent plays at once (default: self_play.games_per_agent)",
    )
    add(
        "--min-games",
        type=natural,
        default=1,
        metavar="N",
        help="that must be stored before training begins (default: %(default)s)",
    )
    add(
        "--threads",
        type=count,
        metavar="N",
        help="of TensorFlow in trainer and in network, each (default: half of the cores)",
    )
    add(
        "--standby",
        action="store_true",
        help="keep a second trainer and a second network server ready, to take over within a "
        "second or so when one dies; each needs as much memory as the first",
    )
    command.operation(metrics=False, locks=False)
    command.examples(
        "muprover run --game tictactoe",
        "muprover run --game connect_four --name night --time-limit 480 --agents 2",
        "muprover run --game my_game.py --set search.num_simulations=50 --seed 3",
    )


def run(args: argparse.Namespace) -> int:
    require_tensorflow("run")
    from muprover.components import Layout
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
            layout=Layout(
                agents=args.agents,
                games_per_agent=args.num_games,
                min_games=args.min_games,
                threads=args.threads,
                standby=args.standby,
                log_level=args.log_level,
                log_format=args.log_format,
            ),
        )
    )


def add_play(commands: Any) -> None:
    command = CommandBuilder(
        commands,
        "play",
        play,
        "play against the agent in the terminal",
        "Plays against the agent: that of a run's folder, with nothing running, or that of a "
        "network server.\nDuring a game, `hint` shows what the search thinks of the position.",
        usage="muprover play --run D [options]\n"
        "       muprover play --game G --network HOST:PORT [options]",
    )
    command.group("whom to play")
    add = command.add
    add("--run", type=Path, metavar="D", help="folder of a run")
    add("--network", type=address, metavar="HOST:PORT", help="or a network server, with --game")
    add("--model-name", default=MODEL_NAME, metavar="NAME", help="there (default: %(default)s)")
    command.group("game").add(
        "--seat",
        choices=["first", "second", "both", "watch"],
        default="first",
        help="yours (default: %(default)s)",
    )
    command.add("--num-simulations", type=count, metavar="N", help="(default: as evaluated)")
    command.seed(default=None)
    command.game(required=False).locks()
    command.parser.set_defaults(log_level="warning", log_format="text")
    command.examples(
        "muprover play --run runs/NAME --seat second",
        "muprover play --game tictactoe --network localhost:50002",
    )


def play(args: argparse.Namespace) -> int:
    start_logging("play", args)
    if (args.run is None) == (args.network is None):
        raise SettingsError("whom to play? give either --run FOLDER or --network HOST:PORT")
    if args.network and args.game is None:
        raise SettingsError("muprover play --network HOST:PORT needs --game G")
    from muprover.play import run

    game, load = (game_of(args), None) if args.network else _trained(args.run)
    return run(
        game,
        network=args.network,
        load=load,
        seat=args.seat,
        num_simulations=args.num_simulations,
        model_name=args.model_name,
        seed=args.seed,
    )


def _trained(path: Path) -> tuple[Game, Callable[[], Policy]]:
    """The game of a run's folder, and what loads its newest network."""
    from muprover.runfolder import RunFolder

    folder = RunFolder(path)
    game = folder.load()
    require_tensorflow("play --run")

    def load() -> Policy:
        with _quiet_libraries():
            from muprover.model.policy import load_policy  # TensorFlow takes seconds to import

            return load_policy(folder.models)

    return game, load


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Silences what libraries in C++ say to a terminal: that there is no GPU, and the like."""
    sys.stderr.flush()
    terminal = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(terminal, 2)
        os.close(terminal)


def add_certificates(commands: Any) -> None:
    command = CommandBuilder(
        commands,
        "certificates",
        certificates,
        "make certificates for a trial of --tls",
        "Makes an authority of your own and a certificate for the hosts that servers run on, which "
        "clients\nshow as well. Made again, the same authority signs a new one. Needs openssl.",
        usage="muprover certificates DIR [HOST ...]",
    )
    command.add("folder", type=Path, metavar="DIR", help="for ca.crt, ca.key, tls.crt and tls.key")
    command.add("hosts", nargs="*", metavar="HOST", help="names or addresses, beside localhost's")
    command.add(
        "--days", type=count, default=365, metavar="N", help="that it holds (default: %(default)s)"
    )
    command.examples("muprover certificates trial gpu1 gpu2.lab 10.0.0.7")


def certificates(args: argparse.Namespace) -> int:
    from muprover.certificates import AUTHORITY_KEY, make_certificates

    make_certificates(args.folder, ["localhost", "127.0.0.1", "::1", *args.hosts], args.days)
    print(
        f"give {args.folder} as --tls; on other hosts a copy without {AUTHORITY_KEY}, which signs "
        "new certificates and stays here"
    )
    return 0


def add_config(commands: Any) -> None:
    command = CommandBuilder(
        commands,
        "config",
        config,
        "show a game's settings",
        "Prints a game's settings as YAML: defaults, the game's own, those of --config, --set.",
    )
    command.game(required=False)
    command.add("--schema", action="store_true", help="print the JSON Schema of all settings")
    command.examples(
        "muprover config --game tictactoe --set search.num_simulations=50",
        "muprover config --schema",
    )


def config(args: argparse.Namespace) -> int:
    if args.schema:
        import json

        from muprover.config import Config

        print(json.dumps(Config.model_json_schema(), indent=2))
        return 0
    if args.game is None:
        raise SettingsError("muprover config needs --game G, or --schema")
    import yaml

    print(yaml.safe_dump(game_of(args).config.model_dump(mode="json"), sort_keys=False), end="")
    return 0


def add_games(commands: Any) -> None:
    CommandBuilder(commands, "games", games, "list the games that come with MuProver")


def games(args: argparse.Namespace) -> int:
    from muprover.game import game_names, load_game

    for name in game_names():
        about = (load_game(name).module.__doc__ or "").strip().partition("\n")[0]
        print(f"{name:18} {about}")
    print("\nA game of your own: give the path of its .py file as --game.")
    return 0
