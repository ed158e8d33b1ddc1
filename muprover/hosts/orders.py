"""What a host's supervisor is ordered to keep running: command lines, in one file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

from muprover.components import Layout, Ports, free_ports, make_components
from muprover.hosts.locks import write_locks
from muprover.hosts.place import Place, Tree, read_as, write_tree
from muprover.services.locks import TLS
from muprover.supervisor import Component


@dataclass(frozen=True)
class Ordered:
    """A component's command line, and what goes with it."""

    name: str
    arguments: list[str]
    log: str
    grace_seconds: float
    environment: dict[str, str]

    @classmethod
    def of(cls, component: Component) -> Self:
        return cls(
            name=component.name,
            arguments=list(component.arguments),
            log=str(component.log),
            grace_seconds=component.grace_seconds,
            environment=dict(component.environment),
        )

    def component(self) -> Component:
        return Component(**vars(self) | {"log": Path(self.log)})


@dataclass(frozen=True)
class Orders:
    number: int = 0  # they are counted; 0: there are none
    names: list[str] = field(default_factory=list)  # of components that were ever ordered
    components: list[Ordered] = field(default_factory=list)
    listens: dict[str, int] = field(default_factory=dict)  # ports of servers
    elsewhere: dict[str, str] = field(default_factory=dict)  # addresses of servers on other hosts
    metrics: dict[str, int] = field(default_factory=dict)  # ports, by component
    tls: bool = False  # of these ports
    goal: str | None = None

    @classmethod
    def read(cls, place: Place) -> Self:
        return read_as(cls, place.orders)

    def write(self, place: Place) -> None:
        write_tree(place.orders, asdict(self))


def write_orders(place: Place, message: Tree) -> int:
    """Makes this host's command lines from what all hosts agreed on; answers the orders' number.

    message: `layout`, `servers` (ports, by component), `elsewhere` (addresses), `listen`, `locks`,
    `seed`.
    """
    last = Orders.read(place)
    before = last if place.supervisor() else Orders()
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
    orders = Orders(
        number=last.number + 1,
        names=layout.names,
        components=[Ordered.of(component) for component in components],
        listens={**message["servers"], **({"REST": own["REST"]} if own["REST"] else {})},
        elsewhere=message["elsewhere"],
        metrics=ports.metrics,
        tls=bool(locks.get(TLS)),
        goal=str(goal) if goal else None,
    )
    orders.write(place)
    return orders.number


def own_ports(layout: Layout, servers: Mapping[str, int], before: Orders) -> dict[str, int]:
    """Those that no other host asks for; what runs already keeps its own."""
    names = [*layout.names, "REST"]
    kept = {**before.metrics, "REST": before.listens.get("REST")}
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
