"""The agent as a process among real servers that are killed, restarted and late."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from environment_servers import environment_server
from fake_network import FakeNetwork
from perfect import first_legal
from replay_games import free_port

from muprover.agent import connect_network, run
from muprover.game import load_game
from muprover.services.remote_replay import RemoteReplayBuffer

GAME = load_game("tictactoe")


class Component:
    """A `muprover` command on tic-tac-toe."""

    def __init__(self, folder: Path, name: str, *options: str) -> None:
        self.log = folder / f"{name}.log"
        self._command = [sys.executable, "-m", "muprover.cli", name, "--game", "tictactoe"]
        self._command += options
        self.start()

    def start(self) -> None:
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(self._command, stdout=log, stderr=log)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def end(self) -> int:
        """Told to, by SIGTERM; answers its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(40)


class Setting:
    """An agent and the servers around it, none of them started yet."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = {name: free_port() for name in ("environment", "replay", "network", "metrics")}
        self.components: list[Component] = []
        self.network: FakeNetwork | None = None

    def address(self, name: str) -> str:
        return f"localhost:{self.ports[name]}"

    def start(self, name: str, *options: str) -> Component:
        component = Component(self.folder, name, *options)
        self.components.append(component)
        return component

    def start_agent(self, *options: str) -> Component:
        servers = [
            f"--environment={self.address('environment')}",
            f"--network={self.address('network')}",
            f"--replay-buffer={self.address('replay')}",
            f"--metrics-port={self.ports['metrics']}",
        ]
        return self.start("agent", *servers, "--num-games=8", *options)

    def start_environment(self) -> Component:
        return self.start("environment", f"--port={self.ports['environment']}")

    def start_replay(self, samples_per_insert: str = "null") -> Component:
        return self.start(
            "replay",
            f"--port={self.ports['replay']}",
            f"--logdir={self.folder / 'replay'}",
            f"--set=replay.samples_per_insert={samples_per_insert}",
            "--set=replay.min_size_to_sample=100",
            "--set=training.batch_size=16",
        )

    def start_network(self, version: int = 1) -> None:
        port = self.ports["network"]
        self.network = FakeNetwork(first_legal, GAME.config, port, version)

    def metric(self, name: str) -> float:
        url = f"http://{self.address('metrics')}/metrics"
        try:
            text = urllib.request.urlopen(url, timeout=5).read().decode()
        except OSError:
            return 0.0
        return sum(
            float(line.split()[-1])
            for line in text.splitlines()
            if line.startswith((f"{name} ", f"{name}{{"))
        )

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            if time.monotonic() > deadline:
                logs = "".join(c.log.read_text() for c in self.components)
                raise AssertionError(f"{what}: not in time\n{logs}")
            time.sleep(0.05)

    def wait_for_games(self, more: int = 20) -> None:
        before = self.metric("muprover_agent_games_total")
        self.wait_for(
            lambda: self.metric("muprover_agent_games_total") >= before + more, "more games"
        )

    def close(self) -> None:
        for component in self.components:
            component.kill()
        if self.network:
            self.network.close()


@pytest.fixture
def setting(tmp_path) -> Iterator[Setting]:
    with contextlib.closing(Setting(tmp_path)) as setting:
        yield setting


def test_an_agent_outlives_its_servers_and_loses_no_game(setting):
    agent = setting.start_agent()  # before any of them
    setting.start_network()
    environment = setting.start_environment()
    replay = setting.start_replay()
    setting.wait_for_games()

    environment.kill()
    environment.start()
    setting.wait_for_games()

    setting.network.close()
    time.sleep(0.3)
    setting.start_network(version=2)
    setting.wait_for_games()

    replay.kill()
    setting.wait_for(lambda: setting.metric("muprover_agent_queued_segments") > 0, "a queue")
    replay.start()
    setting.wait_for_games()

    assert resident_megabytes(agent.process.pid) < 150
    assert setting.metric("muprover_agent_network_version") == 2
    setting.wait_for(lambda: setting.metric("muprover_agent_wait_seconds_total") > 0, "waits")
    played = setting.metric("muprover_agent_games_total")
    assert agent.end() == 0
    games = stored_games(setting)
    finished = [game for game in games if game.terminated]
    assert len(finished) >= played
    assert len({game.key for game in games}) == len(games)
    assert {game.network_version for game in games} == {1, 2}
    log = agent.log.read_text()
    assert "Traceback" not in log
    assert "trying again" in log
    assert "going on after" in log


def test_an_agent_that_waits_for_room_and_is_stopped_loses_no_game(setting):
    """Row 40 of the traps."""
    setting.start_network()
    setting.start_replay(samples_per_insert="1.0")  # nobody samples: it is soon full
    with environment_server(GAME, port=setting.ports["environment"]):
        agent = setting.start_agent()
        waits_until_it_is_told_to_stop(setting, agent)


def test_an_agent_asks_for_the_signature_of_its_command_line(setting):
    setting.start_network()
    setting.start_environment()
    setting.start_replay()
    agent = setting.start_agent("--search-signature=search_xla", "--max-games-total=8")
    assert agent.process.wait(60) == 0
    assert setting.network.asked == {"about", "search_xla"}


def waits_until_it_is_told_to_stop(setting: Setting, agent: Component) -> None:
    waited = 'muprover_agent_wait_seconds_total{for="admit"}'
    setting.wait_for(lambda: setting.metric(waited) > 1, "waiting to be admitted")
    played = setting.metric("muprover_agent_games_total")
    assert agent.end() == 0
    finished = [game for game in stored_games(setting) if game.terminated]
    assert len(finished) == played > 0


def test_an_agent_knows_which_version_will_answer_first(setting):
    setting.start_network(version=700)
    with contextlib.ExitStack() as clients:
        address, stop = setting.address("network"), threading.Event()
        _, version = connect_network(address, "muprover", GAME.config, stop, clients)
    assert version == 700


def test_an_agent_of_another_game_is_refused_in_words(setting, caplog):
    setting.start_network()
    game = load_game("tictactoe", overrides=["training.discount=0.5"])
    nowhere = "localhost:1"
    with ThreadPoolExecutor() as pool:  # not in the main thread, whose signals are pytest's
        status = pool.submit(
            run,
            game,
            environment=nowhere,
            replay_buffer=nowhere,
            network=setting.address("network"),
        )
        assert status.result(60) == 1
    assert "does not fit: training.discount is 1.0 there, 0.5 here" in caplog.text


def stored_games(setting: Setting) -> list:
    with contextlib.closing(RemoteReplayBuffer(setting.address("replay"), GAME.config)) as replay:
        return list(replay.backup())


def resident_megabytes(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no VmHWM")
