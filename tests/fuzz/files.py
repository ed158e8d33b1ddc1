"""Files that MuProver reads: settings, games, the stock server's, a run's, the replay store's."""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import re
import shutil
from collections.abc import Callable, Iterable
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

from fuzz.mutate import Mutator, join, records, several, split, text
from fuzz.replay import config as replay_config
from fuzz.replay import games
from fuzz.target import Feed, Target
from muprover.config import Config, SettingsError
from muprover.game import load_game
from muprover.hosts.hostsfile import EXAMPLE, SERVICES, read_hosts
from muprover.launcher import RunOptions, prepare
from muprover.layers import load_file, load_settings, parse_override
from muprover.model.serving.flags import add_arguments, read_options
from muprover.progress import EvaluationLog, describe_evaluation, read_metrics
from muprover.replay.durable import DurableReplay
from muprover.replay.records import CONTRACT, COUNTERS, GAME, encode
from muprover.replay.store import Store
from muprover.runfolder import RunFolder
from muprover.services.client import ContractError
from muprover.services.replay_backup import read_backup
from muprover.v1 import replay_pb2

REPOSITORY = Path(__file__).parents[2]
KINDS = {
    GAME: replay_pb2.GameHistory,
    COUNTERS: replay_pb2.ReplayCounters,
    CONTRACT: replay_pb2.ContractResponse,
}
SETTING_WORDS = (
    *("search", "training", "replay", "network", "type", "mlp", "resnet", "custom", "options"),
    *("evaluation", "goal", "metric", "at_most", "game", "num_actions", "symmetries", "square"),
)


def file(read: Callable[[Path], Any], name: str = "file") -> Callable[[Path], Feed]:
    """Writes the data to a file, and lets it be read."""

    def open_target(folder: Path) -> Feed:
        path = folder / name

        def feed(data: bytes) -> None:
            path.write_bytes(data)
            refused(lambda: read(path))

        return feed

    return open_target


def refused(read: Callable[[], Any]) -> bool:
    """Whether what is read is refused in words."""
    try:
        read()
    except (SettingsError, ContractError) as error:
        return bool(str(error))
    return False


# Settings


def read_settings(path: Path) -> Config:
    return load_settings(base_settings(), [load_file(str(path))])


def base_settings() -> Config:
    return load_game("tictactoe").config


def open_override(folder: Path) -> Feed:
    base = base_settings()

    def feed(data: bytes) -> None:
        override = data.decode("utf-8", "replace")
        refused(lambda: load_settings(base, [parse_override(override)]))

    return feed


def settings() -> list[bytes]:
    """As JSON, which is YAML that is read faster; and some YAML."""
    return [
        json.dumps(base_settings().model_dump(mode="json")).encode(),
        b"search: {num_simulations: 8}\nnetwork:\n  type: resnet\n  num_channels: 4\n",
        b"self_play:\n  temperatures: [[0, 1.0], [100, 0.5]]\nevaluation: {goal: null}\n",
    ]


# hosts.config


def read_hosts_file(path: Path) -> None:
    hosts = read_hosts(path)
    for host in hosts.names:
        hosts.ports(host)
        assert hosts.components(host)
    assert hosts.agents >= 1


def hosts_files() -> list[bytes]:
    three = "environment a:1\nreplay me@b:2\nnetwork [::1]:3\ntraining c:9\nagent a:2\nagent c:1\n"
    return [EXAMPLE.encode(), three.encode(), f"{three}evaluator a".encode()]


# Games: code, so what is fuzzed is how it goes wrong, and no word of it does harm.

PIECES = (
    "import numpy as np",
    "from muprover.config import Config, GameConfig",
    "def make_config():\n    return Config(game=GameConfig(name='g', observation_shape=(2,),"
    " num_actions=2, max_moves=3))",
    "def make_config():\n    return 3",
    "def make_config():\n    raise KeyError('name')",
    "def make_config(size):\n    return None",
    "def make_config():\n    return Config(game=GameConfig(name='9'))",
    "make_config = None",
    "make_config = Config",
    "raise SystemExit(3)",
    "raise RuntimeError",
    "1 / 0",
    "import nowhere",
    "def make_environment():\n    return None",
    "make_environment = 'none'",
    "\x00",
    "# coding: nonsense",
    "    x = (",
    "'" + "é" * 9,
    "x = " + "(" * 300,
)


