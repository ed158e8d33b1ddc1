"""The components of a local run: a command line each, on ports, folders and threads of its own."""

from __future__ import annotations

import os
import shlex
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path

from muprover.config import Config, SettingsError
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

# The seconds that a component has for an orderly end. Trainers write a checkpoint and a version.
GRACE_SECONDS = {"trainer": 60.0}
DEFAULT_GRACE_SECONDS = 30.0


@dataclass(frozen=True)
class Layout:
    """What components are started, and with how much of the machine."""

    agents: int = 1
    games_per_agent: int | None = None  # None: as the settings say
    min_games: int = 1
    threads: int | None = None  # of TensorFlow, in trainer and network each; None: as suits them
    log_level: str = "info"
    log_format: str = "text"

    @property
    def names(self) -> list[str]:
        """In the order of their start."""
        agents = [f"agent-{i + 1}" for i in range(self.agents)]
        return ["replay", "environment", "network", "trainer", "evaluator", *agents]

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
    """Where components of a local run listen."""

    environment: int
    replay: int
    network: int
    rest: int
    metrics: dict[str, int]  # by component

    @classmethod
    def choose(cls, layout: Layout) -> Ports:
        environment, replay, network, rest, *others = free_ports(4 + len(layout.names))
        return cls(environment, replay, network, rest, dict(zip(layout.names, others, strict=True)))


def make_components(
    layout: Layout, ports: Ports, folder: RunFolder, config: Config, seed: int, chance: int
) -> list[Component]:
    """The components in the order of their start; writes the network server's files.

    seed: of the run. chance: of what must differ in each session of it.
    """
    files = write_serving_files(layout, ports, folder, config)
    commands = _commands(layout, ports, folder, files, seed, chance)
    everywhere = ["--log-level", layout.log_level, "--log-format", layout.log_format]
    environment = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    environment |= dict.fromkeys((TLS, TLS_CLIENTS, TOKEN_FILE), "")  # nobody else gets in here
    return [
        Component(
            name,
            [*commands[name], *_metrics(name, ports), *everywhere],
            folder.log(name),
            grace_seconds=GRACE_SECONDS.get(name, DEFAULT_GRACE_SECONDS),
            environment=environment,
        )
        for name in layout.names
    ]


def _commands(
    layout: Layout,
    ports: Ports,
    folder: RunFolder,
    files: dict[str, Path],
    seed: int,
    chance: int,
) -> dict[str, list[str]]:
    """Words after `muprover`, by component."""
    game = ["--game", folder.source, "--config", str(folder.settings)]
    here = ["--host", "localhost"]
    same, other = ["--seed", str(seed)], ["--seed", str(chance)]
    replay = ["--replay-buffer", f"localhost:{ports.replay}"]
    servers = ["--environment", f"localhost:{ports.environment}"]
    servers += ["--network", f"localhost:{ports.network}"]
    commands = {
        "replay": [
            *("replay", *game, *here, "--port", str(ports.replay)),
            *("--logdir", str(folder.replay), *other),
        ],
        "environment": ["environment", *game, *here, "--port", str(ports.environment)],
        "network": [
            *("network", *here, "--port", str(ports.network), "--rest-api-port", str(ports.rest)),
            *("--model-config-file", str(files[MODELS_CONFIG])),
            *("--monitoring-config-file", str(files[MONITORING_CONFIG])),
            *("--enable-batching", "--batching-parameters-file", str(files[BATCHING_CONFIG])),
            *("--file-system-poll-wait-seconds", POLL_SECONDS),
            *("--tensorflow-intra-op-parallelism", str(layout.network_threads)),
            "--enable-serialization-as-tensor-content",
        ],
        "trainer": [
            *("trainer", *game, *replay, *same, "--min-games", str(layout.min_games)),
            *("--saved-models", str(folder.models), "--logdir", str(folder.path)),
            *("--threads", str(layout.trainer_threads)),
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
        try:
            with socket.create_server(
                ("", port),
                family=socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET,
                dualstack_ipv6=socket.has_dualstack_ipv6(),
            ):
                pass
        except OSError:
            continue
        yield port
