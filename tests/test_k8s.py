"""What stands beside the chart: examples for clusters, manifests for those without Helm, images and
the compose file."""

import re
import shutil
import subprocess
import sys

import kubernetes_validate
import pytest
import yaml
from helm import CHARTS, find, template

from muprover.cli import parse
from muprover.components import NUM_SERVED
from muprover.serving_config import read_models

ROOT = CHARTS.parent
K8S, DOCKER = ROOT / "k8s", ROOT / "docker"
COMPONENTS = {"environment", "replay", "agent", "evaluator", "trainer", "network"}


@pytest.mark.parametrize("name", ["keda", "node-pools"])
def test_examples_of_values_are_taken_by_the_chart(name):
    assert template("--values", str(K8S / f"{name}-values.yaml"))


def test_the_adapter_offers_the_metric_that_the_autoscaler_asks_for():
    adapter = yaml.safe_load((K8S / "prometheus-adapter-values.yaml").read_text())
    (rule,) = adapter["rules"]["external"]
    scaler = find(
        template("--set", "agent.autoscaling.type=external"), "HorizontalPodAutoscaler", "agent"
    )
    (metric,) = scaler["spec"]["metrics"]
    assert metric["external"]["metric"]["name"] == rule["name"]["as"]
    recorded = rule["seriesQuery"].partition("{")[0]
    rules = yaml.safe_load((CHARTS / "files" / "rules" / "recording.yaml").read_text())
    assert recorded in [r.get("record") for g in rules["groups"] for r in g["rules"]]


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed")
def test_the_scrape_job_is_one_that_prometheus_takes(tmp_path):
    """But for its discovery, which Debian's Prometheus is built without."""
    config = yaml.safe_load((K8S / "prometheus-scrape.yaml").read_text())
    assert config["scrape_configs"][0].pop("kubernetes_sd_configs") == [{"role": "pod"}]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    command = ["promtool", "check", "config", "--syntax-only", str(tmp_path / "config.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_scrape_job_gives_the_labels_of_the_operator_s():
    (job,) = yaml.safe_load((K8S / "prometheus-scrape.yaml").read_text())["scrape_configs"]
    given = {rule.get("target_label"): rule["source_labels"] for rule in job["relabel_configs"]}
    monitor = find(template("--set", "metrics.podMonitor.enabled=true"), "PodMonitor", "metrics")
    for rule in monitor["spec"]["podMetricsEndpoints"][0]["relabelings"]:
        assert given[rule["targetLabel"]] == rule["sourceLabels"]
    assert {"namespace", "pod", "__metrics_path__"} <= set(given)


def test_the_role_is_valid():
    for manifest in yaml.safe_load_all((K8S / "role.yaml").read_text()):
        kubernetes_validate.validate(manifest, "1.37", strict=True)


def test_plain_manifests_are_objects_of_one_namespace():
    kustomization = yaml.safe_load((K8S / "kustomization.yaml").read_text())
    for path in kustomization["resources"]:
        for manifest in yaml.safe_load_all((K8S / path).read_text()):
            kubernetes_validate.validate(manifest, "1.37", strict=True)
            assert manifest["metadata"].get("namespace", "muprover") == "muprover"


def stages():
    """Each stage of the Dockerfile: the one it begins from, and its lines."""
    text = (DOCKER / "Dockerfile").read_text().replace("\\\n", "")
    parts = re.split(r"(?m)^FROM (\S+) AS (\S+)$", text)[1:]
    return {name: (base, lines) for base, name, lines in zip(*[iter(parts)] * 3, strict=True)}


def test_each_component_has_an_image_and_only_two_have_tensorflow():
    bases = {name: base for name, (base, _) in stages().items() if name in COMPONENTS}
    assert set(bases) == COMPONENTS
    assert {name for name, base in bases.items() if base == "with-tensorflow"} == {
        "trainer",
        "network",
    }
    assert 'ENTRYPOINT ["muprover"]' in stages()["base"][1]
    assert "USER 10001:10001" in stages()["base"][1]


def test_images_hold_what_the_package_asks_for():
    def requirements(*parts):
        command = [sys.executable, "docker/requirements.py", *parts]
        return subprocess.check_output(command, cwd=ROOT, text=True).split()

    core = requirements("core", "gymnasium")
    assert not [line for line in core if line.startswith("tensorflow")]
    assert [line for line in core if line.startswith("numpy")]
    with_tensorflow = requirements("core", "gymnasium", "tensorflow")
    assert len([line for line in with_tensorflow if re.match("tensorflow[><=]", line)]) == 1


def test_the_images_of_the_chart_are_those_that_are_built():
    names = {
        container["image"]
        for manifest in template()
        if manifest["kind"] in ("Deployment", "StatefulSet")
        for container in manifest["spec"]["template"]["spec"]["containers"]
    }
    version = re.search(r'(?m)^version = "(.*)"', (ROOT / "pyproject.toml").read_text())[1]
    assert names == {f"muprover-{component}:{version}" for component in COMPONENTS}


def test_compose_runs_every_component_with_words_that_muprover_takes(tmp_path):
    text = (DOCKER / "compose.yaml").read_text()
    compose = yaml.safe_load(re.sub(r"\$\{(\w+):-([^}]*)\}", r"\2", text))
    services = {name: s for name, s in compose["services"].items() if name != "prepare"}
    assert set(services) == COMPONENTS
    for service in services.values():
        assert parse(service["command"]).command is not None
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
    assert "configs" not in compose  # with content, they need a file system that can be written
    (script,) = compose["services"]["prepare"]["command"]
    (tmp_path / "models.config").write_text(script.partition("<<END\n")[2].partition("END\n")[0])
    (model,) = read_models(tmp_path / "models.config")
    assert model.policy.num_versions == NUM_SERVED
