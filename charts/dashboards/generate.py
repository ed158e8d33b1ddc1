"""Makes Grafana's dashboards of `panels.yaml`: `python charts/dashboards/generate.py`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
PANELS: dict[str, Any] = yaml.safe_load((HERE / "panels.yaml").read_text(encoding="utf-8"))

METRIC = re.compile(
    r"(?<![\w:$])((?:muprover|process)_\w+|:tensorflow:[\w:]+|muprover:[\w:]+|up\b)(?:\{(.*?)\})?"
)
SCOPE = 'namespace="$namespace", release="$release"'
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
WIDTH, HEIGHT, STAT_HEIGHT = 24, 8, 4  # of a page and of panels, in Grafana's grid
QUANTILES = (0.5, 0.9, 0.99)


def render(name: str) -> str:
    """A dashboard's JSON."""
    dashboard = {
        "uid": f"muprover-{name}",
        "title": PANELS[name]["title"],
        "tags": ["muprover"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "graphTooltip": 1,  # one cross-hair for all panels
        "links": [
            {
                "type": "dashboards",
                "title": "MuProver",
                "tags": ["muprover"],
                "asDropdown": True,
                "includeVars": True,
                "keepTime": True,
            }
        ],
        "templating": {"list": variables()},
        "panels": layout(PANELS[name]["rows"]),
    }
    return json.dumps(dashboard, indent=1, ensure_ascii=False) + "\n"


def variables() -> list[dict[str, Any]]:
    """What is chosen at the top of the page."""
    namespaces = "label_values(muprover_replay_games, namespace)"
    releases = 'label_values(muprover_replay_games{namespace="$namespace"}, release)'
    return [
        {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"},
        *(
            {
                "name": name,
                "label": name,
                "type": "query",
                "datasource": DATASOURCE,
                "query": {"query": query, "refId": name},
                "refresh": 2,  # whenever the time range changes
                "sort": 1,
            }
            for name, query in (("namespace", namespaces), ("release", releases))
        ),
    ]


def layout(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Panels in their places: stats in one line, others up to four in a line."""
    placed = []
    y = 0
    for row in rows:
        placed.append(
            {
                "type": "row",
                "title": row["title"],
                "collapsed": False,
                "panels": [],
                "gridPos": {"x": 0, "y": y, "w": WIDTH, "h": 1},
            }
        )
        y += 1
        panels = row["panels"]
        stats = panels[0].get("type") == "stat"
        columns = len(panels) if stats or len(panels) <= 4 else 3
        width, height = WIDTH // columns, STAT_HEIGHT if stats else HEIGHT
        for number, panel in enumerate(panels):
            line, column = divmod(number, columns)
            place = {"x": column * width, "y": y + line * height, "w": width, "h": height}
            placed.append(grafana_panel(panel) | {"gridPos": place})
        y += -(-len(panels) // columns) * height
    return [{"id": number} | panel for number, panel in enumerate(placed, start=1)]


def grafana_panel(panel: dict[str, Any]) -> dict[str, Any]:
    kind = panel.get("type", "timeseries")
    defaults: dict[str, Any] = {"unit": panel.get("unit", "short")}
    if kind == "timeseries":
        stacked = panel.get("stacked", False)
        defaults["custom"] = {
            "fillOpacity": 30 if stacked else 5,
            "stacking": {"mode": "normal" if stacked else "none"},
            "showPoints": "never",
        }
        if "top" in panel:
            defaults |= {"min": 0, "max": panel["top"]}
    return {
        "type": kind,
        "title": panel["title"],
        "description": panel.get("text", ""),
        "datasource": DATASOURCE,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "targets": [
            {
                "refId": chr(ord("A") + number),
                "datasource": DATASOURCE,
                "expr": scoped(query),
                "legendFormat": legend,
            }
            for number, (legend, query) in enumerate(queries(panel).items())
        ],
    }


def queries(panel: dict[str, Any]) -> dict[str, str]:
    """A panel's queries, by legend."""
    if "quantiles" not in panel:
        return panel.get("queries") or {"": panel["query"]}
    by = panel.get("by", "")
    labels, legend = (f"le, {by}", f"{{{{{by}}}}} ") if by else ("le", "")
    rates = f"sum by ({labels}) (rate({panel['quantiles']}_bucket[$__rate_interval]))"
    return {f"{legend}p{100 * q:g}": f"histogram_quantile({q}, {rates})" for q in QUANTILES}


def scoped(query: str) -> str:
    """The query, of the chosen namespace and release only."""

    def narrow(match: re.Match[str]) -> str:
        labels = f"{SCOPE}, {match[2]}" if match[2] else SCOPE
        return f"{match[1]}{{{labels}}}"

    return METRIC.sub(narrow, query)


if __name__ == "__main__":
    for name in PANELS:
        (HERE / f"{name}.json").write_text(render(name), encoding="utf-8")
