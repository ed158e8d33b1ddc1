"""What commands have in common: options, what their words may be, and how they are refused."""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, NoReturn, Self

from muprover.config import SettingsError
from muprover.services.locks import (
    ANY,
    CERTIFICATE,
    TLS,
    TLS_CLIENTS,
    TOKEN_FILE,
    Locks,
    use,
)

if TYPE_CHECKING:
    from muprover.game import Game

EXIT_USAGE = 2
ENVIRONMENT_PORT, REPLAY_PORT, NETWORK_PORT = 50000, 50001, 50002
MODEL_NAME = "muprover"

Command = Callable[[argparse.Namespace], int]


class Parser(argparse.ArgumentParser):
    """Refuses what it cannot understand in one sentence, with a guess at what was meant."""

    def __init__(self, *args: Any, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        options.setdefault("allow_abbrev", False)
        super().__init__(*args, **options)

    def error(self, message: str) -> NoReturn:
        sentence = message.removeprefix("argument ")
        choice = re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", sentence)
        if choice:
            sentence += did_you_mean(choice[1], re.findall(r"'(.*?)'", choice[2]))
        self.exit(EXIT_USAGE, f"{self.prog}: {sentence} (see {self.prog} --help)\n")

    def refuse_unknown(self, arguments: Sequence[str]) -> None:
        """Refuses `arguments`, which nobody has understood, if there are any."""
        if arguments:
            known = re.findall(r"--[a-z-]+", self.format_help())
            given = arguments[0].partition("=")[0]
            self.error(f"no option {given}{did_you_mean(given, known)}")


def with_dashes(argument: str) -> str:
    """`--replay_buffer=x` as `--replay-buffer=x`."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value


def did_you_mean(given: str, known: Sequence[str]) -> str:
    near = get_close_matches(given, known, 1)
    return f"; did you mean {near[0]}?" if near else ""


class CommandBuilder:
    """Adds one command: its help, its options in groups, and the function that runs it."""

    def __init__(
        self, commands: Any, name: str, run: Command, short: str, long: str = "", **options: Any
    ) -> None:
        description = long or f"{short[0].upper()}{short[1:]}."
        self.parser: Parser = commands.add_parser(
            name, help=short, description=description, **options
        )
        self.parser.set_defaults(command=run, parser=self.parser)
        self.add = self.parser.add_argument

    def group(self, title: str) -> Self:
        """What is added from now on stands under `title`."""
        self.add = self.parser.add_argument_group(title).add_argument
        return self

    def examples(self, *lines: str) -> None:
        indented = "\n".join(f"  {line}" for line in lines)
        self.parser.epilog = f"examples:\n{indented}"

    def game(self, *short: str, required: bool = True) -> Self:
        """The options from which `load_game` makes the game and its settings."""
        self.group("game and settings")
        self.add(
            *short,
            "--game",
            required=required,
            metavar="G",
            help="a name (`muprover games` lists them), a .py file or a dotted module",
        )
        self.add("--config", metavar="FILE", help="settings that lie above the game's own (YAML)")
        self.add(
            "--set",
            action="append",
            default=[],
            metavar="PATH=VALUE",
            help="one setting above all, like search.num_simulations=50; may be repeated",
        )
        return self

    def port(self, default: int) -> Self:
        """Where a server listens."""
        self.group("server")
        self.add(
            "--port",
            type=port,
            default=default,
            metavar="P",
            help="for gRPC (default: %(default)s; 0: any free one)",
        )
        self.add(
            "--host",
            default="[::]",
            metavar="H",
            help="address to listen on (default: all of this machine's)",
        )
        return self

    def partner(self, name: str, default_port: int, note: str = "") -> Self:
        """The address of another component. `note`: what its help says besides."""
        self.add(
            f"--{name}",
            type=address,
            default=f"localhost:{default_port}",
            metavar="HOST:PORT",
            help=f"of the {name.removesuffix('-buffer')} server (default: %(default)s){note}",
        )
        return self

    def network_partner(self) -> Self:
        self.partner("network", NETWORK_PORT)
        self.add(
            "--model-name",
            default=MODEL_NAME,
            metavar="NAME",
            help="of the model on the network server (default: %(default)s)",
        )
        self.add(
            "--search-signature",
            choices=["search", "search_xla"],
            default="search",
            help="search_xla: compiled, on a stock TensorFlow Serving that was started with XLA "
            "(default: %(default)s)",
        )
        return self

    def seed(self, default: int | None = 0, of: str = "of all randomness here") -> Self:
        told = "drawn afresh" if default is None else "%(default)s"
        self.add(
            "--seed", type=natural, default=default, metavar="S", help=f"{of} (default: {told})"
        )
        return self

    def locks(self) -> Self:
        """Who is let in, and what is shown to others; the same for servers and clients."""
        self.group("locks")
        self.add(
            "--tls",
            metavar="D",
            help=f"folder with tls.crt, tls.key and ca.crt: speak TLS, and check certificates "
            f"(or {TLS})",
        )
        self.add(
            "--tls-clients",
            choices=[CERTIFICATE, ANY],
            help="whom servers answer: those with a certificate (the default if there is a ca.crt) "
            f"or any (or {TLS_CLIENTS})",
        )
        self.add(
            "--token-file",
            metavar="F",
            help="file with a token: servers ask for it, clients show it; with more lines, servers "
            f"take any of them, clients show the first (or {TOKEN_FILE})",
        )
        return self

    def operation(
        self, health: bool = False, metrics: bool = True, host: bool = False, locks: bool = True
    ) -> Self:
        """Locks, metrics, health and logs."""
        if locks:
            self.locks()
        self.group("operation")
        if metrics:
            self.add(
                "--metrics-port",
                type=port,
                metavar="P",
                help="for Prometheus, at /metrics (default: none; 0: any free one)",
            )
        if host:
            self.add(
                "--metrics-host",
                default="[::]",
                metavar="H",
                help="address of that port (default: all of this machine's)",
            )
        if health:
            self.add(
                "--health-port",
                type=port,
                metavar="P",
                help="for grpc.health.v1 alone, never locked (default: none; 0: any free one)",
            )
        self.add(
            "--log-level",
            choices=["debug", "info", "warning", "error"],
            default="info",
            help="(default: %(default)s)",
        )
        self.add(
            "--log-format", choices=["text", "json"], default="text", help="(default: %(default)s)"
        )
        return self


def game_of(args: argparse.Namespace) -> Game:
    """The game and the settings that a command line asks for."""
    from muprover.game import load_game

    return load_game(args.game, args.config, args.set)


def take_locks(args: argparse.Namespace) -> None:
    """From now on the process has the locks that its command line or its environment names."""
    if not hasattr(args, "token_file"):
        return  # a command that talks to nobody
    given = {TLS: args.tls, TLS_CLIENTS: args.tls_clients, TOKEN_FILE: args.token_file}
    said = {name: value for name, value in given.items() if value is not None}
    use(Locks.from_environment(os.environ | said))


def start_logging(component: str, args: argparse.Namespace) -> None:
    from muprover.logs import configure_logging

    configure_logging(component, args.log_level, args.log_format)


def require_tensorflow(command: str) -> None:
    """Raises `SettingsError` where TensorFlow is not installed."""
    if importlib.util.find_spec("tensorflow") is None:
        raise SettingsError(
            f"muprover {command} needs TensorFlow; install it: pip install 'muprover[tensorflow]'"
        )
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


# What a word on the command line must be; argparse prints the sentence.


def natural(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"given '{text}'; must be a whole number, 0 or more")
    return int(text)


def count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"given '{text}'; must be a whole number, 1 or more")
    return int(text)


def positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"given '{text}'; must be a number above 0")
    return value


def port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"given '{text}'; a port is a number from 0 to 65535")
    return int(text)


def address(text: str) -> str:
    if "://" in text or text.startswith("unix:"):  # gRPC's own forms
        return text
    host, colon, number = text.rpartition(":")
    if not (colon and host and number.isdecimal() and 0 < int(number) <= 65535):
        raise argparse.ArgumentTypeError(
            f"given '{text}'; an address is HOST:PORT, the port a number from 1 to 65535"
        )
    return text
