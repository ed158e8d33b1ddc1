"""Before anything is started: every host is looked at, and all that is wrong is said at once."""

from __future__ import annotations

import json
import secrets
import shlex
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from typing import Any

from muprover.hosts.connection import Connections, Host, HostsError, Message, read_answer
from muprover.hosts.hostsfile import Hosts, machine
from muprover.hosts.locks import why_refused
from muprover.hosts.place import Place
from muprover.services.locks import Locks

LEAST_PYTHON = (3, 11)
NEEDS = {  # whom a component calls
    "trainer": ("replay",),
    "agent": ("environment", "replay", "network"),
    "evaluator": ("environment", "network"),
    "network": ("models",),
}
PROBE = """\
import json, sys
try:
    from importlib.metadata import version
    found = version("muprover")
except Exception:
    found = None
print(json.dumps([sys.executable, list(sys.version_info[:2]), found]))
"""


@dataclass(frozen=True)
class Plan:
    """What is to be started, and where."""

    hosts: Hosts
    run: str
    dir: str
    models: str
    model_port: int  # where the trainer gives its versions to a network server elsewhere
    python: str | None  # on every host; None: it is looked for

    def place(self, host: str) -> Place:
        return Place(host=host, run=self.run, dir=self.dir, models=self.models)

    @property
    def is_one_host(self) -> bool:
        return len(self.hosts.names) == 1

    @property
    def pulls(self) -> bool:
        """Whether versions of the network must cross from one host to another."""
        return self.hosts.line("network").host != self.hosts.line("trainer").host

    def servers(self, host: str) -> dict[str, int]:
        """Ports that others ask for on a host; `models` is the trainer's."""
        ports = self.hosts.ports(host)
        if self.pulls and self.hosts.line("trainer").host == host:
            ports["models"] = self.model_port
        return ports

    def where(self, server: str) -> str:
        return self.hosts.line("trainer" if server == "models" else server).host

    def called(self, host: str) -> list[str]:
        """Servers that components of a host call, wherever these are."""
        kinds = {name.partition("-")[0] for name in self.hosts.components(host)}
        called = {server for kind in kinds for server in NEEDS.get(kind, ())}
        return sorted(called if self.pulls else called - {"models"})

    def partners(self, host: str) -> list[str]:
        """Those of them that are on other hosts."""
        return [server for server in self.called(host) if self.where(server) != host]


@dataclass
class Findings:
    """What the hosts have answered, and what is wrong with them."""

    answers: dict[str, Message] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    addresses: dict[str, dict[str, str]] = field(default_factory=dict)  # of servers, by host

    def add(self, wrong: dict[str, str]) -> None:
        self.problems += [f"{host}: {problem}" for host, problem in wrong.items()]


def look_at_all(plan: Plan, connections: Connections, game: Message) -> Findings:
    """Asks all hosts; finds how they reach each other, unless one of them has a problem.

    game: `source`, and `text` of a file.
    """
    findings = Findings()
    pythons, wrong = connections.each(partial(find_python, plan))
    findings.add(wrong)
    for host in connections.hosts:
        host.python = pythons.get(host.name, "")

    def ask(host: Host) -> Message:
        message = {
            "place": vars(plan.place(host.name)),
            "components": plan.hosts.components(host.name),
            "servers": plan.servers(host.name),
            "game": game,
        }
        return host.ask("check", message)

    findings.answers, wrong = connections.each(ask, [h for h in connections.hosts if h.python])
    findings.add(wrong)
    for name, answer in findings.answers.items():
        findings.problems += [f"{name}: {problem}" for problem in answer["problems"]]
    findings.problems += check_moved(plan, findings)
    findings.problems += check_model_port(plan)
    if not findings.problems:
        _find_addresses(plan, connections, findings)
    return findings


def find_python(plan: Plan, host: Host) -> str:
    """The interpreter with MuProver on a host; raises `HostsError` if there is none that fits."""
    candidates = candidates_for_python(plan, host)
    probes = [
        f'(p=$(command -v {word}) && exec "$p" -c {shlex.quote(PROBE)}) 2>/dev/null'
        for word in candidates
    ]
    answer = host.shell("\n".join([*([] if host.is_here else ["cd /"]), *probes, "exit 0\n"]))
    found = []
    for line in answer.splitlines():
        with suppress(ValueError):  # a shell's start-up files may write, too
            found.append(json.loads(line))
    return choose_python([told for told in found if isinstance(told, list)], candidates)


def candidates_for_python(plan: Plan, host: Host) -> list[str]:
    """Words of a shell script, the likeliest first."""
    if plan.python:
        return [shlex.quote(plan.python)]
    if host.is_here:
        return [shlex.quote(host.python)]
    below = shlex.quote(plan.dir)
    folder = below if plan.dir.startswith("/") else f'"$HOME"/{below}'
    beside = [f"{folder}/{name}/bin/python" for name in (".venv", "venv")]
    return [*beside, "python3", "python"]