def mutate_game(data: bytes, rng: random.Random) -> bytes:
    """Pieces taken away, put in, or swapped; bytes that are no text now and then."""
    pieces = data.decode("utf-8", "replace").split("\n\n")
    at = rng.randrange(len(pieces) + 1)
    pieces[at : at + rng.randrange(2)] = rng.choices(PIECES, k=rng.randrange(3))
    made = "\n\n".join(pieces[:40]).encode()
    return made if rng.randrange(20) else made + b"\xff\xfe"


def open_game(folder: Path) -> Feed:
    """Only sequences of known pieces are run: whatever else the data holds is left out."""
    known, path = set(PIECES), folder / "game.py"

    def feed(data: bytes) -> None:
        parts = data.decode("utf-8", "surrogateescape").split("\n\n")
        safe = [p for p in parts if p in known or not re.search(r"[\w!-~]", p)]
        path.write_bytes("\n\n".join(safe).encode("utf-8", "surrogateescape"))
        refused(lambda: load_game(str(path)))

    return feed


def game_files() -> list[bytes]:
    return ["\n\n".join(PIECES[:3]).encode(), "\n\n".join((*PIECES[:3], PIECES[14])).encode()]


# The stock server's text files


@cache
def parser() -> argparse.ArgumentParser:
    """Of `muprover network`; to make one takes longer than what is tried."""
    made = argparse.ArgumentParser()
    add_arguments(made)
    made.set_defaults(metrics_port=None)
    return made


def flags(path: Path, flag: str) -> Any:
    words = [f"--{flag}", str(path)]
    if flag != "model-config-file":
        words += ["--model-base-path", "/models"]
    return read_options(parser().parse_args([*words, "--enable-batching"]))


def server_file(flag: str) -> Callable[[Path], Feed]:
    return file(lambda path: flags(path, flag))


MODELS = b"""model_config_list { config { name: "m" base_path: "/models/m" model_platform:
"tensorflow" model_version_policy { specific { versions: 3 versions: 4 } }
version_labels { key: "stable" value: 3 } } }
"""
BATCHING = b"""max_batch_size { value: 8 } batch_timeout_micros { value: 100 }
max_enqueued_batches { value: 9 } num_batch_threads { value: 2 }
allowed_batch_sizes: 2 allowed_batch_sizes: 8
"""
MONITORING = b'prometheus_config { enable: true path: "/monitoring/prometheus/metrics" }\n'
PROTO_WORDS = ("specific", "all", "latest", "{", "}", "<", ">", "value", "key", "config", "1e9")


# A run's folder: `run.json`, `settings.yaml`, `result.json`


def open_run(folder: Path) -> Feed:
    path = folder / "run"
    path.mkdir()

    def feed(data: bytes) -> None:
        for name, body in zip(
            ("run.json", "settings.yaml", "result.json"), split(data), strict=False
        ):
            (path / name).write_bytes(body)
        options = RunOptions(source="tictactoe", folder=path)
        refused(lambda: (prepare(options), RunFolder(path).read_result()))

    return feed


def runs() -> list[bytes]:
    facts = {"game": "tictactoe", "seed": 0, "name": "run"}
    result = {"sessions": 1, "wall_clock_seconds": 3.5, "games": 9, "steps": 7, "evaluation": {}}
    return [join([json.dumps(facts).encode(), settings()[0], json.dumps(result).encode()])]


