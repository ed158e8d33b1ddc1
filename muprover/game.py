"""A game, found by name or by file: its rules, its numbers and what else its file holds."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from muprover.config import Config, SettingsError
from muprover.environment import Environment, Environments
from muprover.layers import load_file, load_settings, parse_override


class ScoredPosition(NamedTuple):
    """A position and the exact score of each move in it, from a solver."""

    moves: tuple[int, ...]  # from the start of the game
    scores: NDArray[np.float32]  # [A] for the player to move: > 0 wins, 0 draws, < 0 loses; NaN


@dataclass(frozen=True)
class Game:
    """One game file and the settings in force."""

    source: str  # what `--game` was given
    config: Config
    module: ModuleType

    @property
    def name(self) -> str:
        return self.config.game.name

    @property
    def has_rules(self) -> bool:
        """False for a game whose rules are in another language's environment server."""
        return hasattr(self.module, "make_environment")

    def make_environment(self) -> Environment:
        if not self.has_rules:
            raise SettingsError(
                f"{self.source} has no make_environment(): its rules are on an environment server; "
                "give that server's address with --environment HOST:PORT"
            )
        environment: Environment = self.module.make_environment()
        return environment

    def make_environments(self, num_games: int) -> Environments:
        return Environments(self.make_environment, num_games, self.config.game.max_moves)

    @property
    def make_network(self) -> Callable[[Config], Any] | None:
        """The game's own network, if its file has one."""
        return getattr(self.module, "make_network", None)

    def scored_positions(self) -> list[ScoredPosition]:
        """Positions with exact scores that the game's file offers; empty if it has none."""
        make: Callable[[], Iterable[ScoredPosition]] | None
        make = getattr(self.module, "scored_positions", None)
        return list(make()) if make else []


def load_game(source: str, file: str | None = None, overrides: Iterable[str] = ()) -> Game:
    """The game called `source`: a name in `muprover.games`, a dotted module, or a `.py` file.

    Its settings: defaults, the game's own, those of the settings file, then `path=value` overrides.
    """
    module = _find_module(source)
    if not hasattr(module, "make_config"):
        raise SettingsError(f"game {source} has no make_config(); a game file must define it")
    try:
        base = module.make_config()
    except ValueError as error:
        raise SettingsError(f"make_config() of game {source}: {error}") from None
    except (Exception, SystemExit) as error:
        message = f"make_config() of game {source}: {type(error).__name__}: {error}"
        raise SettingsError(message) from error
    if not isinstance(base, Config):
        raise SettingsError(f"make_config() of game {source} returned no Config but {base!r}")
    layers = [load_file(file)] if file else []
    layers += [parse_override(text) for text in overrides]
    return Game(source, load_settings(base, layers), module)


def game_names() -> list[str]:
    """The games that come with MuProver."""
    import muprover.games

    return sorted(module.name for module in pkgutil.iter_modules(muprover.games.__path__))


def _find_module(source: str) -> ModuleType:
    if source.endswith(".py"):
        return _import_file(Path(source))
    if source in game_names():
        return importlib.import_module(f"muprover.games.{source}")
    if "." in source:
        try:
            return importlib.import_module(source)
        except ModuleNotFoundError as error:
            raise SettingsError(f"no module {source} for --game: {error}") from None
    near = get_close_matches(source, game_names(), 1)
    hint = f"; did you mean `{near[0]}`?" if near else "."
    raise SettingsError(
        f"no game '{source}'{hint} There are {', '.join(game_names())}; "
        "or give the path of a .py file, or a dotted module"
    )


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise SettingsError(f"no game file {path}")
    name = f"muprover_game_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    if spec is None or spec.loader is None:
        raise SettingsError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and process pools look there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise SettingsError(f"game file {path}: {type(error).__name__}: {error}") from error
    return module
