"""A release as the chart makes it, on the tests' API server; and `muprover cluster` on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from api_server import ApiServer

from muprover.cli import main

COMPONENTS = ("environment", "replay", "network", "trainer", "agent", "evaluator")


@contextmanager
def cluster(folder: Path) -> Iterator[ApiServer]:
    """A server with a release `r`, known to the kubeconfig in `folder`."""
    server = ApiServer()
    with server.running():
        server.kubeconfig_file = folder / "kubeconfig"  # type: ignore[attr-defined]
        server.kubeconfig_file.write_text(server.kubeconfig(namespace="n"))
        add_release(server, folder)
        yield server


def add_release(api: ApiServer, folder: Path, name: str = "r", game: str = "tictactoe") -> None:
    """As the chart makes it, with one pod a component, whose volumes are below `folder`."""
    for component in COMPONENTS:
        fullname = f"{name}-muprover"
        words = [component if component != "evaluator" else "evaluate"]
        if component != "network":
            words += ["--game", game]
        if component == "agent":
            words += ["--model-name", "muprover"]
        if component == "trainer":
            words += ["--saved-models", f"{folder}/models/{name}-{game}"]
            words += ["--logdir", f"{folder}/checkpoints/{name}-{game}", "--seed", "3"]
        labels = {
            "app.kubernetes.io/part-of": "muprover",
            "app.kubernetes.io/instance": name,
            "app.kubernetes.io/component": component,
        }
        spec = {
            "containers": [
                {
                    "name": component,
                    "args": words,
                    "ports": [{"name": "metrics", "containerPort": 9090}],
                    "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
                }
            ],
            "volumes": [{"name": "tmp", "emptyDir": {}}],
        }
        annotations = {"meta.helm.sh/release-name": name, "meta.helm.sh/release-namespace": "n"}
        workload = {
            "metadata": {
                "name": f"{fullname}-{component}",
                "uid": f"uid-{component}",
                "labels": labels | {"app.kubernetes.io/managed-by": "Helm"},
                "annotations": annotations,
            },
            "spec": {"replicas": 1, "template": {"metadata": {"labels": labels}, "spec": spec}},
        }
        api.add("statefulsets" if component == "network" else "deployments", workload)
        add_pod(api, f"{fullname}-{component}-0", labels, spec)
    config = f'base_path: "/models/{name}-{game}"\nother: "/models/{name}-{game}-old"\n'
    files = {"network": {"models.config": config}, "settings": {"settings.yaml": "{}"}}
    for what, data in files.items():
        api.add("configmaps", {"metadata": {"name": f"{name}-muprover-{what}"}, "data": data})


def add_pod(api: ApiServer, name: str, labels: dict[str, str], spec: dict[str, Any]) -> None:
    container = {"name": spec["containers"][0]["name"], "restartCount": 2, "containerID": name}
    pod = {
        "metadata": {"name": name, "labels": labels, "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": spec,
        "status": {
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [container | {"state": {"running": {}}}],
        },
    }
    api.add("pods", pod)
    api.logs[name] = "".join(f"{name} says {number}\n" for number in range(100))
    api.answers[f"{name}:9090", "metrics"] = ""


def muprover(api: ApiServer, *words: str) -> int:
    return main(["cluster", *words, "--kubeconfig", str(api.kubeconfig_file)])  # type: ignore[attr-defined]


def tell(api: ApiServer, component: str, text: str) -> None:
    api.answers[f"r-muprover-{component}-0:9090", "metrics"] = text
