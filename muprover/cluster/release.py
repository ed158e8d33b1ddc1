"""A release of MuProver's chart in a cluster: its pods, and what keeps them running."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from muprover.cluster.connection import Cluster, ClusterError, Object
from muprover.services.locks import TLS

COMPONENTS = ("environment", "replay", "network", "trainer", "agent", "evaluator")
OURS = "app.kubernetes.io/part-of=muprover"
INSTANCE, COMPONENT = "app.kubernetes.io/instance", "app.kubernetes.io/component"
METRICS_PATHS = {"rest-metrics": "monitoring/prometheus/metrics"}  # the stock server's port


class Workload(NamedTuple):
    """A Deployment or StatefulSet."""

    kind: str
    name: str
    component: str
    replicas: int  # that it should have
    body: Object

    @property
    def words(self) -> list[str]:
        """The command line of its component."""
        return words_of(self.body["spec"]["template"]["spec"]["containers"][0])


@dataclass(frozen=True)
class Pod:
    body: Object

    @property
    def name(self) -> str:
        return str(self.body["metadata"]["name"])

    @property
    def component(self) -> str:
        return str(self.body["metadata"]["labels"].get(COMPONENT, ""))

    @property
    def containers(self) -> list[Object]:
        """Those that run as long as the pod does, sidecars included."""
        spec = self.body["spec"]
        beside = [c for c in spec.get("initContainers", []) if c.get("restartPolicy") == "Always"]
        return [*spec["containers"], *beside]

    @property
    def main_container(self) -> str:
        return str(self.body["spec"]["containers"][0]["name"])

    @property
    def statuses(self) -> list[Object]:
        status = self.body.get("status", {})
        names = {container["name"] for container in self.containers}
        every = [*status.get("containerStatuses", []), *status.get("initContainerStatuses", [])]
        return [of for of in every if of["name"] in names]

    @property
    def is_ready(self) -> bool:
        conditions = self.body.get("status", {}).get("conditions", [])
        return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)

    @property
    def restarts(self) -> int:
        return sum(status.get("restartCount", 0) for status in self.statuses)

    @property
    def state(self) -> str:
        """In a word, as kubectl puts it."""
        if "deletionTimestamp" in self.body["metadata"]:
            return "Terminating"
        for status in self.statuses:
            state = status.get("state", {})
            for kind in ("waiting", "terminated"):
                if reason := state.get(kind, {}).get("reason"):
                    return str(reason)
        if self.is_ready:
            return "Ready"
        phase = str(self.body.get("status", {}).get("phase", "Unknown"))
        return "NotReady" if phase == "Running" else phase

    @property
    def speaks_tls(self) -> bool:
        return any(v["name"] == TLS for c in self.containers for v in c.get("env", []))

    @property
    def metrics(self) -> Iterator[tuple[int, str, str]]:
        """Port, path and container of each place that tells of metrics."""
        for container in self.containers:
            for port in container.get("ports", []):
                name = port.get("name", "")
                if name.endswith("metrics"):
                    path = METRICS_PATHS.get(name, "metrics")
                    yield port["containerPort"], path, container["name"]


class Release:
    """What is installed under one name. Read anew by each object of this class."""

    def __init__(self, cluster: Cluster, name: str | None = None) -> None:
        """None: the only one in the namespace."""
        self.cluster = cluster
        self._workloads = _workloads(cluster)
        self.name = self._choose(name)

    def _choose(self, name: str | None) -> str:
        names = sorted({str(w.body["metadata"]["labels"][INSTANCE]) for w in self._workloads})
        where = f"namespace {self.cluster.namespace}"
        if name is None and len(names) == 1:
            return names[0]
        if not names:
            raise ClusterError(
                f"no release of MuProver in {where}; is it in another (--namespace)?"
            )
        if name is None:
            raise ClusterError(f"{where} has {', '.join(names)}; name one with --release")
        if name not in names:
            raise ClusterError(f"no release {name} in {where}; there is {', '.join(names)}")
        return name

    @property
    def selector(self) -> str:
        return f"{OURS},{INSTANCE}={self.name}"

    @cached_property
    def workloads(self) -> list[Workload]:
        of_components = [
            w
            for w in self._workloads
            if w.body["metadata"]["labels"][INSTANCE] == self.name and w.component in COMPONENTS
        ]
        return sorted(of_components, key=lambda w: COMPONENTS.index(w.component))

    def workload(self, component: str) -> Workload:
        for workload in self.workloads:
            if workload.component == component:
                return workload
        raise ClusterError(f"release {self.name} has no {component}")

    def pods(self, component: str | None = None) -> list[Pod]:
        """As they are now, in the components' order."""
        selector = self.selector + (f",{COMPONENT}={component}" if component else "")
        core = self.cluster.core
        found = self.cluster.ask(core.list_namespaced_pod, label_selector=selector)["items"]
        pods = [pod for pod in map(Pod, found) if pod.component in COMPONENTS]
        return sorted(pods, key=lambda pod: (COMPONENTS.index(pod.component), pod.name))

    @cached_property
    def autoscalers(self) -> list[Object]:
        """All HorizontalPodAutoscalers of the namespace; KEDA makes such ones too."""
        list_all = self.cluster.autoscaling.list_namespaced_horizontal_pod_autoscaler
        return list(self.cluster.ask(list_all)["items"])

    def autoscaler(self, workload: Workload) -> Object | None:
        """The one that owns the workload's count, if there is one."""
        for autoscaler in self.autoscalers:
            target = autoscaler["spec"]["scaleTargetRef"]
            if (target["kind"], target["name"]) == (workload.kind, workload.name):
                return autoscaler
        return None


def _workloads(cluster: Cluster) -> list[Workload]:
    """Of all releases in the namespace."""
    found = []
    for kind, list_all in (
        ("Deployment", cluster.apps.list_namespaced_deployment),
        ("StatefulSet", cluster.apps.list_namespaced_stateful_set),
    ):
        for body in cluster.ask(list_all, label_selector=OURS)["items"]:
            labels = body["metadata"]["labels"]
            if INSTANCE in labels:
                component = labels.get(COMPONENT, "")
                replicas = body["spec"].get("replicas", 1)
                found.append(Workload(kind, body["metadata"]["name"], component, replicas, body))
    return found


def words_of(container: Object) -> list[str]:
    return [*container.get("command", []), *container.get("args", [])]


def option_of(words: Sequence[str], option: str) -> str | None:
    """The value of `--option value` or `--option=value` on a command line."""
    for word, following in zip(words, [*words[1:], None], strict=True):
        if word == option:
            return following
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
    return None
