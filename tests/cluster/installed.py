"""A release of the chart on a real cluster, and a pod beside it that may look at everything."""

from __future__ import annotations

import functools
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from helm import CHARTS, find_helm
from kubectl import Kubectl, Object, is_ready, run, wait_for

from muprover.cluster.status import parse

HERE = Path(__file__).parent
PREFIX = "muprover-test"
COMPONENTS = ("environment", "replay", "network", "trainer", "agent", "evaluator")
TIMEOUT = "900s"  # of Helm

REGISTRY = os.environ.get("REGISTRY", "")
TAG = os.environ.get("TAG", "")
PULL_POLICY = os.environ.get("PULL_POLICY", "IfNotPresent")

SECURITY: Object = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
POD_SECURITY: Object = {
    "runAsNonRoot": True,
    "runAsUser": 10001,
    "runAsGroup": 10001,
    "fsGroup": 10001,
    "seccompProfile": {"type": "RuntimeDefault"},
}


def image(component: str) -> str:
    """As `make images` names it."""
    tag = TAG or yaml.safe_load((CHARTS / "Chart.yaml").read_text())["appVersion"]
    return f"{REGISTRY.rstrip('/')}/muprover-{component}:{tag}".lstrip("/")


def image_options() -> list[str]:
    options = ["--set", f"common.image.pullPolicy={PULL_POLICY}"]
    for value, text in (("global.imageRegistry", REGISTRY), ("common.image.tag", TAG)):
        options += ["--set-string", f"{value}={text}"] if text else []
    return options


@functools.lru_cache
def helms() -> dict[int, str]:
    """The Helms at hand, by major version; $HELM3 and $HELM4 name them, or they are looked for."""
    candidates = [os.environ.get("HELM4"), os.environ.get("HELM3"), find_helm()]
    candidates += [shutil.which(name) for name in ("helm", "helm4", "helm3")]
    found: dict[int, str] = {}
    for path in filter(None, candidates):
        version = run(path, "version", "--template", "{{.Version}}").strip()
        found.setdefault(int(version.lstrip("v").split(".")[0]), path)
    return found


def make_namespace(name: str = "") -> Kubectl:
    """A namespace that is as strict as they come: `restricted`, with a quota and limits."""
    kubectl = Kubectl(name or f"{PREFIX}-{secrets.token_hex(3)}")
    strict = {"pod-security.kubernetes.io/enforce": "restricted"}
    quota = {"pods": "40", "requests.cpu": "8", "requests.memory": "32Gi"}
    defaults = {"default": {"memory": "1Gi"}, "defaultRequest": {"cpu": "10m", "memory": "64Mi"}}
    kubectl.apply(
        {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": kubectl.namespace, "labels": strict},
        },
        {
            "apiVersion": "v1",
            "kind": "ResourceQuota",
            "metadata": {"name": "quota", "namespace": kubectl.namespace},
            "spec": {"hard": quota},
        },
        {
            "apiVersion": "v1",
            "kind": "LimitRange",
            "metadata": {"name": "limits", "namespace": kubectl.namespace},
            "spec": {"limits": [{"type": "Container", **defaults}]},
        },
    )
    return kubectl


