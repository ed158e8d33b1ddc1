"""Grafana's dashboards: as generated, in their places, and in queries that Prometheus can read."""

import importlib.util
import json
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest
import yaml

FOLDER = Path(__file__).parents[1] / "charts/dashboards"


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", FOLDER / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GENERATOR = generator()
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))


def dashboard(name: str) -> dict:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def queries(name: str) -> list[str]:
    return [q["expr"] for panel in dashboard(name)["panels"] for q in panel.get("targets", [])]


def test_there_are_four():
    assert NAMES == ["resources", "selfplay", "serving", "training"]


@pytest.mark.parametrize("name", NAMES)
def test_files_are_what_the_generator_makes(name):
    assert (FOLDER / f"{name}.json").read_text(encoding="utf-8") == GENERATOR.render(name), (
        "run: python charts/dashboards/generate.py"
    )


@pytest.mark.parametrize("name", NAMES)
def test_panels_do_not_overlap_and_stay_on_the_page(name):
    taken: set[tuple[int, int]] = set()
    for panel in dashboard(name)["panels"]:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells


@pytest.mark.parametrize("name", NAMES)
def test_every_query_is_of_the_chosen_release(name):
    for query in queries(name):
        selectors = query.count('namespace="$namespace", release="$release"')
        assert selectors == len(GENERATOR.METRIC.findall(query)) > 0, query


def test_a_selector_of_a_query_s_own_is_kept():
    query = 'sum(up{component="agent"}) by (component) > muprover:goal_met:bool'
    assert GENERATOR.scoped(query) == (
        'sum(up{namespace="$namespace", release="$release", component="agent"}) by (component)'
        ' > muprover:goal_met:bool{namespace="$namespace", release="$release"}'
    )


def test_quantiles_name_what_they_are_by():
    panel = {"quantiles": "muprover_x_seconds", "by": "pod"}
    assert list(GENERATOR.queries(panel)) == ["{{pod}} p50", "{{pod}} p90", "{{pod}} p99"]


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed")
def test_prometheus_understands_every_query(tmp_path):
    rules = [
        {"record": "query", "expr": query.replace("$__rate_interval", "1m")}
        for name in NAMES
        for query in queries(name)
    ]
    file = tmp_path / "queries.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboards", "rules": rules}]}))
    command = ["promtool", "check", "rules", "--lint=none", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"{len(rules)} rules found" in done.stdout
