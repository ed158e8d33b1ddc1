"""What a host's supervisor is ordered to keep running: command lines, in one file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from muprover.components import Layout, Ports, free_ports, make_components
from muprover.hosts.locks import write_locks
from muprover.hosts.place import Place, Tree, read_tree, write_tree
from muprover.services.locks import TLS
from muprover.supervisor import Component


def write_orders(place: Place, message: Tree) -> int:
    """Makes this host's command lines from what all hosts agreed on; answers the orders' number.

    message: `layout`, `servers` (ports, by component), `elsewhere` (addresses), `listen`, `locks`,
    `seed`.
    """
    before = read_tree(place.orders) if place.supervisor() else {}
    layout = Layout(**message["layout"])
    _link_versions(place, layout)
    locks = write_locks(place, message["locks"])
    own = own_ports(layout, message["servers"], before)
    ports = Ports(
        environment=message["servers"].get("environment", 0),
        replay=message["servers"].get("replay", 0),
        network=message["servers"].get("network", 0),
        rest=own["REST"],
        metrics={name: own[name] for name in layout.names},
        host=message["listen"],
        elsewhere=message["elsewhere"],
        locks=locks,
        models=message["servers"].get("models", 0),
    )
    folder = place.folder_for(layout.names)
    game = folder.load()
    components = make_components(layout, ports, folder, game.config, message["seed"], None)
    goal = game.config.evaluation.goal
    number = int(read_tree(place.orders).get("number", 0)) + 1
    orders = {
        "number": number,
        "names": layout.names,
        "components": [to_tree(component) for component in components],
        "listens": {**message["servers"], **({"REST": own["REST"]} if own["REST"] else {})},
        "elsewhere": message["elsewhere"],
        "metrics": ports.metrics,
        "tls": bool(locks.get(TLS)),
        "goal": str(goal) if goal else None,
    }
    write_tree(place.orders, orders)
    return number


def own_ports(layout: Layout, servers: Mapping[str, int], before: Tree) -> dict[str, int]:
    """Those that no other host asks for; what runs already keeps its own."""
    names = [*layout.names, "REST"]
    kept = {**before.get("metrics", {}), "REST": before.get("listens", {}).get("REST")}
    taken = {*servers.values(), *filter(None, kept.values())}
    free = iter([p for p in free_ports(len(names) + len(taken)) if p not in taken])
    own = {name: kept.get(name) or next(free) for name in names}
    return own if "network" in layout.names else own | {"REST": 0}


def _link_versions(place: Place, layout: Layout) -> None:
    """Lets people find models in the run's folder: those of the trainer, if they are here."""
    versions, name = place.versions(layout.names), place.folder.models
    if versions is None:
        return
    for folder in (versions, place.own):
        folder.mkdir(parents=True, exist_ok=True)
    if "trainer" in layout.names or not name.exists():
        link = place.own / "models"
        link.unlink(missing_ok=True)
        link.symlink_to(versions.resolve())
        os.replace(link, name)


def to_tree(component: Component) -> Tree:
    return {
        "name": component.name,
        "arguments": list(component.arguments),
        "log": str(component.log),
        "grace_seconds": component.grace_seconds,
        "environment": dict(component.environment),
    }


def from_tree(tree: Tree) -> Component:
    return Component(**tree | {"log": Path(tree["log"])})
