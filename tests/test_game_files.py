"""Games of one's own: found by name, by module, by file; and what is said when they are not."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from muprover.config import SettingsError
from muprover.game import game_names, load_game
from muprover.services.environment_check import check

FILE = '''
"""Guess a number from 0 to 4; told only whether it was right."""

import numpy as np

from muprover.config import Config, CustomNetworkConfig, GameConfig
from muprover.environment import Environment, TimeStep
from muprover.game import ScoredPosition


class Guess(Environment):
    def reset(self, seed=None):
        self.number = (seed or 0) % 5
        return self.time_step(0.0, False)

    def step(self, action):
        return self.time_step(float(action == self.number), True)

    def time_step(self, reward, over):
        return TimeStep(np.zeros(1, np.float32), reward, 0, np.full(5, not over), over, False)


def make_environment():
    return Guess()


def make_config():
    return Config(
        game=GameConfig(name="guess", observation_shape=(1,), num_actions=5, max_moves=1),
        network=CustomNetworkConfig(options={"layers": 2}),
    )


def make_network(config):
    return config.network.options["layers"]


def scored_positions():
    yield ScoredPosition((), np.float32([0, 1, 0, 0, 0]))
'''


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "guess.py"
    path.write_text(FILE)
    return path


def test_a_file_is_a_game_with_its_own_network_and_positions(file: Path) -> None:
    game = load_game(str(file), overrides=["training.td_steps=3"])
    assert (game.name, game.has_rules, game.config.training.td_steps) == ("guess", True, 3)
    assert game.make_network is not None
    assert game.make_network(game.config) == 2
    assert [p.scores.tolist() for p in game.scored_positions()] == [[0, 1, 0, 0, 0]]
    games = game.make_environments(3)
    games.reset([0, 1, 2], [3, 4, 5])
    steps = games.step([0, 1, 2], [3, 3, 0])
    assert steps.reward.tolist() == [1, 0, 1]
    assert steps.terminated.all()


def test_a_module_with_a_dotted_name_is_a_game(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = file.parent / "my_games"
    package.mkdir()
    (package / "__init__.py").touch()
    file.rename(package / "guess.py")
    monkeypatch.syspath_prepend(file.parent)
    assert load_game("my_games.guess").name == "guess"


@pytest.mark.parametrize("workers", [1, 2])
def test_a_file_is_served_as_any_game(file: Path, workers: int) -> None:
    from environment_servers import environment_server

    game = load_game(str(file))
    with environment_server(game, workers=workers) as address:
        assert check(address, game) == []


def test_the_games_that_come_along_have_names() -> None:
    for name in game_names():
        game = load_game(name)
        assert game.make_network is None
        assert len(game.scored_positions()) == (1000 if name == "connect_four" else 0)


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("tictacto", "no game 'tictacto'; did you mean `tictactoe`?"),
        ("chess", "no game 'chess'. There are"),
        ("no_such_folder/chess.py", "no game file no_such_folder/chess.py"),
        ("no_such_package.chess", "no module no_such_package.chess for --game"),
        ("json.decoder", "game json.decoder has no make_config()"),
    ],
)
def test_a_game_that_is_not_there_is_said(source: str, sentence: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_game(source)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (("num_actions=5", "num_actions=1"), "make_config() of game"),
        (("import numpy", "import no_such_module"), "ModuleNotFoundError: No module named 'no_s"),
        (("return Config(", "return dict("), "returned no Config but {"),
        (("class Guess", "clas Guess"), "SyntaxError"),
        (("def make_config", "def make_settings"), "has no make_config()"),
    ],
)
def test_a_file_that_does_not_work_is_said(
    file: Path, edit: tuple[str, str], sentence: str
) -> None:
    file.write_text(FILE.replace(*edit))
    with pytest.raises(SettingsError) as caught:
        load_game(str(file))
    assert sentence in str(caught.value)
    assert str(file) in str(caught.value)


def test_two_files_of_one_name_are_two_games(tmp_path: Path) -> None:
    games = []
    for folder, number in (("a", 5), ("b", 6)):
        (tmp_path / folder).mkdir()
        path = tmp_path / folder / "guess.py"
        path.write_text(FILE.replace("num_actions=5", f"num_actions={number}"))
        games.append(load_game(str(path)))
    assert [game.config.game.num_actions for game in games] == [5, 6]
    assert np.all(games[0].make_environment().reset(0).legal_actions)
    assert games[0].module is not games[1].module
    assert sys.modules[games[0].module.__name__] is not None
