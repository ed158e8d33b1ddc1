"""The components of a local run: a command line each, on ports, folders and threads of its own."""

from __future__ import annotations

import os
import shlex
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path

from muprover.config import Config, SettingsError
from muprover.model.compiled import VARIABLE as COMPILED
from muprover.runfolder import MODEL_NAME, RunFolder, num_cores
from muprover.services.locks import TLS, TLS_CLIENTS, TOKEN_FILE
from muprover.serving_config import (
    BATCHING_CONFIG,
    MODELS_CONFIG,
    MONITORING_CONFIG,
    ModelSettings,
    VersionPolicy,
    docker_command,
    stock_command,
    write_configs,
)
from muprover.supervisor import Component

FIRST_PORT, NUM_PORTS = 20_000, 12_000  # below those that systems give to outgoing connections
POLL_SECONDS = "0.25"  # how often the network server looks for a new version
NUM_SERVED = 4  # versions: an evaluation of one outlasts some exports

# The seconds that a component has for an orderly end. Trainers write a checkpoint and a version;
# agents wait for searches, and for the replay server to take their games.
GRACE_SECONDS = {"trainer": 60.0, "agent": 60.0}
DEFAULT_GRACE_SECONDS = 30.0
SLOW_TO_START = ("network", "trainer")  # they load TensorFlow, and compile


