"""The chart, rendered: valid objects, safe pods, names that never collide, counts that nobody
fights over."""

import json
import re

import kubernetes_validate
import pytest
from helm import (
    CHARTS,
    CI_FILES,
    containers,
    find,
    pod_of,
    run_helm,
    template,
    with_values,
)

OLDEST, NEWEST = "1.29", "1.37"  # of Kubernetes
OTHERS = (
    *("PodMonitor", "ServiceMonitor", "PrometheusRule", "ScaledObject"),
    *("Certificate", "Issuer"),
)  # operators' kinds
ci = pytest.mark.parametrize("file", CI_FILES, ids=lambda file: file.name)


def test_the_chart_is_clean():
    result = run_helm("lint", "--strict", str(CHARTS))
    assert result.returncode == 0, result.stdout


@ci
def test_every_object_is_valid_in_the_oldest_and_the_newest_kubernetes(file):
    manifests = with_values(file)
    for manifest in manifests:
        if manifest["kind"] not in OTHERS:
            for version in (OLDEST, NEWEST):
                kubernetes_validate.validate(manifest, version, strict=True)
    names = [(m["kind"], m["metadata"]["name"]) for m in manifests]
    assert len(set(names)) == len(names)


@ci
def test_pods_may_run_where_pod_security_is_restricted(file):
    for manifest in with_values(file):
        if not (pod := pod_of(manifest)):
            continue
        about = pod["securityContext"]
        assert about["runAsNonRoot"] is True
        assert about["runAsUser"] == 10001
        assert about["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        for container in (*pod.get("initContainers", []), *pod["containers"]):
            if container["name"] == "extra":  # a user's own
                continue
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False
            assert security["readOnlyRootFilesystem"] is True
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"]["memory"]
            assert container["resources"]["requests"]["cpu"]


@ci
def test_every_port_name_is_right_and_every_probe_has_a_number(file):
    for container in containers(with_values(file)):
        for port in container.get("ports", []):
            assert re.fullmatch(r"[a-z][a-z-]{0,14}", port["name"])
        for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
            grpc = container.get(kind, {}).get("grpc")
            assert grpc is None or isinstance(grpc["port"], int)


def test_probes_tell_life_from_readiness():
    for container in containers(template("--set", "test.enabled=false")):
        assert container["livenessProbe"]["grpc"]["service"] == "alive"
        assert "service" not in container["readinessProbe"]["grpc"]


def test_the_stock_server_may_take_half_an_hour_to_its_first_version():
    (network,) = find(
        template("--set", "network.server=tensorflow-serving"), "StatefulSet", "network"
    )["spec"]["template"]["spec"]["containers"]
    startup = network["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] == 1800
    assert network["readinessProbe"]["httpGet"]["path"] == "/v1/models/muprover/metadata"
    assert network["lifecycle"]["preStop"]["exec"]["command"] == ["sleep", "5"]


def test_metrics_ports_are_named_so():
    for manifest in with_values(CHARTS / "ci" / "sidecar-values.yaml"):
        pod = pod_of(manifest)
        if not pod or manifest["kind"] == "Pod":
            continue
        for container in (*pod.get("initContainers", []), *pod["containers"]):
            named = [p for p in container["ports"] if p["name"].endswith("metrics")]
            assert len(named) == 1, container["name"]


def selectors(manifests):
    return {
        m["metadata"]["name"]: m["spec"]["selector"]["matchLabels"]
        for m in manifests
        if m["kind"] in ("Deployment", "StatefulSet")
    }


def test_selectors_are_what_they_always_were():
    plain = selectors(template())
    assert plain["muprover-agent"] == {
        "app.kubernetes.io/name": "muprover",
        "app.kubernetes.io/instance": "muprover",
        "app.kubernetes.io/component": "agent",
    }
    options = ("--set", "commonLabels.team=a", "--set", "game=cartpole")
    options += ("--set", "common.podLabels.x=y", "--set", "network.server=tensorflow-serving")
    assert selectors(template(*options)) == plain


def test_common_labels_are_on_all_objects_and_may_not_replace_the_chart_s():
    manifests = template(
        "--set", "commonLabels.team=a", "--set", "commonLabels.app\\.kubernetes\\.io/component=b"
    )
    for manifest in manifests:
        labels = manifest["metadata"]["labels"]
        assert labels["team"] == "a"
        assert labels["app.kubernetes.io/part-of"] == "muprover"
        assert labels["app.kubernetes.io/component"] != "b"


LONG = "a" * 52  # Helm allows 53 characters


@pytest.mark.parametrize("releases", [("one", "two"), (LONG + "b", LONG + "c"), (LONG, LONG + "c")])
def test_two_releases_in_a_namespace_share_nothing(releases):
    first, second = (template(release=release) for release in releases)
    names = [{(m["kind"], m["metadata"]["name"]) for m in ms} for ms in (first, second)]
    assert not names[0] & names[1]
    for manifest in first:
        name = manifest["metadata"]["name"]
        assert len(name) <= (52 if manifest["kind"] == "StatefulSet" else 63)
        assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", name)
    ours, theirs = selectors(first).values(), selectors(second).values()
    assert not {tuple(s.values()) for s in ours} & {tuple(s.values()) for s in theirs}


@pytest.mark.parametrize("kind", ["cpu", "external", "keda"])
def test_an_autoscaler_has_the_agents_count_for_itself(kind):
    manifests = template("--set", f"agent.autoscaling.type={kind},agent.replicaCount=3")
    assert "replicas" not in find(manifests, "Deployment", "agent")["spec"]
    scaler = find(
        manifests, "ScaledObject" if kind == "keda" else "HorizontalPodAutoscaler", "agent"
    )
    assert scaler["spec"]["scaleTargetRef"]["name"] == "muprover-agent"


def test_without_one_the_count_is_the_chart_s_or_kubectl_s():
    manifests = template("--set", "agent.autoscaling.type=none,agent.replicaCount=7")
    assert find(manifests, "Deployment", "agent")["spec"]["replicas"] == 7
    assert not [m for m in manifests if m["kind"] == "HorizontalPodAutoscaler"]
    manifests = with_values(CHARTS / "ci" / "kubectl-scaled-values.yaml")
    for kind, name in (
        ("Deployment", "agent"),
        ("StatefulSet", "network"),
        ("Deployment", "environment"),
    ):
        assert "replicas" not in find(manifests, kind, name)["spec"]


def test_a_network_autoscaler_has_that_count_for_itself():
    manifests = template("--set", "network.autoscaling.enabled=true,network.replicaCount=3")
    assert "replicas" not in find(manifests, "StatefulSet", "network")["spec"]
    assert find(manifests, "HorizontalPodAutoscaler", "network")["spec"]["maxReplicas"] == 4


def test_a_prometheus_that_is_away_does_not_mean_zero_agents():
    manifests = with_values(CHARTS / "ci" / "autoscale-keda-values.yaml")
    spec = find(manifests, "ScaledObject", "agent")["spec"]
    assert spec["triggers"][0]["metadata"]["ignoreNullValues"] == "false"
    assert spec["triggers"][0]["metadata"]["serverAddress"] == "http://prometheus.games.svc:9090"
    assert spec["fallback"]["behavior"] == "currentReplicas"


def bounds(*options):
    spec = find(template(*options), "HorizontalPodAutoscaler", "agent")["spec"]
    return spec["minReplicas"], spec["maxReplicas"]


def test_an_autoscaler_leaves_as_many_agents_as_were_asked_for():
    assert bounds() == (2, 4)
    assert bounds("--set", "agent.replicaCount=3") == (3, 4)
    assert bounds("--set", "agent.replicaCount=null") == (1, 4)
    assert bounds("--set", "agent.replicaCount=3,agent.autoscaling.minReplicas=1") == (1, 4)


def test_replay_outlasts_agents_that_end_with_it():
    manifests = template("--set", "agent.terminationGracePeriodSeconds=90")
    replay, agent = (pod_of(find(manifests, "Deployment", n)) for n in ("replay", "agent"))
    (server,) = replay["containers"]
    assert server["lifecycle"]["preStop"]["exec"]["command"] == ["sleep", "10"]
    words = agent["containers"][0]["args"]
    assert words[words.index("--grace") + 1] == "90" == str(agent["terminationGracePeriodSeconds"])
    (server,) = pod_of(find(template("--set", "replay.lingerSeconds=0"), "Deployment", "replay"))[
        "containers"
    ]
    assert "lifecycle" not in server


@pytest.mark.parametrize(
    ("values", "signature"),
    [
        ("network.server=tensorflow-serving,network.xla.cpu=true", "search_xla"),
        ("network.gpu.enabled=true,network.xla.gpu=true", "search_xla"),
        ("network.gpu.enabled=true,network.xla.cpu=true", "search"),
        ("network.server=tensorflow-serving", "search"),
        ("network.xla.cpu=true", "search"),
    ],
)
def test_a_stock_server_with_xla_is_asked_for_the_compiled_search(values, signature):
    manifests = template("--set", values)
    for name in ("agent", "evaluator"):
        words = pod_of(find(manifests, "Deployment", name))["containers"][0]["args"]
        assert words[words.index("--search-signature") + 1] == signature


def test_single_writers_are_replaced_and_never_doubled():
    manifests = template()
    for name in ("replay", "trainer"):
        spec = find(manifests, "Deployment", name)["spec"]
        assert spec["replicas"] == 1
        assert spec["strategy"] == {"type": "Recreate"}
    assert find(manifests, "StatefulSet", "network")["spec"]["podManagementPolicy"] == "Parallel"


def test_a_budget_never_stops_a_drain():
    assert not [m for m in template() if m["kind"] == "PodDisruptionBudget"]
    budget = find(
        with_values(CHARTS / "ci" / "hardened-values.yaml"), "PodDisruptionBudget", "environment"
    )
    assert budget["spec"]["maxUnavailable"] == 2


def test_servers_that_mount_a_volume_of_one_node_are_on_the_trainer_s():
    network = find(template(), "StatefulSet", "network")["spec"]["template"]["spec"]
    (term,) = network["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert term["labelSelector"]["matchLabels"]["app.kubernetes.io/component"] == "trainer"
    for freed in ("models.persistence.accessModes={ReadWriteMany}", "trainer.replicaCount=0"):
        pods = find(template("--set", freed), "StatefulSet", "network")["spec"]["template"]["spec"]
        assert "affinity" not in pods


def test_an_affinity_of_one_s_own_leaves_the_chart_s(tmp_path):
    rule = "requiredDuringSchedulingIgnoredDuringExecution"
    term = {"topologyKey": "zone", "labelSelector": {"matchLabels": {"a": "b"}}}
    affinity = {"podAffinity": {rule: [term]}, "nodeAffinity": {rule: {"nodeSelectorTerms": []}}}
    (tmp_path / "values.yaml").write_text(json.dumps({"network": {"affinity": affinity}}))
    pod = pod_of(find(with_values(tmp_path / "values.yaml"), "StatefulSet", "network"))
    given, own = pod["affinity"]["podAffinity"][rule]
    assert given == term
    assert own["labelSelector"]["matchLabels"]["app.kubernetes.io/component"] == "trainer"
    assert pod["affinity"]["nodeAffinity"] == affinity["nodeAffinity"]


def test_tensorboard_is_beside_the_trainer_if_there_is_one():
    def pod(*options):
        manifests = template("--set", "tensorboard.enabled=true", *options)
        return pod_of(find(manifests, "Deployment", "tensorboard"))

    assert "podAffinity" in pod()["affinity"]
    assert "affinity" not in pod("--set", "trainer.replicaCount=0")


def test_models_that_are_pulled_need_no_volume_but_the_trainer_s():
    manifests = with_values(CHARTS / "ci" / "pull-values.yaml")
    server, trainer = (
        pod_of(find(manifests, kind, name))
        for kind, name in (("StatefulSet", "network"), ("Deployment", "trainer"))
    )
    (network,) = server["containers"]
    assert network["args"][network["args"].index("--model-source") + 1] == (
        "dns:///muprover-trainer:50004"
    )
    volumes, mounts = (
        {m["name"]: m for m in ms} for ms in (server["volumes"], network["volumeMounts"])
    )
    assert volumes["models"]["emptyDir"] == {"sizeLimit": "5Gi"}
    assert not mounts["models"].get("readOnly")
    assert "affinity" not in server
    assert "affinity" not in trainer
    (port,) = find(manifests, "Service", "trainer")["spec"]["ports"]
    words = trainer["containers"][0]["args"]
    assert words[words.index("--model-port") + 1] == str(port["port"]) == "50004"


def test_the_stock_server_has_somebody_who_pulls_for_it():
    manifests = with_values(CHARTS / "ci" / "pull-stock-values.yaml")
    for kind, name in (("StatefulSet", "network"), ("Deployment", "agent")):
        pod = pod_of(find(manifests, kind, name))
        puller, *others = pod["initContainers"]
        assert puller["name"] == "pull"
        assert puller["restartPolicy"] == "Always"
        (network,) = [c for c in (*others, *pod["containers"]) if c["name"] == "network"]
        mounts = [
            next(m for m in container["volumeMounts"] if m["name"] == "models")
            for container in (puller, network)
        ]
        assert [mount.get("readOnly", False) for mount in mounts] == [False, True]
        folder = puller["args"][puller["args"].index("--saved-models") + 1]
        models = find(manifests, "ConfigMap", "network")["data"]["models.config"]
        assert f'base_path: "{folder}"' in models


def test_a_changed_setting_restarts_what_reads_it_and_a_new_chart_does_not():
    def pods(*options):
        return {
            m["metadata"]["name"]: m["spec"]["template"]
            for m in template(*options)
            if m["kind"] in ("Deployment", "StatefulSet")
        }

    before, after = pods(), pods("--set", "config.search.num_simulations=9")
    changed = {name for name in before if before[name] != after[name]}
    components = ("agent", "environment", "evaluator", "replay", "trainer")
    assert changed == {f"muprover-{name}" for name in components}
    assert "helm.sh/chart" not in json.dumps(before)


def test_a_game_of_one_s_own_is_mounted_everywhere_and_has_its_own_run(tmp_path):
    text = '  \n"""Nim, with \'quotes\', {{ braces }} and\ttabs."""\n\nRULES = "…"\n'
    (tmp_path / "nim.py").write_text(text, encoding="utf-8")
    file = ("--set-file", f"games.nim={tmp_path / 'nim.py'}", "--set", "game=nim")
    manifests = template(*file)
    assert find(manifests, "ConfigMap", "games")["data"] == {"nim.py": text}
    for name in ("environment", "replay", "trainer", "agent", "evaluator"):
        (container,) = find(manifests, "Deployment", name)["spec"]["template"]["spec"]["containers"]
        assert "/etc/muprover/games/nim.py" in container["args"]
        assert "/etc/muprover/games" in [m["mountPath"] for m in container["volumeMounts"]]
    trainer = find(manifests, "Deployment", "trainer")["spec"]["template"]["spec"]["containers"][0]
    assert "/models/muprover-nim" in trainer["args"]
    served = find(manifests, "ConfigMap", "network")["data"]["models.config"]
    assert 'base_path: "/models/muprover-nim"' in served


def test_claims_outlive_the_release_and_existing_ones_are_taken():
    claims = [m for m in template() if m["kind"] == "PersistentVolumeClaim"]
    assert len(claims) == 3
    for claim in claims:
        assert claim["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    manifests = with_values(CHARTS / "ci" / "existing-claims-values.yaml")
    assert not [m for m in manifests if m["kind"] == "PersistentVolumeClaim"]
    volumes = find(manifests, "Deployment", "replay")["spec"]["template"]["spec"]["volumes"]
    assert {"claimName": "earlier-replay"} in [v.get("persistentVolumeClaim") for v in volumes]


def test_a_network_server_beside_each_agent_outlives_it():
    pod = pod_of(find(with_values(CHARTS / "ci" / "sidecar-values.yaml"), "Deployment", "agent"))
    (sidecar,) = pod["initContainers"]
    assert sidecar["restartPolicy"] == "Always"
    assert sidecar["name"] == "network"
    args = pod["containers"][0]["args"]
    assert args[args.index("--network") + 1] == "localhost:8500"
    assert "nfs" in {v["name"]: v for v in pod["volumes"]}["models"]


def test_a_mirror_and_a_digest_are_used_for_every_image():
    for container in containers(with_values(CHARTS / "ci" / "hardened-values.yaml")):
        if container["name"] != "extra":
            assert re.fullmatch(
                r"registry\.example\.org/team/muprover-\w+@sha256:\w+", container["image"]
            )


def test_the_gpu_form_asks_for_gpus_and_tolerates_their_nodes():
    manifests = with_values(CHARTS / "ci" / "gpu-values.yaml")
    for kind, name in (("StatefulSet", "network"), ("Deployment", "trainer")):
        pod = pod_of(find(manifests, kind, name))
        assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1
        assert pod["tolerations"][0]["key"] == "nvidia.com/gpu"
        assert pod["containers"][0]["image"].endswith("-gpu")


def test_prometheus_gets_the_rules_and_grafana_the_dashboards_as_they_are():
    manifests = with_values(CHARTS / "ci" / "autoscale-hpa-values.yaml")
    groups = find(manifests, "PrometheusRule", "rules")["spec"]["groups"]
    assert len({group["name"] for group in groups}) == len(groups) > 0
    assert "muprover:agent_demand:ratio" in json.dumps(groups)
    dashboards = {p.name: p for p in (CHARTS / "dashboards").glob("*.json")}
    for path in dashboards.values():
        data = find(manifests, "ConfigMap", f"dashboard-{path.stem}")["data"]
        given, own = json.loads(data[f"muprover-{path.name}"]), json.loads(path.read_text())
        assert given.pop("title") == f"{own.pop('title')}, games/muprover"
        assert given.pop("uid").startswith(own.pop("uid"))
        assert given == own


def test_dashboards_of_two_releases_are_not_each_other_s():
    found = [
        [
            json.loads(next(iter(m["data"].values())))
            for m in template(release=release)
            if "dashboard" in m["metadata"]["name"]
        ]
        for release in ("one", LONG, LONG + "c")
    ]
    for key in ("uid", "title"):
        assert len({dashboard[key] for ds in found for dashboard in ds}) == 12
    assert all(len(dashboard["uid"]) <= 40 for ds in found for dashboard in ds)


@pytest.mark.parametrize(
    "more", ["network.mode=shared", "network.mode=sidecar", "models.transfer=grpc"]
)
@pytest.mark.parametrize("server", ["embedded", "tensorflow-serving"])
def test_every_place_that_is_scraped_is_a_port_that_is_open(server, more):
    options = f"metrics.serviceMonitor.enabled=true,network.server={server},{more}"
    manifests = template("--set", options)
    ports = {p["name"]: p["port"] for p in find(manifests, "Service", "metrics")["spec"]["ports"]}
    monitor = find(manifests, "ServiceMonitor", "metrics")["spec"]["endpoints"]
    assert {endpoint["port"] for endpoint in monitor} == set(ports)
    named = {
        (m["metadata"]["name"], p["containerPort"])
        for m in manifests
        if m["kind"] in ("Deployment", "StatefulSet")
        for c in containers([m])
        for p in c.get("ports", [])
        if p["name"].endswith("metrics")
    }
    assert {number for _, number in named} == set(ports.values())
    for name, number in named:
        rules = find(manifests, "NetworkPolicy", name.removeprefix("muprover-"))["spec"]["ingress"]
        assert number in [p["port"] for rule in rules if "from" not in rule for p in rule["ports"]]


def test_a_pod_of_the_common_values_is_the_component_s_where_that_says_otherwise():
    options = ("--set-string", "common.nodeSelector.a=1,agent.nodeSelector.b=2")
    options += ("--set", "common.logLevel=debug,agent.logLevel=error")
    manifests = template(*options)
    agent, replay = (pod_of(find(manifests, "Deployment", n)) for n in ("agent", "replay"))
    assert agent["nodeSelector"] == {"a": "1", "b": "2"}
    assert replay["nodeSelector"] == {"a": "1"}
    assert "error" in agent["containers"][0]["args"]
    assert "debug" in replay["containers"][0]["args"]
