"""The chart's locks: every component has the same keys, probes need none, and what cannot be locked
is refused."""

import pytest
from helm import CHARTS, containers, find, pod_of, refusal, template, with_values

LOCKED = CHARTS / "ci" / "locks-values.yaml"
TLS = ("--set", "locks.tls.enabled=true")
TOKEN = ("--set", "locks.token.existingSecret=mine")


def ours(manifests):
    return [c for c in containers(manifests) if "muprover-" in c["image"]]


def test_every_component_has_certificates_and_token():
    locked = ours(with_values(LOCKED))
    assert {c["name"] for c in locked} >= {"environment", "replay", "network", "trainer", "agent"}
    for container in locked:
        variables = {v["name"]: v.get("value") for v in container["env"]}
        assert variables["MUPROVER_TLS"] == "/etc/muprover/tls"
        assert variables["MUPROVER_TOKEN_FILE"] == "/etc/muprover/token/token"
        mounts = {m["mountPath"]: m for m in container["volumeMounts"]}
        for folder in ("/etc/muprover/tls", "/etc/muprover/token"):
            assert "subPath" not in mounts[folder]  # it would not follow the Secret
    for pod in filter(None, map(pod_of, with_values(LOCKED))):
        secrets = {v["secret"]["secretName"] for v in pod["volumes"] if "secret" in v}
        assert secrets == {"muprover-tls", "muprover-token"}


def test_without_locks_there_is_none_of_it():
    assert "MUPROVER_T" not in str(template())
    assert "appProtocol" in str(template())


def test_probes_ask_a_port_that_speaks_no_tls():
    for container in ours(with_values(LOCKED)):
        if "readinessProbe" not in container:  # the pods of helm test
            continue
        (health,) = [
            port["containerPort"] for port in container["ports"] if port["name"].endswith("health")
        ]
        for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert container[kind]["grpc"]["port"] == health
        words = container["args"]
        assert words[words.index("--health-port") + 1] == str(health)


def test_the_servers_of_a_pod_have_ports_of_their_own():
    pod = pod_of(find(with_values(LOCKED), "Deployment", "agent"))
    ports = [p for c in containers([{"kind": "Pod", "spec": pod}]) for p in c["ports"]]
    for of in ("containerPort", "name"):
        assert len({port[of] for port in ports}) == len(ports)


def test_certificates_name_every_address_that_is_called():
    manifests = with_values(LOCKED)
    (certificate,) = [
        m
        for m in manifests
        if m["kind"] == "Certificate" and m["spec"]["secretName"] == "muprover-tls"
    ]
    assert set(certificate["spec"]["usages"]) >= {"server auth", "client auth"}
    called = {
        word.removeprefix("dns:///").partition(":")[0]
        for c in ours(manifests)
        for word in c["args"]
        if word.startswith("dns:///") or word.endswith((":50000", ":8500"))
    }
    assert len(called) >= 4
    assert called <= set(certificate["spec"]["dnsNames"])


def test_an_issuer_or_a_secret_that_is_there_is_used():
    named = template(*TLS, "--set", "locks.tls.certManager.issuer.name=corporate")
    (certificate,) = [m for m in named if m["kind"] == "Certificate"]
    assert certificate["spec"]["issuerRef"]["name"] == "corporate"
    existing = template(*TLS, "--set", "locks.tls.existingSecret=given")
    assert not [m for m in existing if m["kind"] in ("Certificate", "Issuer")]
    volumes = pod_of(find(existing, "Deployment", "replay"))["volumes"]
    assert "given" in {v["secret"]["secretName"] for v in volumes if "secret" in v}


def test_metrics_are_scraped_over_https():
    (monitor,) = [m for m in with_values(LOCKED) if m["kind"] == "PodMonitor"]
    for endpoint in monitor["spec"]["podMetricsEndpoints"]:
        assert endpoint["scheme"] == "https"
        assert endpoint["tlsConfig"]["ca"]["secret"] == {"name": "muprover-tls", "key": "ca.crt"}


@pytest.mark.parametrize(
    ("options", "about"),
    [
        ((*TLS, "--set", "network.server=tensorflow-serving"), "network.server=embedded"),
        ((*TLS, "--set", "network.gpu.enabled=true"), "network.server=embedded"),
        (TOKEN, "locks.token.withoutTls=true"),
        ((*TLS, "--set", "locks.tls.clients=everybody"), "locks/tls/clients"),
    ],
)
def test_locks_that_would_not_hold_are_refused(options, about):
    assert about in refusal(*options)


def test_a_token_alone_is_taken_if_that_is_meant():
    locked = ours(template(*TOKEN, "--set", "locks.token.withoutTls=true"))
    assert all("MUPROVER_TOKEN_FILE" in str(c["env"]) for c in locked)
    assert "--health-port" not in str(
        find(template(*TOKEN, "--set", "locks.token.withoutTls=true"), "Deployment", "replay")
    )
