"""The command line: its help, what it refuses, and in which words."""

import json
import os
import socket
import subprocess
import sys

import pytest
import yaml

from muprover.cli import main
from muprover.commands.options import with_dashes

COMMANDS = [
    "run",
    "play",
    "evaluate",
    "environment",
    "replay",
    "network",
    "trainer",
    "agent",
    "cluster",
    "config",
    "games",
]


def refused(capsys, *arguments: str) -> str:
    """What is said on standard error about a command line that cannot be meant."""
    try:
        status = main(arguments)
    except SystemExit as error:  # argparse's
        status = error.code
    assert status == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert f"usage: muprover {command}" in text
    assert ("examples:" in text) == (command != "games")


def test_every_option_says_what_it_is_and_addresses_their_default(capsys):
    for command in ("agent", "evaluate"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        text = " ".join(capsys.readouterr().out.split())
        assert "of the environment server (default: localhost:50000)" in text
        assert "of the network server (default: localhost:50002)" in text


def test_without_a_command_all_are_listed(capsys):
    message = refused(capsys)
    assert "COMMAND" in message


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("--replay_buffer", "--replay-buffer"),
        ("--saved_models=a_b", "--saved-models=a_b"),
        ("tic_tac", "tic_tac"),
        ("--set=search.num_simulations=5", "--set=search.num_simulations=5"),
    ],
)
def test_underscores_in_options_are_dashes(given, meant):
    assert with_dashes(given) == meant


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["config", "--game", "tictacto"], "did you mean `tictactoe`"),
        (["config", "--game", "tictactoe", "--set", "search.nun_simulations=3"], "did you mean"),
        (["config", "--game", "tictactoe", "--set", "search"], "path.to.setting=value"),
        (["config", "--game", "no/such/file.py"], "no game file no/such/file.py"),
        (["config"], "needs --game"),
        (["environment"], "needs --game"),
        (["environment", "chekc", "h:1"], "environment check HOST:PORT"),
        (["environment", "--game", "tictactoe", "--port", "70000"], "0 to 65535"),
        (["agent", "--game", "tictactoe", "--network", "nowhere"], "HOST:PORT"),
        (["agent", "--game", "tictactoe", "--num-games", "-3"], "-3"),
        (["play"], "--run FOLDER or --network HOST:PORT"),
        (["play", "--run", "no/such/folder"], "no folder of a run"),
        (["replay", "restore", "h:1", "--game", "tictactoe"], "--file"),
        (["run", "--game", "tictactoe", "--time-limit", "soon"], "above 0"),
        (["network"], "--model-config-file"),
        (["network", "--model-config-file", "/no/such/file"], "/no/such/file"),
        (["swim"], "invalid choice: 'swim'"),
        (["trian"], "did you mean trainer?"),
        (["agent", "--game", "tictactoe", "--num-gamse", "3"], "did you mean --num-games?"),
        (["agent", "--game", "tictactoe", "--agent", "3"], "no option --agent;"),
        (["agent", "--game", "tictactoe", "--log-level", "inf"], "did you mean info?"),
        (["environment", "check", "nowhere"], "given 'nowhere'; an address is HOST:PORT"),
        (["replay", "backup", "h:99999", "--game", "tictactoe", "--file", "f"], "1 to 65535"),
        (
            ["replay", "--game=tictactoe", "--host=localhost", "--port=0", "--logdir=/proc/no"],
            "/proc/no",
        ),
        (["run", "--game", "tictactoe", "--folder", "/proc/no/run"], "/proc/no/run"),
        (["run", "--game", "tictactoe", "--agents", "0"], "1 or more"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_words(arguments, words, capsys):
    message = refused(capsys, *arguments)
    assert words in message
    assert len(message.splitlines()) == 1


def test_a_busy_port_is_named(capsys):
    with socket.socket(socket.AF_INET6) as taken:
        taken.bind(("::", 0))
        taken.listen()
        port = taken.getsockname()[1]
        message = refused(capsys, "environment", "--game", "tictactoe", "--port", str(port))
    assert f"port {port} is in use" in message
    assert "--port" in message


def test_the_effective_settings_can_be_read_back(capsys):
    assert main(["config", "--game", "tictactoe", "--set", "search.num_simulations=7"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["search"]["num_simulations"] == 7


def test_the_schema_describes_every_setting(capsys):
    assert main(["config", "--schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert "search" in schema["properties"]
    described = schema["$defs"]["SearchConfig"]["properties"]["num_simulations"]
    assert described["description"] == "Of self-play, per move."


def test_the_games_are_listed(capsys):
    assert main(["games"]) == 0
    listed = capsys.readouterr().out
    for name in ("tictactoe", "random_tictactoe", "cartpole", "connect_four"):
        assert name in listed


def test_without_tensorflow_the_trainer_says_what_to_install(tmp_path):
    code = (
        "import importlib.util as u, sys\n"
        "find = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'tensorflow' else find(name, *a)\n"
        "from muprover.cli import main\n"
        "sys.exit(main(['trainer', '--game', 'tictactoe', '--saved-models', 'm', '--logdir', 'l']))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert result.returncode == 2
    assert "pip install 'muprover[tensorflow]'" in result.stderr
    assert not os.listdir(tmp_path)
