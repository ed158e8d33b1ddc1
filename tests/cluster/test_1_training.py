"""A release as most users install it: it comes up, trains, is looked at, and learns."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from installed import COMPONENTS, Installed, Toolbox
from kubectl import SLOWNESS, condition_time, restarts, wait_for

FIRST_GAME_SECONDS = 180
LEARN_SECONDS = 900


@pytest.mark.row("1", "`helm install --wait` on empty volumes, images present")
def test_it_comes_up_in_order(release: Installed, saw: Any) -> None:
    if release.first_game_seconds is None:
        pytest.skip("the release was there already")
    (network,) = release.kubectl.pods(release.selector("network"))
    ready = condition_time(network, "Ready")
    assert ready is not None
    (first, *_) = [line for line in release.logs("trainer") if "exported version 1 " in str(line)]
    exported = datetime.fromisoformat(first["time"]).timestamp()
    assert exported <= ready + 1
    crashed = {pod["metadata"]["name"]: restarts(pod) for pod in release.pods()}
    assert not any(crashed.values()), crashed
    saw(f"first game stored after {release.first_game_seconds:.0f} s")
    saw(f"all ready after {release.ready_seconds:.0f} s")
    saw(f"network ready {ready - exported:.0f} s after the first export; nothing restarted")
    assert release.first_game_seconds <= FIRST_GAME_SECONDS * SLOWNESS


@pytest.mark.row("17", "namespace with PodSecurity `restricted`, a ResourceQuota and a LimitRange")
def test_a_strict_namespace_is_no_trouble(release: Installed, saw: Any) -> None:
    labels = release.kubectl.json("get", "namespace", release.kubectl.namespace)["metadata"][
        "labels"
    ]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    used = release.kubectl.json("get", "resourcequota", "quota")["status"]["used"]
    assert int(used["pods"]) >= len(COMPONENTS)
    refused = [
        event["message"]
        for event in release.kubectl.json("get", "events")["items"]
        if event["reason"] == "FailedCreate"
    ]
    assert not refused
    saw(f"installed unchanged: {used['pods']} pods, {used['requests.cpu']} cores asked for")


@pytest.mark.row("helm test", "`helm test`")
def test_a_game_passes_through_all_components(release: Installed, saw: Any) -> None:
    out = release.helm("test", release.name, "--timeout", "600s")
    assert out.count("Succeeded") == 2, out
    saw("both pods succeeded: environment check, and a game through all components")


@pytest.mark.row("status", "`muprover cluster status`, `logs`, `download`")
def test_muprover_cluster_sees_it(
    release: Installed, toolbox: Toolbox, tmp_path: Path, saw: Any
) -> None:
    release.wait_training()
    told = json.loads(release.cluster("status", "--json"))
    assert told["games"] > 0
    assert told["moves_per_second"] > 0
    assert set(told["served_versions"]) <= set(toolbox.versions())
    assert told["served_versions"]
    assert {name: c["ready"] for name, c in told["components"].items()}["trainer"] == 1
    unanswered = [pod for pod in told["pods"] if "does not answer" in pod["says"]]
    assert not unanswered
    assert f"release {release.name} trains tictactoe" in release.cluster("status")
    assert "exported version" in release.cluster("logs", "trainer", "--tail", "10000")
    folder = tmp_path / "downloaded"
    said = release.cluster("download", str(folder))
    assert "verified" in said
    assert (folder / "run.json").exists()
    versions = [path for path in (folder / "models").iterdir() if path.name.isdigit()]
    assert len(versions) == 1
    saw(f"{told['games']:.0f} games, {told['moves_per_second']:.0f} moves/s")
    saw(f"version {told['served_versions']} served; {said.splitlines()[0]}")


@pytest.mark.row("goal", "tic-tac-toe to the proof, by the release's own evaluator")
def test_it_learns_to_be_unbeatable(release: Installed, saw: Any) -> None:
    if release.began is None:
        pytest.skip("the release was there already: since when is not known")

    def goal() -> bool:
        return release.metric("evaluator", "muprover_evaluation_goal_met") == 1

    wait_for("proof", goal, LEARN_SECONDS, every=3)
    told = release.metrics("evaluator")[0]
    seconds = told["muprover_evaluation_timestamp_seconds"] - release.began
    steps = release.metric("trainer", "muprover_trainer_steps")
    saw(f"proven {seconds:.0f} s after `helm install`, at step {steps:.0f}")
    saw(f"version {told['muprover_evaluation_version']:.0f}")