def choose_python(found: list[Any], candidates: list[str]) -> str:
    ours = metadata.version("muprover")
    told = []
    for path, version, muprover in found:
        python = ".".join(map(str, version))
        if tuple(version) < LEAST_PYTHON:
            told.append(f"{path} is Python {python}; MuProver needs 3.11 or newer")
        elif muprover is None:
            told.append(f"{path} has no MuProver: {path} -m pip install 'muprover[all]=={ours}'")
        elif muprover != ours:
            told.append(f"{path} has MuProver {muprover}, but here is {ours}")
        else:
            return str(path)
    if told:
        raise HostsError(told[0])
    raise HostsError(f"no Python was found; looked for {', '.join(candidates)}")


def check_moved(plan: Plan, findings: Findings) -> Iterator[str]:
    """What a run left on another host than the one that is to go on with it."""
    for component, what in (("trainer", "checkpoints"), ("replay", "games")):
        now = plan.hosts.line(component).host
        stored = {host: answer["run"] or {} for host, answer in findings.answers.items()}
        there = [host for host, run in stored.items() if run.get(component)]
        if there and now in stored and now not in there:
            folder = f"{plan.dir}/runs/{plan.run}"
            yield (
                f"{now}: the run's {what} lie on {there[0]}, in {folder}; name {there[0]} in the "
                f"line for {component}, or copy that folder"
            )


def check_model_port(plan: Plan) -> Iterator[str]:
    """That the trainer's versions have a port of their own, if they need one."""
    host = plan.hosts.line("trainer").host
    others = {port: f"{server}'s" for server, port in plan.hosts.ports(host).items()}
    if plan.pulls and plan.model_port in (0, *others):
        whose = others.get(plan.model_port, "any free one, which nobody could be told")
        yield f"{host}: --model-port {plan.model_port} is {whose}; choose another"


def check_names(plan: Plan, findings: Findings, locks: Locks) -> Iterator[str]:
    """Servers whose certificate does not name them as they are called: they would be refused."""
    if locks.tls is None:
        return
    called: dict[str, list[str]] = {}
    for host in plan.hosts.names:
        for server in plan.called(host):
            address = findings.addresses.get(host, {}).get(server, "localhost:")
            name = address.rpartition(":")[0].strip("[]")
            called.setdefault(name, []).append(f"{server} from {host}")
    for name, whom in called.items():
        if why := why_refused(locks.tls, name):
            yield (
                f"the certificate in {locks.tls} does not do for {name}, as {', '.join(whom)} is "
                f"called: {why}"
            )


def _find_addresses(plan: Plan, connections: Connections, findings: Findings) -> None:
    """By which address each host reaches the servers that it calls; what it cannot is a problem.

    Where a server is to be started, its host listens meanwhile; one that is at work already is
    called as before.
    """
    word = secrets.token_hex(8)
    fresh = {host.name: _not_yet_at_work(plan, findings, host.name) for host in connections.hosts}

    def ask(host: Host) -> dict[str, str]:
        tried = {s: _candidates(plan, findings, host.name, s) for s in plan.partners(host.name)}
        asked = {s: c for s, c in tried.items() if s in fresh[plan.where(s)]}
        found = host.ask("connect", {"addresses": asked, "word": word}) if asked else {}
        for server, candidates in tried.items():
            if server not in asked:
                before = findings.answers[host.name]["elsewhere"].get(server)
                found[server] = before if before in candidates else candidates[0]
            elif not found[server]:
                findings.problems.append(
                    f"{host.name}: {_called(server)} on {plan.where(server)} cannot be reached "
                    f"(tried {', '.join(candidates)}): is a firewall in between?"
                )
        return found

    with _all_listening(connections, fresh, word):
        findings.addresses, wrong = connections.each(ask)
    findings.add(wrong)


def _not_yet_at_work(plan: Plan, findings: Findings, host: str) -> dict[str, int]:
    listens = findings.answers[host]["listens"]
    return {s: port for s, port in plan.servers(host).items() if port not in listens}


@contextmanager
def _all_listening(
    connections: Connections, servers: dict[str, dict[str, int]], word: str
) -> Iterator[None]:
    """Lets hosts listen on the ports of these servers, inside the `with`."""
    hosts = [] if len(servers) == 1 else [h for h in connections.hosts if servers[h.name]]
    with ExitStack() as calls:
        started = [(host, calls.enter_context(host.start("listen"))) for host in hosts]
        for host, call in started:
            call.send({"ports": list(servers[host.name].values()), "word": word})
        for host, call in started:
            try:
                read_answer(next(iter(call.lines()), ""))
            except HostsError:
                call.end()
                raise HostsError(f"{host.name}: {host.describe(call)}") from None
        yield


def _candidates(plan: Plan, findings: Findings, host: str, server: str) -> list[str]:
    """Addresses at which `server` may be, seen from `host`.

    ssh tells each host from where it is called, and by which of its own addresses.
    """
    there = plan.where(server)
    port = plan.servers(there)[server]
    if there == "localhost":
        names = [*findings.answers[host]["ssh"][:1], socket.gethostname()]
    else:
        names = [machine(there), *findings.answers[there]["ssh"][2:3]]
    bracketed = [f"[{n}]" if ":" in n and not n.startswith("[") else n for n in names]
    return [f"{name}:{port}" for name in dict.fromkeys(bracketed)]


def _called(server: str) -> str:
    return "the trainer's versions" if server == "models" else server
