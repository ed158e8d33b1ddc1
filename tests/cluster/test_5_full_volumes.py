"""Volumes that are full. Each of them is memory with a limit here, which every cluster enforces."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from installed import PULL_POLICY, SECURITY, Installed, image
from kubectl import Kubectl, restarts, wait_for

RUN = "full"
SIZE = "96Mi"

FILL = """
import os, sys
with open(sys.argv[1] + "/filler", "wb") as file:
    for size in (1 << 20, 1 << 12, 1):
        try:
            while True:
                os.write(file.fileno(), b"x" * size)
        except OSError as error:
            print(error.strerror)
"""
FREE = "import os, sys; os.remove(sys.argv[1] + '/filler')"
HALVES = """
import os, sys
for name in sorted(os.listdir(sys.argv[1])):
    folder = f"{sys.argv[1]}/{name}"
    whole = os.path.exists(f"{folder}/saved_model.pb") and os.listdir(f"{folder}/variables")
    if name.isdigit() and not whole:
        print(name)
"""


def volume(name: str, path: str) -> dict[str, Any]:
    """Values of a component that has a small volume at `path`."""
    source = {"name": name, "emptyDir": {"medium": "Memory", "sizeLimit": SIZE}}
    return {
        "extraVolumes": [source],
        "extraVolumeMounts": [{"name": name, "mountPath": path}],
    }


def values(fullname: str) -> dict[str, Any]:
    """All three volumes small; the network server is in the trainer's pod, where the models are."""
    network = {
        "name": "network",
        "image": image("network"),
        "imagePullPolicy": PULL_POLICY,
        "args": [
            *("network", "--port", "8500", "--metrics-port", "9091"),
            *("--model-name", "muprover", "--model-base-path", f"/models/{RUN}"),
        ],
        "securityContext": SECURITY,
        "resources": {"requests": {"cpu": "50m"}, "limits": {"memory": "2Gi"}},
        "volumeMounts": [
            {"name": "models", "mountPath": "/models", "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},
        ],
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": f"{fullname}-beside", "namespace": "{{ .Release.Namespace }}"},
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {
                "app.kubernetes.io/instance": "{{ .Release.Name }}",
                "app.kubernetes.io/component": "trainer",
            },
            "ports": [{"name": "grpc", "port": 8500}],
        },
    }
    return {
        "runName": RUN,
        "extraManifests": [service],
        "networkPolicy": {"enabled": False},
        "evaluator": {"enabled": False},
        "network": {"replicaCount": 0},
        "models": {
            "persistence": {"volume": {"emptyDir": {"medium": "Memory", "sizeLimit": SIZE}}}
        },
        "trainer": {"checkpoint": {"persistence": {"enabled": False}}, "sidecars": [network]}
        | volume("small", f"/checkpoints/{RUN}"),
        "replay": {"persistence": {"enabled": False}} | volume("small", f"/replay/{RUN}"),
        "agent": {
            "autoscaling": {"type": "none"},
            "replicaCount": 1,
            "parallelGames": 16,
            "extraArgs": ["--network", f"dns:///{fullname}-beside:8500"],
        },
        "config": {
            "training": {"export_interval": 50, "batch_size": 64},
            "replay": {"min_size_to_sample": 500},
        },
    }


@pytest.fixture(scope="module")
def small(namespaces: Callable[[], Kubectl], release: Installed) -> Iterator[Installed]:
    """A release with small volumes; the one of the other tests rests."""
    release.kubectl("scale", release.workload("agent"), "--replicas=0")
    kubectl = namespaces()
    small = Installed(kubectl, "small")
    small.install(values=values(small.fullname))
    small.wait_training()
    yield small
    small.helm("uninstall", "small")
    release.kubectl("scale", release.workload("agent"), "--replicas=1")


@contextmanager
def filled(release: Installed, component: str, path: str) -> Iterator[None]:
    (pod,) = release.pods(component)
    name = pod["metadata"]["name"]
    said = release.kubectl.python(name, FILL, path, container=component)
    assert "No space left on device" in said
    try:
        yield
    finally:
        release.kubectl.python(name, FREE, path, container=component)


def export_failures(release: Installed) -> float:
    return release.metric("trainer", "muprover_trainer_export_failures_total")


def num_restarts(release: Installed) -> int:
    return sum(map(restarts, release.pods()))


@pytest.mark.row("5a", "models volume full")
def test_models_have_no_room(small: Installed, saw: Any) -> None:
    before, failed = num_restarts(small), export_failures(small)
    (pod,) = small.pods("trainer")
    trainer = pod["metadata"]["name"]
    with filled(small, "trainer", f"/models/{RUN}"):
        wait_for("failed export", lambda: export_failures(small) > failed, 180)
        version = small.metric("agent", "muprover_agent_network_version")
        small.wait_growth("trainer", "muprover_trainer_steps")
        small.wait_growth("agent", "muprover_agent_moves_total")
        halves = small.kubectl.python(trainer, HALVES, f"/models/{RUN}", container="trainer")
        assert not halves.split()
        assert small.says("trainer", "no space left for it")
        saw(f"said in the log and counted; steps went on; version {version:.0f} stayed served")
    exported = small.metric("trainer", "muprover_trainer_exported_version")
    wait_for(
        "new version",
        lambda: small.metric("agent", "muprover_agent_network_version") > max(version, exported),
        180,
    )
    assert num_restarts(small) == before
    saw("with room again the next export was served; no half version, no restart, no other help")


@pytest.mark.row("5b", "checkpoints volume full")
def test_checkpoints_have_no_room(small: Installed, saw: Any) -> None:
    before, failed = num_restarts(small), export_failures(small)
    with filled(small, "trainer", f"/checkpoints/{RUN}"):
        wait_for("failed checkpoint", lambda: export_failures(small) > failed, 180)
        small.wait_growth("trainer", "muprover_trainer_steps")
        saw("checkpoint and export fail, counted and logged; steps went on")
    small.wait_growth("trainer", "muprover_trainer_exported_version", 180)
    assert num_restarts(small) == before
    saw("with room again both succeeded; nothing restarted")


@pytest.mark.row("5c", "replay volume full")
def test_games_have_no_room(small: Installed, saw: Any) -> None:
    before = num_restarts(small)
    with filled(small, "replay", f"/replay/{RUN}"):
        wait_for("complaint", lambda: small.says("replay", "No space left on device"), 180)
        inserted = small.metric("replay", "muprover_replay_inserted_games_total")
        waiting = wait_for(
            "games that agents keep",
            lambda: small.metric("agent", "muprover_agent_queued_segments"),
            120,
        )
        saw(f"ENOSPC in the log; nothing acknowledged any more; agents keep {waiting:.0f} games")
    small.wait_growth("replay", "muprover_replay_inserted_games_total", 120)
    wait_for(
        "games that were kept",
        lambda: small.metric("replay", "muprover_replay_inserted_games_total") > inserted + waiting,
        120,
    )
    assert small.metric("agent", "muprover_agent_refused_segments_total") == 0
    assert num_restarts(small) == before
    saw("with room again they were all taken; none refused, nothing restarted")
