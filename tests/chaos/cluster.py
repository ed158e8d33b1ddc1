"""The same on a cluster: pods of a release are killed, and all acknowledged games accounted for.

    KUBECONFIG=… make chaos ARGS="--cluster --release muprover --minutes 10 --interval 30"

Install the release with `--set common.logLevel=debug`, so that agents say what was acknowledged,
and with a `config.replay.max_size` that nothing is evicted from. A pod that is deleted without
grace is killed as kill −9 does; what its agent had said until then is read just before.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from chaos.ledger import ACKNOWLEDGED, Key
from muprover.cluster.connection import Cluster, ClusterError
from muprover.cluster.release import Pod, Release, option_of, words_of
from muprover.replay.records import GAME, read_records
from muprover.v1 import replay_pb2

LOOK_SECONDS = 0.5
ALL_LINES = 1_000_000_000
WAIT_SECONDS = 300.0
BACKUP = """
import sys, tempfile
from pathlib import Path
from muprover.game import load_game
from muprover.services.replay_backup import backup
_, port, *game_and_config = sys.argv
game = load_game(*game_and_config)
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "backup"
    backup("localhost:" + port, game.config, path)
    sys.stdout.buffer.write(path.read_bytes())
"""


class Death(NamedTuple):
    """A pod that was killed."""

    component: str
    pod: str
    ready_after: float | None  # seconds until the component had as many ready pods as before


class Field:
    """A release, and what its agents have said was acknowledged."""

    def __init__(self, release: Release) -> None:
        self.release = release
        self.acknowledged: set[Key] = set()

    def kill(self, pod: Pod) -> Death:
        if pod.component == "agent":
            self.listen(pod)
        before = self._ready(pod.component)
        cluster = self.release.cluster
        began = time.monotonic()
        cluster.ask(cluster.core.delete_namespaced_pod, pod.name, grace_period_seconds=0)
        while time.monotonic() < began + WAIT_SECONDS:
            time.sleep(LOOK_SECONDS)
            ready = self._ready(pod.component)
            if pod.name not in ready and len(ready) >= len(before):
                return Death(pod.component, pod.name, time.monotonic() - began)
        return Death(pod.component, pod.name, None)

    def listen(self, pod: Pod) -> None:
        """Takes note of what an agent's log acknowledges."""
        cluster = self.release.cluster
        log = cluster.read(
            cluster.core.read_namespaced_pod_log,
            pod.name,
            container=pod.main_container,
            tail_lines=ALL_LINES,
        )
        for line in log.decode(errors="replace").splitlines():
            if "acknowledged" in line:
                self.acknowledged |= {(int(g, 16), int(s)) for g, s in ACKNOWLEDGED.findall(line)}

    def stored(self) -> Counter[Key]:
        """What the replay server streams."""
        [pod] = self.release.pods("replay")
        words = words_of(pod.body["spec"]["containers"][0])
        given = [option_of(words, "--game"), option_of(words, "--config")]
        port = option_of(words, "--port") or "50001"
        command = ["python", "-c", BACKUP, port, *(word for word in given if word)]
        parts = self.release.cluster.execute(pod.name, pod.main_container, command)
        return Counter(_keys(parts))

    def _ready(self, component: str) -> set[str]:
        return {pod.name for pod in self.release.pods(component) if pod.is_ready}


def main() -> int:
    args = parse()
    rng = random.Random(args.seed)
    try:
        field = Field(Release(Cluster(namespace=args.namespace), args.release))
        deaths = list(let_die(field, rng, args))
        for pod in field.release.pods("agent"):
            field.listen(pod)
        known = set(field.acknowledged)
        stored = field.stored()
    except ClusterError as error:
        print(f"chaos: {error}", file=sys.stderr)
        return 1
    lost = known - set(stored)
    doubled = sum(count > 1 for count in stored.values())
    show(deaths)
    print(f"\nacknowledged {len(known):,}, stored {len(stored):,}, lost {len(lost)}, ", end="")
    print(f"doubled {doubled}")
    return 1 if lost or doubled or any(death.ready_after is None for death in deaths) else 0


def let_die(field: Field, rng: random.Random, args: argparse.Namespace) -> Iterator[Death]:
    began = time.monotonic()
    while time.monotonic() < began + 60 * args.minutes:
        started = time.monotonic()
        pods = [pod for pod in field.release.pods() if pod.is_ready]
        if pods:
            death = field.kill(rng.choice(pods))
            after = "not" if death.ready_after is None else f"{death.ready_after:.1f} s"
            print(f"{death.component} {death.pod}: ready again after {after}", flush=True)
            yield death
        time.sleep(max(LOOK_SECONDS, started + args.interval - time.monotonic()))


def show(deaths: list[Death]) -> None:
    print("\n| component | killed | ready again, median | most |\n|---|---|---|---|")
    for component in dict.fromkeys(death.component for death in deaths):
        mine = [death.ready_after for death in deaths if death.component == component]
        times = sorted(seconds for seconds in mine if seconds is not None) or [float("nan")]
        print(f"| {component} | {len(mine)} | {times[len(times) // 2]:.1f} s | {times[-1]:.1f} s |")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--cluster", action="store_true", help="this, on the cluster of KUBECONFIG")
    add("--game", help=argparse.SUPPRESS)  # which `make chaos` names: here it is the release's
    add("--release")
    add("--namespace")
    add("--minutes", type=float, default=10.0)
    add("--interval", type=float, default=30.0, help="s between two kills (default: %(default)g)")
    add("--seed", type=int, default=0)
    return parser.parse_args()


def _keys(parts: Iterator[bytes]) -> Iterator[Key]:
    """Of the games of a backup."""
    with tempfile.TemporaryFile() as file:
        for part in parts:
            file.write(part)
        length = file.tell()
        for kind, data, _ in read_records(file, Path("backup"), length):
            if kind == GAME:
                game = replay_pb2.GameHistory.FromString(data)
                yield game.game_id, game.segment
