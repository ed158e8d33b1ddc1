"""Makes what follows from the chart's values and MuProver's settings: `python charts/generate.py`.

values.schema.json  refuses misspelt values; its `config` part is the settings tree's own schema
README.md           the table of values
../k8s/rendered/    plain manifests for those without Helm, where `helm` is at hand
"""

from __future__ import annotations

import copy
import fnmatch
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from muprover.config import Config

CHARTS = Path(__file__).resolve().parent
RENDERED = CHARTS.parent / "k8s" / "rendered"
PLAIN = ("default", "gpu")  # the ci/ files that are rendered for those without Helm
COMPONENTS = (
    *("environment", "replay", "network", "trainer", "pull", "agent", "evaluator"),
    *("tensorboard", "test"),
)

NAME = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
PORT = {"type": "integer", "minimum": 1, "maximum": 65535}
ONE_WRITER = {"type": "integer", "minimum": 0, "maximum": 1}
COUNT = {"type": ["integer", "null"], "minimum": 0}
AT_LEAST_1 = {"type": "integer", "minimum": 1}
OR_NULL = {"type": ["integer", "null"], "minimum": 1}
OBJECTS = {"type": "array", "items": {"type": "object"}}
STRINGS = {"type": "array", "items": {"type": "string"}}
NUMBER_OR_PERCENT = {"type": ["integer", "string"], "pattern": r"^([0-9]+%?)?$", "minimum": 0}
NUMBER = r"^-?[0-9]*\.?[0-9]+([eE][-+]?[0-9]+)?$"  # Helm's --set makes text of what has a point
ACCESS_MODES = ["ReadWriteOnce", "ReadWriteMany", "ReadWriteOncePod", "ReadOnlyMany"]

