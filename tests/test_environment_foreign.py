"""Environment servers in other languages, or without the package, written from the protos alone."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import google.protobuf
import grpc
import numpy as np
import pytest

from muprover.config import SettingsError
from muprover.game import Game, load_game
from muprover.services.environment import RemoteEnvironments
from muprover.services.environment_check import check

FOREIGN = Path(__file__).parent / "foreign"
PROTOS = FOREIGN.parents[1] / "protos"


@pytest.fixture(scope="session")
def python_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An isolated Python that sees grpcio, protobuf and what protoc makes, but not the package."""
    made = tmp_path_factory.mktemp("generated")
    protos = [str(PROTOS / f"muprover/v1/{name}.proto") for name in ("environment", "tensor")]
    out = [f"--python_out={made}", f"--grpc_python_out={made}"]
    # in a process of its own: beside TensorFlow, which has protobuf's symbols too, protoc may crash
    protoc = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTOS}", *out, *protos]
    subprocess.run(protoc, check=True, timeout=120)
    for package in ("muprover", "muprover/v1"):
        (made / package / "__init__.py").touch()
    installed = {Path(grpc.__file__).parents[1], Path(google.protobuf.__file__).parents[2]}
    path = [str(made), *map(str, installed)]
    start = (
        f"import sys, runpy; sys.path[:0] = {path}\n"
        "import importlib.util as u; assert u.find_spec('muprover.environment') is None\n"
        f"runpy.run_path({str(FOREIGN / 'nim_server.py')!r}, run_name='__main__')"
    )
    with running([sys.executable, "-I", "-S", "-c", start]) as address:
        yield address


@pytest.fixture(scope="session")
def node_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("node and npm are not installed")
    folder = tmp_path_factory.mktemp("node")
    for name in ("nim_server.js", "package.json"):
        shutil.copy(FOREIGN / name, folder)
    install = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefer-offline"]
    done = subprocess.run(install, cwd=folder, capture_output=True, text=True, timeout=120)
    if done.returncode:
        pytest.skip(f"npm install failed: {done.stderr.strip()[-200:]}")
    with running(["node", str(folder / "nim_server.js"), str(PROTOS)]) as address:
        yield address


@contextlib.contextmanager
def running(command: list[str]) -> Iterator[str]:
    """A server that prints its port; its address."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield f"localhost:{int(process.stdout.readline())}"
        finally:
            process.kill()


@pytest.fixture(params=["python_server", "node_server"])
def address(request: pytest.FixtureRequest) -> str:
    name: str = request.getfixturevalue(request.param)
    return name


@pytest.fixture
def nim() -> Game:
    return load_game(str(FOREIGN / "nim.py"))


def test_the_check_finds_nothing_wrong_with_it(address: str, nim: Game) -> None:
    assert check(address) == []
    assert check(address, nim) == []


def test_its_games_are_played_like_local_ones(address: str, nim: Game) -> None:
    rows = np.arange(3)
    with contextlib.closing(RemoteEnvironments(address, nim.config, 3)) as games:
        first = games.reset(rows, np.array([0, 1, 2]))  # heaps of 5, 6 and 7 stones
        assert first.observation.argmax(axis=1).tolist() == [5, 6, 7]
        games.step(rows, np.array([2, 2, 2]))
        last = games.step(rows, np.array([1, 2, 2]))
        assert last.reward.tolist() == [1, 1, 0]
        assert last.terminated.tolist() == [True, True, False]
        assert last.to_play.tolist() == [0, 0, 0]
        assert last.legal_actions.tolist() == [[False] * 3, [False] * 3, [True, False, False]]
        end = games.step(np.array([2]), np.array([0]))
        assert (end.reward[0], end.terminated[0], end.to_play[0]) == (1, True, 1)


def test_rules_that_are_elsewhere_are_asked_for_in_words(nim: Game) -> None:
    with pytest.raises(SettingsError, match="its rules are on an environment server"):
        nim.make_environment()
