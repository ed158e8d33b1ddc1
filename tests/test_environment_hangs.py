"""Games that never answer: their clients are told, and their server goes on or is ended."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from environment_servers import environment_server, plain_server, remote

from muprover.game import Game, load_game
from muprover.services.client import ServiceError
from muprover.services.environment_streams import Pulse
from muprover.tensors import to_tensor
from muprover.v1.environment_pb2 import DescribeResponse, PlayRequest, PlayResponse
from muprover.v1.environment_pb2_grpc import EnvironmentServiceServicer

FILE = '''
"""Action 1 never comes back."""

import numpy as np

from muprover.config import Config, GameConfig
from muprover.environment import Environment, TimeStep


class Hanging(Environment):
    def reset(self, seed=None):
        return TimeStep(np.zeros(1, np.float32), 0.0, 0, np.ones(2, np.bool_), False, False)

    def step(self, action):
        while action == 1:
            pass
        return self.reset()


def make_environment():
    return Hanging()


def make_config():
    facts = {"observation_shape": (1,), "num_actions": 2, "max_moves": 9}
    return Config(game=GameConfig(name="hanging", **facts))
'''


@pytest.fixture
def hanging(tmp_path: Path) -> Game:
    (tmp_path / "hanging.py").write_text(FILE)
    return load_game(str(tmp_path / "hanging.py"))


class Silent(EnvironmentServiceServicer):
    """Somebody else's server: it answers resets, and forgets about moves until it is let go."""

    def __init__(self, game: Game) -> None:
        self.contract = game.config.contract
        self.let_go = threading.Event()

    def Describe(self, request: Any, context: Any) -> DescribeResponse:
        return DescribeResponse(contract=self.contract)

    def Play(self, requests: Iterator[PlayRequest], context: Any) -> Iterator[PlayResponse]:
        for request in requests:
            if request.HasField("moves"):
                self.let_go.wait(30)
            yield PlayResponse(
                **{name: to_tensor(value) for name, value in self.steps(len(request.rows)).items()}
            )

    def steps(self, n: int) -> dict[str, Any]:
        return {
            "observation": np.zeros((n, 1), np.float32),
            "reward": np.zeros(n, np.float32),
            "to_play": np.zeros(n, np.int32),
            "legal_actions": np.ones((n, 2), np.bool_),
            "terminated": np.zeros(n, np.bool_),
            "truncated": np.zeros(n, np.bool_),
        }


def test_a_client_waits_for_an_answer_until_its_deadline(hanging: Game) -> None:
    servicer = Silent(hanging)
    with (
        plain_server(servicer) as address,
        contextlib.closing(remote(address, hanging, 2, answer_timeout=1.0)) as games,
    ):
        games.reset([0, 1], [0, 1])
        time.sleep(1.5)  # a client that asks nothing is owed nothing
        start = time.monotonic()
        with pytest.raises(
            ServiceError, match=r"no answer within 1 s; does a game hang\?"
        ) as caught:
            games.step([0, 1], [0, 0])
        assert 0.9 < time.monotonic() - start < 10
        assert caught.value.code == grpc.StatusCode.DEADLINE_EXCEEDED
        assert caught.value.is_transient
        servicer.let_go.set()
        games.reset([0, 1], [0, 1])  # on a new stream
        games.step([0, 1], [0, 0])


def test_the_process_of_a_hung_game_is_replaced(
    hanging: Game, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        environment_server(hanging, workers=2, answer_timeout=2.0) as address,
        contextlib.closing(remote(address, hanging, 1)) as games,
    ):
        games.reset([0], [0])
        time.sleep(2.5)  # who is asked nothing owes nothing
        games.step([0], [0])
        with pytest.raises(ServiceError, match="the process of these games has died"):
            games.step([0], [1])
        assert "game hanging has answered nothing for 2 s: taken for hung" in caplog.text
        games.reset([0], [0])
        games.step([0], [0])


def test_a_server_of_one_process_ends_with_a_hung_game(tmp_path: Path, hanging: Game) -> None:
    command = [
        *(sys.executable, "-m", "muprover.cli", "environment", "--game", hanging.source),
        *("--port", "0", "--host", "localhost", "--answer-timeout", "1"),
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        lines = iter(server.stderr.readline, "")
        port = next(line for line in lines if " on port " in line).split(" on port ")[1]
        address = f"localhost:{port.split(',')[0]}"
        with contextlib.closing(remote(address, hanging, 1)) as games:
            games.reset([0], [0])
            with pytest.raises(ServiceError) as caught:
                games.step([0], [1])
        assert caught.value.is_transient
        assert server.wait(20) == 1
        assert "taken for hung" in "".join(lines)


def test_silence_is_counted_while_answers_are_owed_only() -> None:
    pulse = Pulse()
    assert [pulse.look(), pulse.look()] == [0, 0]
    with pulse.asked():
        assert [pulse.look(), pulse.look()] == [1, 2]
        with pulse.asked():
            assert pulse.look() == 3
        assert pulse.look() == 1  # another's answer is a sign of life
    assert pulse.look() == 0