# What a default does not tell of its value. The first pattern that fits holds.
SPECIAL: list[tuple[str, dict[str, Any]]] = [
    ("game", {"type": "string", "pattern": r"^[a-zA-Z_][a-zA-Z0-9_]*(\.[a-zA-Z0-9_]+)*$"}),
    (
        "games",
        {
            "type": "object",
            "propertyNames": {"pattern": "^[a-z][a-z0-9_]*$"},
            "additionalProperties": {"type": "string", "minLength": 1},
        },
    ),
    ("config", {"$ref": "#/$defs/config"}),
    ("runName", {"type": "string", "pattern": r"^([A-Za-z0-9][-_.A-Za-z0-9]*)?$"}),
    ("fullnameOverride", {"type": "string", "pattern": r"^$|" + NAME, "maxLength": 40}),
    ("nameOverride", {"type": "string", "pattern": r"^$|" + NAME, "maxLength": 40}),
    ("global.imagePullSecrets", STRINGS),
    ("*.pullPolicy", {"enum": ["Always", "IfNotPresent", "Never"]}),
    ("*.logLevel", {"enum": ["debug", "info", "warning", "error"]}),
    ("*.logFormat", {"enum": ["text", "json"]}),
    ("*.accessModes", {"type": "array", "items": {"enum": ACCESS_MODES}, "minItems": 1}),
    ("*.size", {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?([EPTGMk]i?)?$"}),
    ("*.ports.*", PORT),
    ("metrics.port", PORT),
    ("healthPort", PORT),
    ("replay.replicaCount", ONE_WRITER),
    ("trainer.replicaCount", ONE_WRITER),
    ("*.replicaCount", COUNT),
    ("agent.autoscaling.minReplicas", COUNT),
    ("*.minReplicas", AT_LEAST_1),
    ("*.maxReplicas", AT_LEAST_1),
    ("*.threads", OR_NULL),
    ("agent.parallelGames", OR_NULL),
    ("*.pdb.m*", NUMBER_OR_PERCENT),
    ("network.server", {"enum": ["auto", "embedded", "tensorflow-serving"]}),
    ("locks.tls.clients", {"enum": ["certificate", "any"]}),
    ("locks.tls.certManager.issuer.kind", {"enum": ["Issuer", "ClusterIssuer"]}),
    ("network.mode", {"enum": ["shared", "sidecar"]}),
    ("models.transfer", {"enum": ["volume", "grpc"]}),
    ("network.modelName", {"type": "string", "pattern": r"^[A-Za-z0-9][-_.A-Za-z0-9]*$"}),
    ("network.pollWaitSeconds", {"type": "number", "exclusiveMinimum": 0}),
    ("network.batching.allowedBatchSizes", {"type": "array", "items": AT_LEAST_1}),
    ("agent.autoscaling.type", {"enum": ["none", "cpu", "external", "keda"]}),
    ("*.cidrs", STRINGS),
    ("extraManifests", {"type": "array", "items": {"type": ["object", "string"]}}),
    ("*.command", STRINGS),
    ("*.args", STRINGS),
    ("*.extraArgs", STRINGS),
    ("*.prometheusRule.rules", OBJECTS),
]
# Kubernetes' own objects: their fields are checked by the cluster.
FREE_FORM = [
    *("*.resources", "*.sidecarResources", "*.podSecurityContext", "*.containerSecurityContext"),
    *("*.*Probe", "*.behavior", "*.fallback", "*.dashboards.labels"),
]


def values_schema() -> dict[str, Any]:
    """The JSON Schema of values.yaml: its keys and no others, with the types of its defaults."""
    text = (CHARTS / "values.yaml").read_text(encoding="utf-8")
    values = yaml.safe_load(text)
    about = descriptions(text)
    common = _object(values["common"], "common", about)["properties"]
    schema = _object(values, "", about)
    for name in COMPONENTS:
        own = schema["properties"][name]["properties"]
        for key, value in common.items():
            both = own.get(key, {}).get("properties")
            own[key] = _joined(value, own[key]) if both else own.get(key, copy.deepcopy(value))
    # Helm itself hands subcharts' and parents' values down
    schema["properties"]["global"]["additionalProperties"] = True
    settings, definitions = settings_schema()
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "MuProver"}
    return {**head, **schema, "$defs": {"config": settings, **definitions}}


def settings_schema() -> tuple[dict[str, Any], dict[str, Any]]:
    """The schema of `config`, a layer of settings of which none is required, and of its parts."""
    schema = _without_demands(Config.model_json_schema())
    definitions: dict[str, Any] = schema.pop("$defs")
    network = schema["properties"]["network"]
    network["anyOf"] = network.pop("oneOf")  # which one it is, is the game's business
    network.pop("discriminator")
    return schema, definitions


def descriptions(text: str) -> dict[str, str]:
    """What the comments `# -- …` of a YAML text say about the dotted path that follows each."""
    found: dict[str, str] = {}
    path: list[tuple[int, str]] = []
    waiting = ""
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.startswith("# -- "):
            waiting = stripped[5:]
        elif key := re.match(r"([A-Za-z]\w*):", stripped):
            indent = len(line) - len(line.lstrip())
            path = [part for part in path if part[0] < indent] + [(indent, key[1])]
            if waiting:
                found[".".join(name for _, name in path)] = waiting
            waiting = ""
    return found


def _object(values: dict[str, Any], path: str, about: dict[str, str]) -> dict[str, Any]:
    properties = {}
    for key, value in values.items():
        inner = f"{path}.{key}" if path else key
        properties[key] = _value(value, inner, about)
        if inner in about:
            properties[key]["description"] = about[inner]
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _value(value: Any, path: str, about: dict[str, str]) -> dict[str, Any]:
    for pattern, schema in SPECIAL:
        if fnmatch.fnmatchcase(path, pattern):
            return dict(schema)
    if any(fnmatch.fnmatchcase(path, pattern) for pattern in FREE_FORM):
        return {"type": "object"}
    if isinstance(value, dict):
        return _object(value, path, about) if value else {"type": "object"}
    if isinstance(value, list):
        return {"type": "array"}
    kinds = {bool: "boolean", int: "integer", float: "number", str: "string"}
    return {"type": kinds[type(value)]}


def _joined(common: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    properties = {**copy.deepcopy(common["properties"]), **own["properties"]}
    return {**own, "properties": properties}


def _without_demands(node: Any) -> Any:
    """A copy in which nothing is required and nothing has a default: a layer lies on a game."""
    if isinstance(node, list):
        return [_without_demands(item) for item in node]
    if not isinstance(node, dict):
        return node
    if node.get("type") == "number":
        node = {**node, "type": ["number", "string"], "pattern": NUMBER}
    return {
        key: {name: _without_demands(schema) for name, schema in value.items()}
        if key in ("properties", "$defs")  # their keys are names, whatever these are
        else _without_demands(value)
        for key, value in node.items()
        if key not in ("required", "default", "title")
    }


def readme() -> str:
    """The chart's README: its head, and a table of all values."""
    text = (CHARTS / "values.yaml").read_text(encoding="utf-8")
    about = descriptions(text)
    rows = ["| value | default | is |", "|---|---|---|"]
    for path, value in _leaves(yaml.safe_load(text), ""):
        default = json.dumps(value, ensure_ascii=False).replace("|", "\\|")
        rows.append(
            f"| `{path}` | `{default}` | {about.get(path, '').replace('|', chr(92) + '|')} |"
        )
    head = (CHARTS / "README.head.md").read_text(encoding="utf-8")
    return head + "\n" + "\n".join(rows) + "\n"


def _leaves(tree: dict[str, Any], path: str) -> list[tuple[str, Any]]:
    leaves: list[tuple[str, Any]] = []
    for key, value in tree.items():
        inner = f"{path}.{key}" if path else key
        is_whole = any(fnmatch.fnmatchcase(inner, pattern) for pattern in FREE_FORM)
        if isinstance(value, dict) and value and not is_whole:
            leaves += _leaves(value, inner)
        else:
            leaves.append((inner, value))
    return leaves


def render(name: str, helm: str) -> str:
    """The manifests of a release called muprover with the values of a ci/ file. Without what only
    Helm runs, and without dashboards, which Grafana imports from their own files."""
    command = [helm, "template", "muprover", str(CHARTS), "--namespace", "muprover", "--no-hooks"]
    command += ["--values", str(CHARTS / "ci" / f"{name}-values.yaml")]
    command += ["--set", "metrics.dashboards.enabled=false"]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return re.sub(r"(?m)[ \t]+$", "", text)


def main() -> int:
    schema = json.dumps(values_schema(), indent=2, ensure_ascii=False)
    (CHARTS / "values.schema.json").write_text(schema + "\n", encoding="utf-8")
    (CHARTS / "README.md").write_text(readme(), encoding="utf-8")
    helm = shutil.which("helm", path=f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin")
    if helm is None:
        print("no helm: k8s/rendered stays as it is", file=sys.stderr)
        return 0
    RENDERED.mkdir(parents=True, exist_ok=True)
    for name in PLAIN:
        (RENDERED / f"{name}.yaml").write_text(render(name, helm), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