class Installed:
    """A release, by its name."""

    first_game_seconds: float | None = None  # since `helm install`; None if that was not seen
    ready_seconds: float | None = None
    began: float | None = None  # at what time it was installed, if that was seen
    scheme = ""  # of its metrics: "https:" where they speak TLS

    def __init__(self, kubectl: Kubectl, name: str) -> None:
        self.kubectl = kubectl
        self.name = name
        self.fullname = name if "muprover" in name else f"{name}-muprover"

    # Helm

    def install(self, *options: str, values: Object | None = None) -> None:
        """Installs and waits, and sees meanwhile when the first game is stored."""
        start, self.began = time.monotonic(), time.time()
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            yaml.safe_dump(values or {}, file)
            file.flush()
            small = ["--values", str(HERE / "small-values.yaml"), "--values", file.name]
            words = ["install", self.name, str(CHARTS), *small, *image_options(), *options]
            process = subprocess.Popen(
                [*self._helm(max(helms())), *words, "--wait", "--timeout", TIMEOUT],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            wait_for("first game", lambda: self._has_game(process), 600)
            self.first_game_seconds = time.monotonic() - start
            _, complaint = process.communicate()
        self.ready_seconds = time.monotonic() - start
        assert process.returncode == 0, complaint

    def _has_game(self, process: subprocess.Popen[str]) -> bool:
        if process.poll():
            assert process.stderr is not None
            raise AssertionError(process.stderr.read())
        return self.metric("replay", "muprover_replay_inserted_games_total") > 0

    def upgrade(
        self,
        *settings: str,
        helm: int | None = None,
        wait: bool = True,
        force: bool = False,
    ) -> str:
        """With the values of before, and `path=value` of new ones; waits until all is ready.

        force: also what others have changed. Helm 3 never asks who has, and left alone, Helm 4 does
        not either after an upgrade by Helm 3.
        """
        helm = helm or max(helms())
        sets = [word for setting in settings for word in ("--set", setting)]
        words = [
            "upgrade",
            self.name,
            str(CHARTS),
            "--reset-then-reuse-values",
            *image_options(),
            *sets,
        ]
        words += ["--wait", "--timeout", TIMEOUT] if wait else []
        words += ["--server-side=true"] if helm >= 4 else []
        words += ["--force-conflicts"] if force and helm >= 4 else []
        return run(*self._helm(helm), *words, seconds=1000)

    def helm(self, *words: str) -> str:
        return run(*self._helm(max(helms())), *words)

    def _helm(self, version: int) -> list[str]:
        return [helms()[version], "--namespace", self.kubectl.namespace]

    # What there is

    def selector(self, component: str) -> str:
        own = f"app.kubernetes.io/instance={self.name},app.kubernetes.io/part-of=muprover"
        return own + (f",app.kubernetes.io/component={component}" if component else "")

    def pods(self, component: str = "") -> list[Object]:
        return self.kubectl.pods(self.selector(component))

    def pod(self, component: str) -> str:
        """The name of a pod of it that is ready."""
        ready = [pod for pod in self.pods(component) if is_ready(pod)]
        return str(ready[0]["metadata"]["name"])

    def workload(self, component: str) -> str:
        kind = "statefulset" if component == "network" else "deployment"
        return f"{kind}/{self.fullname}-{component}"

    def replicas(self, component: str) -> int:
        apps = self.kubectl.cluster.apps
        kinds = {"network": apps.read_namespaced_stateful_set}
        read = kinds.get(component, apps.read_namespaced_deployment)
        return int(
            self.kubectl.cluster.ask(read, f"{self.fullname}-{component}")["spec"]["replicas"]
        )

    def num_ready(self, component: str) -> int:
        return sum(map(is_ready, self.pods(component)))

    def metrics(self, component: str) -> list[dict[str, float]]:
        """Of each of its pods: metrics by name, summed over labels."""
        told = []
        for pod in self.pods(component):
            sums: dict[str, float] = {}
            text = self.kubectl.raw(self.scheme + pod["metadata"]["name"], 9090)
            for (name, _), value in parse(text).items():
                sums[name] = sums.get(name, 0.0) + value
            told.append(sums)
        return told

    def metric(self, component: str, name: str) -> float:
        """The sum over its pods."""
        return sum(pod.get(name, 0.0) for pod in self.metrics(component))

    def logs(self, component: str, *options: str) -> list[Object]:
        """Its lines, as they were written in JSON, of the pods that there are."""
        lines: list[Object] = []
        for pod in self.pods(component):
            name = pod["metadata"]["name"]
            text = self.kubectl("logs", name, "--container", component, *options)
            lines += [json.loads(line) for line in text.splitlines() if line.startswith("{")]
        return lines

    def says(self, component: str, words: str, *options: str) -> bool:
        return any(words in json.dumps(line) for line in self.logs(component, *options))

    # Waiting

    def wait_ready(self, component: str, seconds: float = 300) -> None:
        """Until as many of its pods are ready as there should be."""
        wait_for(
            f"ready {component}",
            lambda: (
                self.num_ready(component) == len(self.pods(component)) == self.replicas(component)
            ),
            seconds,
        )

    def wait_all_ready(self, seconds: float = 400) -> None:
        for component in COMPONENTS:
            self.wait_ready(component, seconds)

    def wait_growth(self, component: str, name: str, seconds: float = 120) -> float:
        """Until a metric is above what it is now; answers by when that was, in seconds."""
        start, before = time.monotonic(), self.metric(component, name)
        wait_for(f"growth of {name}", lambda: self.metric(component, name) > before, seconds)
        return time.monotonic() - start

    def wait_training(self, seconds: float = 300) -> None:
        """Until agents move, games come in and steps are made."""
        self.wait_growth("agent", "muprover_agent_moves_total", seconds)
        self.wait_growth("replay", "muprover_replay_inserted_games_total", seconds)
        self.wait_growth("trainer", "muprover_trainer_steps", seconds)

    # Other hands

    def cluster(self, *words: str) -> str:
        """`muprover cluster`, as on a laptop."""
        command = [sys.executable, "-m", "muprover.cli", "cluster", *words]
        where = ["--namespace", self.kubectl.namespace, "--release", self.name]
        return run(*command, *where)


def sleeper(name: str, labels: dict[str, str], **more: Any) -> Object:
    """A pod that does nothing, and in which Python can be run."""
    container = {
        "name": "python",
        "image": image("agent"),
        "imagePullPolicy": PULL_POLICY,
        "command": ["python", "-c", "import signal; signal.sigwait([signal.SIGTERM])"],
        "securityContext": SECURITY,
        "resources": {"requests": {"cpu": "10m"}, "limits": {"memory": "512Mi"}},
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}, *more.pop("mounts", [])],
    }
    volumes = [{"name": "tmp", "emptyDir": {}}, *more.pop("volumes", [])]
    spec = {"containers": [container], "volumes": volumes, "securityContext": POD_SECURITY, **more}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels},
        "spec": spec | {"terminationGracePeriodSeconds": 5},
    }