def open_evaluations(folder: Path) -> Feed:
    """A file that grows as it is read; the reader has no ground to refuse anything."""
    path = folder / "evaluations.jsonl"

    def feed(data: bytes) -> None:
        path.write_bytes(b"")
        log = EvaluationLog(path)
        for at in range(0, len(data), max(1, len(data) // 3)):
            path.write_bytes(data[: at + len(data) // 3 + 1])
            newest = log.newest()
            assert isinstance(newest, dict)
            describe_evaluation(newest)

    return feed


def evaluations() -> list[bytes]:
    line = {"version": 3, "metrics": {"lost_lines": 4.0}, "goal_met": False, "step": 9}
    text = json.dumps(line) + "\n"
    return [text.encode() * 2, (text[:20] + text).encode()]


def open_metrics(folder: Path) -> Feed:
    def feed(data: bytes) -> None:
        with contextlib.suppress(ValueError):  # which `scrape` takes for no answer
            read_metrics(data.decode("utf-8", "replace"))

    return feed


def metrics() -> list[bytes]:
    return [b'# HELP x\nmuprover_steps 3.0\nmuprover_loss{part="total"} NaN\nmuprover_x_bucket 1\n']


# The replay store and its backups


def open_store(folder: Path) -> Feed:
    """A log that is anything: what it still holds is loaded, and what is added then stays."""
    number, sound = count(1 << 40), games(9)[1]

    def feed(data: bytes) -> None:
        path = folder / "store"
        path.mkdir()
        (path / "games-00000001.log").write_bytes(data)
        sound.game_id = next(number)
        try:
            replay = DurableReplay(replay_config(), path)
            [added] = replay.add([[sound]])
            assert not isinstance(added, Exception), added
            replay.close()
            replay = DurableReplay(replay_config(), path)
            assert (sound.game_id, 0) in replay.buffer, "an acknowledged game is lost"
            assert sum(game.game_id == sound.game_id for game in replay.games()) == 1
            replay.close()
        finally:
            shutil.rmtree(path)

    return feed


def stores() -> list[bytes]:
    counters = replay_pb2.ReplayCounters(
        inserted_games=4, inserted_positions=17, sampled_positions=9
    )
    made = [encode(GAME, game.SerializeToString()) for game in games(5)]
    whole = b"".join((*made, encode(COUNTERS, counters.SerializeToString())))
    return [whole, whole[:-9], b"", made[0] + b"\x00" * 40 + made[1]]


def open_identity(folder: Path) -> Feed:
    """`store.json`."""
    path = folder / "store"
    path.mkdir()

    def feed(data: bytes) -> None:
        (path / "store.json").write_bytes(data)
        refused(lambda: Store(path, replay_config().contract).close())

    return feed


def identities() -> list[bytes]:
    return [json.dumps({"format": "1", **replay_config().contract}).encode(), b'{"format": "2"}']


def backups() -> list[bytes]:
    contract = replay_pb2.ContractResponse(contract=replay_config().contract)
    head = encode(CONTRACT, contract.SerializeToString())
    made = [encode(GAME, game.SerializeToString()) for game in games(6)]
    return [head + b"".join(made), head, head + made[0][:-3]]


def damaged(mutate: Mutator) -> Mutator:
    """As `mutate`, or by single bytes, which checksums must notice."""
    from fuzz.mutate import mutate_bytes

    return lambda data, rng: (mutate if rng.randrange(3) else mutate_bytes)(data, rng)


def length(items: Iterable[Any]) -> int:
    return sum(1 for _ in items)


RECORDS = damaged(records(KINDS))
TARGETS = [
    Target("file.settings", file(read_settings), settings, text(SETTING_WORDS), 0.5),
    Target(
        "file.--set",
        open_override,
        lambda: [b"search.num_simulations=8", b"network={type: custom, options: {a: [1]}}"],
        text(SETTING_WORDS),
    ),
    Target(
        "file.hosts.config",
        file(read_hosts_file),
        hosts_files,
        text((*SERVICES, "localhost", "training", "10000", "65535", "@", "[::1]")),
    ),
    Target("file.game", open_game, game_files, mutate_game, 0.5),
    Target(
        "file.models.config", server_file("model-config-file"), lambda: [MODELS], text(PROTO_WORDS)
    ),
    Target(
        "file.batching.config",
        server_file("batching-parameters-file"),
        lambda: [BATCHING],
        text(PROTO_WORDS),
    ),
    Target(
        "file.monitoring.config",
        server_file("monitoring-config-file"),
        lambda: [MONITORING],
        text(PROTO_WORDS),
    ),
    Target("file.run", open_run, runs, several(text(SETTING_WORDS)), 0.3),
    Target("file.evaluations", open_evaluations, evaluations, text(("version", "metrics"))),
    Target("file.metrics", open_metrics, metrics, text(("muprover_", "+Inf"))),
    Target("file.store", open_store, stores, RECORDS, 0.5),
    Target("file.store.json", open_identity, identities, text(("format", "1"))),
    Target(
        "file.backup",
        file(lambda path: length(read_backup(path, replay_config()))),
        backups,
        RECORDS,
    ),
]
