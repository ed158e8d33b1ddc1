"""`muprover cluster` knows the chart: what it reads is rendered so, what it changes helm changes
likewise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("kubernetes")

from api_server import ApiServer
from helm import template

from muprover.cli import main

GAME = """\
from muprover.games.tictactoe import make_config, make_environment

__all__ = ["make_config", "make_environment"]
"""
KINDS = {
    "Deployment": "deployments",
    "StatefulSet": "statefulsets",
    "ConfigMap": "configmaps",
    "HorizontalPodAutoscaler": "horizontalpodautoscalers",
}
Objects = dict[str, dict[str, Any]]


def install(api: ApiServer, *options: str) -> None:
    """What `helm install` would make, with one ready pod of each workload."""
    for body in template(*options, release="r"):
        metadata = body["metadata"]
        metadata["uid"] = f"uid-{metadata['name']}"
        if body["kind"] in KINDS:
            api.add(KINDS[body["kind"]], body)
        if body["kind"] in ("Deployment", "StatefulSet"):
            add_pod(api, metadata["name"], body["spec"]["template"])


def add_pod(api: ApiServer, workload: str, made: dict[str, Any]) -> None:
    metadata = made["metadata"] | {"name": f"{workload}-0"}
    metadata["creationTimestamp"] = "2026-01-01T00:00:00Z"
    status = {"conditions": [{"type": "Ready", "status": "True"}]}
    api.add("pods", {"metadata": metadata, "spec": made["spec"], "status": status})


@pytest.fixture
def api(tmp_path: Path) -> Any:
    server = ApiServer()
    with server.running():
        (tmp_path / "kubeconfig").write_text(server.kubeconfig(namespace="games"))
        yield server


def muprover(tmp_path: Path, *words: str) -> None:
    assert main(["cluster", *words, "--kubeconfig", str(tmp_path / "kubeconfig")]) == 0


def versions(*numbers: int) -> str:
    states = [{"version": str(number), "state": "AVAILABLE"} for number in numbers]
    return json.dumps({"model_version_status": states})


@pytest.mark.parametrize(
    ("options", "pod", "port", "path"),
    [
        ([], "network", 9090, "metrics"),
        (
            ["--set", "network.server=tensorflow-serving"],
            "network",
            8501,
            "monitoring/prometheus/metrics",
        ),
        (["--set", "network.mode=sidecar"], "agent", 9091, "metrics"),
    ],
)
def test_every_pod_is_asked_where_the_chart_lets_it_answer(
    api, tmp_path, capsys, options, pod, port, path
):
    install(api, *options, "--set", "network.modelName=mine")
    for name in api.objects["pods"]:
        api.answers[f"{name}:9090", "metrics"] = ""
    where = f"r-muprover-{pod}-0:{port}"
    api.answers[where, path] = ""
    api.answers[where, "v1/models/mine"] = versions(3, 7)
    muprover(tmp_path, "status", "--seconds", "0.05")
    shown = capsys.readouterr().out
    assert "does not answer" not in shown
    assert "serves 3, 7" in shown
    assert "agent 1/1 (autoscaled, 2 to 4)" in shown


def test_agents_are_scaled_where_the_chart_leaves_it_to_people(api, tmp_path):
    install(api, "--set", "agent.autoscaling.type=none")
    muprover(tmp_path, "scale", "agents", "3")
    assert api.patches == [("deployments", "r-muprover-agent", {"spec": {"replicas": 3}})]


PULLED = "models.transfer=grpc,network.server=tensorflow-serving"


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--set", "games.other=x=1"],
        ["--set", PULLED],
        ["--set", f"{PULLED},network.mode=sidecar"],
    ],
)
def test_a_game_comes_in_as_helm_would_bring_it_in(api, tmp_path, options):
    """But for checksums, by which helm restarts pods."""
    file = tmp_path / "guess.py"
    file.write_text(GAME)
    install(api, *options)
    muprover(tmp_path, "game", str(file))
    upgrade = template(
        *options, "--set-file", f"games.guess={file}", "--set", "game=guess", release="r"
    )
    for body in upgrade:
        if body["kind"] in ("Deployment", "StatefulSet"):
            changed = api.objects[KINDS[body["kind"]]][body["metadata"]["name"]]
            assert comparable(changed) == comparable(body)
            runs = [w["spec"]["template"]["metadata"]["annotations"] for w in (changed, body)]
            assert len({annotations.get("muprover/run") for annotations in runs}) == 1
        if body["kind"] == "ConfigMap" and body["metadata"]["name"] in api.objects["configmaps"]:
            assert api.objects["configmaps"][body["metadata"]["name"]]["data"] == body["data"]
    assert "r-muprover-games" in api.objects["configmaps"]


def comparable(workload: dict[str, Any]) -> Any:
    """A pod's specification with its named things by name."""
    spec = workload["spec"]["template"]["spec"]
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    containers = {
        container["name"]: container
        | {"volumeMounts": {m["mountPath"]: m for m in container["volumeMounts"]}}
        for container in spec["containers"]
    }
    return spec | {"volumes": volumes, "containers": containers}
