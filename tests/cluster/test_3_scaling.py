"""Counts: an autoscaler's, kubectl's, and never Helm's."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from installed import Installed, helms
from kubectl import Failed, wait_for

MOST = 3  # agents, as in small-values.yaml
DEMAND = "muprover_agent_demand"
MOVES = "muprover_agent_moves_total"
SIMULATIONS = "muprover_network_simulations_total"


def require_api(release: Installed, group: str) -> None:
    try:
        release.kubectl("get", "--raw", f"/apis/{group}/v1beta1")
    except Failed:
        pytest.skip(f"this cluster has no {group}: nothing gives the autoscaler its metric")


def autoscaler(release: Installed) -> dict[str, Any]:
    return dict(release.kubectl.json("get", "hpa", f"{release.fullname}-agent"))


@pytest.mark.row("HPA cpu", "agent.autoscaling.type=cpu, the default, 1 to 3 agents")
def test_cpu_scales_agents(release: Installed, saw: Any) -> None:
    require_api(release, "metrics.k8s.io")
    asked = "agent.resources.requests.cpu"
    release.upgrade("agent.autoscaling.type=cpu", "agent.replicaCount=null", f"{asked}=10m")
    wait_for("metric", lambda: autoscaler(release)["status"]["currentMetrics"], 180)
    wait_for("more agents", lambda: release.replicas("agent") == MOST, 240)
    release.wait_ready("agent")
    metric = autoscaler(release)["status"]["currentMetrics"][0]["resource"]["current"]
    saw(f"{MOST} agents, at {metric['averageUtilization']} % of the 10m that they ask for here")
    before = release.replicas("agent")
    release.upgrade("agent.podLabels.upgraded=by-helm")
    assert release.replicas("agent") == before
    saw("`helm upgrade` left the count alone")
    release.upgrade(f"{asked}=60m")


@pytest.mark.row(
    "2", "`kubectl scale`, then `helm upgrade` with each Helm; then an autoscaler again"
)
def test_kubectl_and_helm_do_not_fight(release: Installed, saw: Any) -> None:
    release.upgrade("agent.autoscaling.type=none", "agent.replicaCount=null")
    counts = iter((2, 1, 2))
    for version in sorted(helms(), reverse=True):  # first the one that asks who owns the count
        count = next(counts)
        release.kubectl("scale", release.workload("agent"), f"--replicas={count}")
        release.upgrade(f"agent.podLabels.upgraded=helm{version}", helm=version)
        assert release.replicas("agent") == count
        release.wait_ready("agent")
        saw(f"{count} by kubectl, kept by Helm {version}'s upgrade")
    count = next(counts)
    release.cluster("scale", "agents", str(count))
    release.upgrade("agent.podLabels.upgraded=again")
    assert release.replicas("agent") == count
    saw(f"{count} by `muprover cluster scale`, kept")
    for version in {3, 4} - set(helms()):
        saw(f"Helm {version} is not at hand: not tried")


@pytest.fixture
def light(release: Installed) -> Iterator[Installed]:
    """Searches so small that no network server is too busy for more agents."""
    yield release
    release.upgrade(
        "config.search.num_simulations=25",
        "config.search.max_num_simulations=100",
        "config.replay.samples_per_insert=8",
        "config.replay.min_size_to_sample=5000",
        "config.training.batch_size=512",
        "agent.parallelGames=null",
        "agent.autoscaling.type=none",
        "agent.replicaCount=null",
    )


@pytest.mark.row(
    "HPA demand",
    "agent.autoscaling.type=external: a trainer that starves, then agents that are blocked",
)
def test_agents_follow_who_waits(light: Installed, saw: Any) -> None:
    release = light
    require_api(release, "external.metrics.k8s.io")
    release.kubectl("scale", release.workload("agent"), "--replicas=1")
    settings = ["agent.autoscaling.type=external", "agent.parallelGames=4"]
    settings += ["config.search.num_simulations=2", "config.search.max_num_simulations=2"]
    settings += ["config.replay.min_size_to_sample=500", "config.training.batch_size=64"]
    release.upgrade(*settings, "config.replay.samples_per_insert=0.25")
    try:
        wait_for("metric", lambda: demand(release) is not None, 180, every=5)
    except AssertionError:
        pytest.skip(
            f"the adapter of this cluster has no {DEMAND}; k8s/prometheus-adapter-values.yaml"
        )
    start = time.monotonic()
    wait_for("agents for a trainer that starves", lambda: release.replicas("agent") == MOST, 420)
    seconds = time.monotonic() - start
    saw(f"starving trainer: demand {demand(release):.2f}, {MOST} agents after {seconds:.0f} s")
    release.upgrade("config.replay.samples_per_insert=500")
    start = time.monotonic()
    wait_for("fewer agents while they are blocked", lambda: release.replicas("agent") == 1, 480)
    seconds = time.monotonic() - start
    saw(f"blocked agents: demand {demand(release):.2f}, 1 agent after {seconds:.0f} s")


def demand(release: Installed) -> float | None:
    """What the autoscaler sees; None while it sees nothing."""
    place = f"/apis/external.metrics.k8s.io/v1beta1/namespaces/{release.kubectl.namespace}/{DEMAND}"
    for item in json.loads(release.kubectl("get", "--raw", place))["items"]:
        if item["metricLabels"].get("release") == release.name:
            text = item["value"]
            return float(text[:-1]) / 1000 if text.endswith("m") else float(text)
    return None


@pytest.mark.row("13", "an autoscaler whose metric is missing")
def test_a_metric_that_is_missing_means_nothing(release: Installed, saw: Any) -> None:
    release.kubectl("scale", release.workload("agent"), "--replicas=2")
    release.wait_ready("agent")
    release.upgrade(
        "agent.autoscaling.type=external",
        "agent.autoscaling.externalMetric=muprover_no_such_metric",
        "agent.autoscaling.maxReplicas=5",
    )

    def is_blind() -> bool:
        conditions = autoscaler(release)["status"].get("conditions", [])
        return any(c["type"] == "ScalingActive" and c["status"] == "False" for c in conditions)

    wait_for("blind autoscaler", is_blind, 120)
    seen = set()
    for _ in range(12):
        seen.add(release.replicas("agent"))
        time.sleep(5)
    release.upgrade(
        "agent.autoscaling.type=none",
        f"agent.autoscaling.externalMetric={DEMAND}",
        f"agent.autoscaling.maxReplicas={MOST}",
    )
    assert seen == {2}
    assert release.replicas("agent") == 2
    saw("ScalingActive is False, and the count stayed at 2 for a minute, neither 0 nor 5")


@pytest.mark.row("network", "network servers: two, then an HPA, then one beside each agent")
def test_the_network_scales_too(release: Installed, saw: Any) -> None:
    release.upgrade("agent.autoscaling.type=none", "network.replicaCount=2")
    release.wait_ready("network")
    wait_for("searches by both", lambda: min(growth(release, "network", SIMULATIONS)) > 0, 180)
    assert release.metric("agent", "muprover_agent_refused_segments_total") == 0
    saw("2 replicas: both search, so agents found the new one; a search is one call to one version")
    release.upgrade("network.replicaCount=1")
    release.upgrade("network.autoscaling.enabled=true", "network.autoscaling.maxReplicas=2")
    wait_for("network servers by HPA", lambda: release.replicas("network") == 2, 240)
    release.wait_ready("network")
    release.upgrade("network.podLabels.upgraded=by-helm")
    assert release.replicas("network") == 2
    saw("its HPA on CPU: 1 to 2, and `helm upgrade` left the count alone")
    release.upgrade("network.autoscaling.enabled=false", "network.mode=sidecar")
    for count in (1, 2):
        release.kubectl("scale", release.workload("agent"), f"--replicas={count}")
        release.wait_ready("agent")
        wait_for("moves by each", lambda: min(growth(release, "agent", MOVES)) > 0, 180)
        assert len(release.pods("agent")) == count
    beside = {c["name"] for pod in release.pods("agent") for c in pod["spec"]["initContainers"]}
    assert beside == {"network"}
    release.wait_training()
    saw("sidecar form: 1 agent, then 2, each with a network server of its own, and both move")
    release.upgrade("network.mode=shared")
    release.kubectl("scale", release.workload("agent"), "--replicas=1")
    release.wait_all_ready()


def growth(release: Installed, component: str, name: str, seconds: float = 10) -> list[float]:
    """How much a metric of each pod grows meanwhile; none of them comes or goes."""
    before = [pod.get(name, 0.0) for pod in release.metrics(component)]
    time.sleep(seconds)
    after = [pod.get(name, 0.0) for pod in release.metrics(component)]
    return [b - a for a, b in zip(before, after, strict=True)]