def start(kubectl: Kubectl, pod: Object) -> str:
    """Starts a pod and waits until it runs; answers its name."""
    kubectl.apply(pod)
    name = str(pod["metadata"]["name"])
    kubectl("wait", "--for=condition=Ready", f"pod/{name}", "--timeout=180s")
    return name


class Toolbox:
    """A pod that release policies let in as a client, with the volume of models."""

    NAME = "toolbox"

    def __init__(self, release: Installed) -> None:
        self.release = release
        self.kubectl = release.kubectl
        claim = {"claimName": f"{release.fullname}-models"}
        beside = {
            "topologyKey": "kubernetes.io/hostname",
            "labelSelector": {"matchLabels": {"app.kubernetes.io/component": "trainer"}},
        }
        term = [{"weight": 100, "podAffinityTerm": beside}]
        self.name = start(
            self.kubectl,
            sleeper(
                self.NAME,
                {f"{release.fullname}-client": "true"},
                mounts=[{"name": "models", "mountPath": "/models"}],
                volumes=[{"name": "models", "persistentVolumeClaim": claim}],
                affinity={"podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": term}},
            ),
        )

    def python(self, code: str, *words: str) -> str:
        return self.kubectl.python(self.name, code, *words)

    def models(self) -> list[str]:
        """What lies in the folder of versions."""
        return self.python(
            "import os, sys; print(*sorted(os.listdir(sys.argv[1])))", self.folder
        ).split()

    @property
    def folder(self) -> str:
        (run_name,) = {
            word.rpartition("/")[2]
            for pod in self.release.kubectl.json("get", self.release.workload("trainer"))["spec"][
                "template"
            ]["spec"]["containers"]
            for word in pod["args"]
            if word.startswith("/models/")
        }
        return f"/models/{run_name}"

    def versions(self) -> list[int]:
        return sorted(int(name) for name in self.models() if name.isdigit())

    def backup(self) -> int:
        """Copies all games that replay has acknowledged; answers how many there are."""
        return int(self._copy("backup").split()[0])

    def lost_games(self) -> tuple[int, int]:
        """How many games of the copy replay no longer has (it has them again then), and of how
        many."""
        words = self._copy("restore").split()
        lost, kept = int(words[0]), int(words[3])
        return lost, lost + kept

    def _copy(self, action: str) -> str:
        address = f"{self.release.fullname}-replay:50001"
        game = ["--game", "tictactoe", "--file", "/tmp/games"]
        return self.kubectl.muprover(self.name, "replay", action, address, *game)
