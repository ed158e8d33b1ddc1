"""The chart's network policies: who may call whom, and who may scrape."""

import pytest
from helm import CHARTS, find, template, with_values


def network_policies(manifests):
    return {m["metadata"]["name"]: m["spec"] for m in manifests if m["kind"] == "NetworkPolicy"}


def callers_of(name, policies):
    sources = policies[f"muprover-{name}"]["ingress"][0].get("from", [])
    labels = [s["podSelector"]["matchLabels"] for s in sources]
    return [entry.get("app.kubernetes.io/component", "client") for entry in labels]


def test_only_a_release_s_own_components_call_each_other():
    policies = network_policies(template())

    def callers(name):
        return callers_of(name, policies)

    assert callers("replay") == ["agent", "trainer", "test", "client"]
    assert callers("network") == ["agent", "evaluator", "test", "client"]
    dns = {(p["port"], p["protocol"]) for p in policies["muprover-replay"]["egress"][0]["ports"]}
    assert dns == {(53, "UDP"), (53, "TCP")}
    assert len(policies["muprover-network"]["egress"]) == 1
    assert len(policies["muprover-agent"]["egress"]) == 4
    assert callers("trainer") == []


@pytest.mark.parametrize(
    ("file", "pullers"), [("pull", ["network"]), ("pull-stock", ["network", "agent"])]
)
def test_the_trainer_s_models_are_for_network_servers(file, pullers):
    policies = network_policies(with_values(CHARTS / "ci" / f"{file}-values.yaml"))
    assert callers_of("trainer", policies) == [*pullers, "client"]
    for name in pullers:
        ports = [rule["ports"] for rule in policies[f"muprover-{name}"]["egress"]]
        assert [{"port": 50004, "protocol": "TCP"}] in ports


def test_metrics_can_be_kept_to_one_namespace():
    manifests = with_values(CHARTS / "ci" / "netpol-values.yaml")
    (rule,) = find(manifests, "NetworkPolicy", "trainer")["spec"]["ingress"]
    assert rule["ports"] == [{"port": 9090, "protocol": "TCP"}]
    assert [sorted(source) for source in rule["from"]] == [
        ["namespaceSelector", "podSelector"],
        ["ipBlock"],
    ]


def test_metrics_can_be_kept_to_addresses_or_to_pods_of_the_namespace():
    for given, peers in (
        ("cidrs={10.0.0.1/32}", [{"ipBlock": {"cidr": "10.0.0.1/32"}}]),
        ("podSelector.matchLabels.a=b", [{"podSelector": {"matchLabels": {"a": "b"}}}]),
    ):
        options = f"networkPolicy.metrics.allowAll=false,networkPolicy.metrics.{given}"
        policy = find(template("--set", options), "NetworkPolicy", "trainer")
        (rule,) = policy["spec"]["ingress"]
        assert rule["from"] == peers


def test_the_curves_are_for_clients_of_the_release():
    for allowed, peers in (("false", 1), ("true", 0)):
        options = f"tensorboard.enabled=true,networkPolicy.allowExternal={allowed}"
        policy = find(template("--set", options), "NetworkPolicy", "tensorboard")
        (rule,) = policy["spec"]["ingress"]
        assert len(rule.get("from", [])) == peers
