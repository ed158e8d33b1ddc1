"""Who may call whom."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from installed import Installed, Toolbox, sleeper, start
from kubectl import Kubectl, wait_for

CONNECT = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), 3).close()
    print("open")
except (OSError, TimeoutError):
    print("closed")
"""
SERVE = "import socket, time; s = socket.create_server(('', 7000)); time.sleep(3600)"


def can_connect(kubectl: Kubectl, pod: str, host: str, port: int, container: str = "") -> bool:
    answer = kubectl.python(pod, CONNECT, host, str(port), container=container)
    return answer.strip() == "open"


def address(release: Installed, component: str) -> str:
    (pod, *_) = release.pods(component)
    return str(pod["status"]["podIP"])


@pytest.fixture(scope="module")
def foreign(namespaces: Callable[[], Kubectl]) -> Kubectl:
    """Another namespace, with a pod `visitor`; skips where policies are not enforced."""
    kubectl = namespaces()
    closed = sleeper("closed", {"app": "closed"})
    closed["spec"]["containers"][0]["command"] = ["python", "-c", SERVE]
    start(kubectl, closed)
    start(kubectl, sleeper("visitor", {"app": "visitor"}))
    (pod,) = kubectl.pods("app=closed")
    target = pod["status"]["podIP"]
    wait_for("server", lambda: can_connect(kubectl, "visitor", target, 7000), 60)
    kubectl.apply(
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": "closed", "namespace": kubectl.namespace},
            "spec": {"podSelector": {"matchLabels": {"app": "closed"}}, "policyTypes": ["Ingress"]},
        }
    )
    try:
        wait_for("policy", lambda: not can_connect(kubectl, "visitor", target, 7000), 20)
    except AssertionError:
        pytest.skip("this cluster does not enforce NetworkPolicies")
    return kubectl


@pytest.mark.row("12", "network policies, tried from pods inside and outside of the release")
def test_only_those_who_must_get_through(
    release: Installed, toolbox: Toolbox, foreign: Kubectl, saw: Any
) -> None:
    own = release.kubectl
    bystander = start(own, sleeper("bystander", {"app": "bystander"}))
    doors = {"environment": 50000, "replay": 50001, "network": 8500}
    try:
        wait_for(
            "policies for new pods",
            lambda: not can_connect(own, bystander, address(release, "replay"), 50001),
            30,
        )
        for component, port in doors.items():
            where = address(release, component)
            assert not can_connect(foreign, "visitor", where, port), component
            assert not can_connect(own, bystander, where, port), component
            assert can_connect(own, toolbox.name, where, port), component
        for component in (*doors, "trainer", "agent", "evaluator"):
            assert can_connect(foreign, "visitor", address(release, component), 9090), component
    finally:
        own("delete", "pod", bystander, "--wait=false")
    saw("pods of another namespace and of the same one: no server's port; metrics only")
    saw("a pod with the client label: environment, replay and network")
    edges = {
        ("environment", "replay", 50001): False,
        ("replay", "network", 8500): False,
        ("trainer", "network", 8500): False,
        ("trainer", "replay", 50001): True,
        ("agent", "network", 8500): True,
        ("evaluator", "replay", 50001): False,
    }
    for (source, target, port), may in edges.items():
        got = can_connect(own, release.pod(source), address(release, target), port, source)
        assert got == may, (source, target)
    saw("trainer and agent reach what they call; environment, replay and evaluator nothing more")


@pytest.mark.row("12b", "policies' text: DNS over UDP and TCP, and metrics for Prometheus")
def test_dns_and_metrics_are_let_through(release: Installed, saw: Any) -> None:
    selector = f"app.kubernetes.io/instance={release.name}"
    policies = release.kubectl.json("get", "networkpolicies", "--selector", selector)["items"]
    for policy in policies:
        spec, name = policy["spec"], policy["metadata"]["name"]
        ways_out = [rule.get("ports", []) for rule in spec["egress"]]
        dns = [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]
        assert dns in ways_out, name
        if not name.endswith("-test"):
            ways_in = [(r.get("ports"), r.get("from")) for r in spec["ingress"]]
            assert ([{"port": 9090, "protocol": "TCP"}], None) in ways_in, name
    saw(f"so in all {len(policies)} policies")