@dataclass(frozen=True)
class Layout:
    """What components are started, and with how much of the machine."""

    agents: int = 1
    games_per_agent: int | None = None  # None: as the settings say
    min_games: int = 1
    threads: int | None = None  # of TensorFlow, in trainer and network each; None: as suits them
    standby: bool = False  # whether a second trainer and network server are kept ready
    log_level: str = "info"
    log_format: str = "text"
    only: tuple[str, ...] | None = None  # of all components, those on this host

    @property
    def names(self) -> list[str]:
        """In the order of their start."""
        agents = [f"agent-{i + 1}" for i in range(self.agents)]
        names = ["replay", "environment", "network", "trainer", "evaluator", *agents]
        return names if self.only is None else [name for name in names if name in self.only]

    @property
    def trainer_threads(self) -> int:
        """One step at a time, on all cores."""
        return self.threads or num_cores()

    @property
    def network_threads(self) -> int:
        """Several searches at a time, each on few cores."""
        return self.threads or max(1, num_cores() // 2)


@dataclass(frozen=True)
class Ports:
    """Where components listen, and where they find each other."""

    environment: int
    replay: int
    network: int
    rest: int
    metrics: dict[str, int]  # by component
    host: str = "localhost"  # that servers listen on
    elsewhere: Mapping[str, str] = field(default_factory=dict)  # HOST:PORT of servers not here
    locks: Mapping[str, str] = field(default_factory=dict)  # in environment variables
    models: int = 0  # where the trainer gives its versions to a network server elsewhere

    @classmethod
    def choose(cls, layout: Layout) -> Ports:
        environment, replay, network, rest, *others = free_ports(4 + len(layout.names))
        return cls(environment, replay, network, rest, dict(zip(layout.names, others, strict=True)))

    def address(self, server: str) -> str:
        return self.elsewhere.get(server) or f"localhost:{getattr(self, server)}"


def make_components(
    layout: Layout,
    ports: Ports,
    folder: RunFolder,
    config: Config,
    seed: int,
    chance: int | None,
) -> list[Component]:
    """The components in the order of their start; writes the network server's files.

    seed: of the run. chance: of what must differ in each session of it; None: drawn by each
    process.
    """
    commands = _commands(layout, ports, folder, seed, chance)
    if "network" in layout.names:
        files = write_serving_files(layout, ports, folder, config)
        commands["network"] = _network_command(layout, ports, files)
    everywhere = ["--log-level", layout.log_level, "--log-format", layout.log_format]
    environment = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    if ports.host == "localhost" and not ports.locks:  # nobody else gets in here
        environment |= dict.fromkeys((TLS, TLS_CLIENTS, TOKEN_FILE), "")
    environment |= ports.locks
    return [
        Component(
            name,
            [*commands[name], *_metrics(name, ports), *everywhere],
            folder.log(name),
            grace_seconds=GRACE_SECONDS.get(name.partition("-")[0], DEFAULT_GRACE_SECONDS),
            environment=environment | _compiled(name, layout, folder),
            has_standby=layout.standby and name in SLOW_TO_START,
        )
        for name in layout.names
    ]


def _compiled(name: str, layout: Layout, folder: RunFolder) -> dict[str, str]:
    """Where a component keeps what XLA compiles, which depends on its threads."""
    if name not in SLOW_TO_START:
        return {}
    threads = layout.trainer_threads if name == "trainer" else layout.network_threads
    return {COMPILED: str((folder.compiled / f"{name}-{threads}").resolve())}


def _commands(
    layout: Layout,
    ports: Ports,
    folder: RunFolder,
    seed: int,
    chance: int | None,
) -> dict[str, list[str]]:
    """Words after `muprover`, by component; all but the network server's."""
    game = ["--game", folder.source, "--config", str(folder.settings)]
    here = ["--host", ports.host]
    same = ["--seed", str(seed)]
    other = [] if chance is None else ["--seed", str(chance)]
    replay = ["--replay-buffer", ports.address("replay")]
    servers = ["--environment", ports.address("environment")]
    servers += ["--network", ports.address("network")]
    commands = {
        "replay": [
            *("replay", *game, *here, "--port", str(ports.replay)),
            *("--logdir", str(folder.replay), *other),
        ],
        "environment": ["environment", *game, *here, "--port", str(ports.environment)],
        "trainer": [
            *("trainer", *game, *replay, *same, "--min-games", str(layout.min_games)),
            *("--saved-models", str(folder.models), "--logdir", str(folder.path)),
            *("--threads", str(layout.trainer_threads)),
            *(["--model-port", str(ports.models)] if ports.models else []),
        ],
        "evaluator": [
            *("evaluate", *game, *servers, *same, "--watch"),
            *("--output", str(folder.evaluations)),
        ],
    }
    games = ["--num-games", str(layout.games_per_agent)] if layout.games_per_agent else []
    for name in layout.names:
        if name.startswith("agent"):
            agent = ["agent", *game, *servers, *replay, *other, "--agent-name", name, *games]
            commands[name] = agent
    return commands


def _metrics(name: str, ports: Ports) -> list[str]:
    """Where a component tells its figures: on this machine only. Servers have one host for all."""
    here = [] if name in ("replay", "environment", "network") else ["--metrics-host", "localhost"]
    return ["--metrics-port", str(ports.metrics[name]), *here]


def _network_command(layout: Layout, ports: Ports, files: dict[str, Path]) -> list[str]:
    source = ports.elsewhere.get("models")
    return [
        *("network", "--host", ports.host),
        *("--port", str(ports.network), "--rest-api-port", str(ports.rest)),
        *("--model-config-file", str(files[MODELS_CONFIG])),
        *("--monitoring-config-file", str(files[MONITORING_CONFIG])),
        *("--enable-batching", "--batching-parameters-file", str(files[BATCHING_CONFIG])),
        *("--file-system-poll-wait-seconds", POLL_SECONDS),
        *("--tensorflow-intra-op-parallelism", str(layout.network_threads)),
        "--enable-serialization-as-tensor-content",
        *(["--model-source", source] if source else []),
    ]


def write_serving_files(
    layout: Layout, ports: Ports, folder: RunFolder, config: Config
) -> dict[str, Path]:
    """The network server's files, also for the stock server, with its command lines."""
    models = [
        ModelSettings(MODEL_NAME, str(folder.models.resolve()), VersionPolicy("latest", NUM_SERVED))
    ]
    games = layout.games_per_agent or config.self_play.games_per_agent
    group = max((games + 1) // 2, config.games_per_search)
    sizes = {group} if layout.agents == 1 else {group, 2 * group}  # each is compiled
    files = write_configs(folder.serving, models, sizes)
    docker = (files, folder.models, ports.network, ports.rest)
    commands = {
        "the stock binary": stock_command(files, ports.network, ports.rest),
        "its Docker image": docker_command(*docker),
        "its GPU image": docker_command(*docker, gpu=True, xla=True),
    }
    text = "\n\n".join(f"# {name}\n{shlex.join(words)}" for name, words in commands.items())
    (folder.serving / "stock-commands.txt").write_text(text + "\n", encoding="utf-8")
    return files


def free_ports(number: int) -> list[int]:
    """So many ports on which nobody listens now.

    Processes begin the search in different places. The ports are none that an outgoing connection
    may get: a component that is started again must find its own free.
    """
    offset = os.getpid() * 64
    candidates = (FIRST_PORT + (offset + i) % NUM_PORTS for i in count())
    ports = list(islice(_free(candidates), number))
    if len(ports) < number:
        raise SettingsError(
            f"no {number} free ports from {FIRST_PORT} to {FIRST_PORT + NUM_PORTS}: is all in use?"
        )
    return ports


def _free(candidates: Iterator[int]) -> Iterator[int]:
    for port in islice(candidates, NUM_PORTS):
        if can_listen(port):
            yield port


def can_listen(port: int) -> bool:
    """Whether nobody listens on it now, and we may."""
    try:
        with listen_everywhere(port):
            return True
    except OSError:
        return False


def listen_everywhere(port: int) -> socket.socket:
    """On all addresses of this machine."""
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    return socket.create_server(("", port), family=family, dualstack_ipv6=both)
