"""`muprover up` of docs/hosts.md, word for word, on three hosts to the proof; then one host alone.

    python tests/benchmarks/three_hosts.py [--one-host SECONDS] [--time-limit MINUTES]

The hosts are network namespaces of this machine, each with a real sshd, an address on a bridge and
a home folder of its own; nothing but ssh and the components' own ports leads from one to another.
Needs Linux, root and OpenSSH's server (which is installed by apt if it is missing).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any

from muprover.runfolder import RunFolder, machine

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = REPOSITORY / "docs" / "hosts.md"
HOSTS = ("alpha", "beta", "gamma")  # as the page calls them
NETWORK = "10.213.7"
BRIDGE = "muprover0"
SSHD = "/usr/sbin/sshd"
POLL_SECONDS = 3.0


class SkippedError(RuntimeError):
    """Why it cannot be tried here."""


def main() -> int:
    args = parse()
    settings = [word for setting in args.set for word in ("--set", setting)]
    try:
        require_namespaces()
        require_sshd()
    except SkippedError as error:
        print(f"skipped: {error}")
        return 0
    with tempfile.TemporaryDirectory(prefix="muprover-hosts-") as folder:
        work = Path(folder)
        with three_hosts(work) as environment:
            three = prove(work, environment, args.time_limit, settings)
        if three is None:
            return 1
        one = args.one_host or on_one_host(work, args.time_limit, settings)
    facts = machine()
    print(
        f"\nthree hosts: proven {three['wall']:.0f} s after the command was given "
        f"({three['seconds']:.0f} s after its processes began), {three['steps']:,} training steps; "
        f"one host: {one:.0f} s; ratio {three['wall'] / one:.2f}\n"
        f"all of them are {facts['cores']} cores of {facts['cpu']}; load average "
        f"{three['load']:.1f} at the end of three hosts, {os.getloadavg()[0]:.1f} now"
    )
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--one-host", type=float, metavar="SECONDS", help="known already: is not run again"
    )
    parser.add_argument("--time-limit", type=float, default=25.0, metavar="MINUTES")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="PATH=VALUE",
        help="settings besides what the page says, to try the hosts without a proof",
    )
    return parser.parse_args()


def require_namespaces() -> None:
    if sys.platform != "linux" or os.geteuid() != 0 or not shutil.which("ip"):
        raise SkippedError("network namespaces need Linux, root and the command ip")
    made = subprocess.run(["ip", "netns", "add", "muprover-try"], capture_output=True, text=True)
    if made.returncode:
        raise SkippedError(f"no network namespace can be made: {made.stderr.strip()}")
    run("ip", "netns", "delete", "muprover-try")


def require_sshd() -> None:
    if Path(SSHD).exists():
        return
    print("installing openssh-server", flush=True)
    for words in (["update"], ["install", "-y", "--no-install-recommends", "openssh-server"]):
        try:
            quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
            subprocess.run(["apt-get", "-qq", *words], check=True, env=quiet, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise SkippedError(f"there is no {SSHD}, and apt cannot install it: {error}") from None


def run(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


@contextmanager
def three_hosts(work: Path) -> Iterator[dict[str, str]]:
    """The hosts inside the `with`; yields the environment of one who knows them by ssh."""
    keygen = ("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f")
    run(*keygen, str(work / "key"))
    shutil.copy(work / "key.pub", work / "authorized_keys")
    Path("/run/sshd").mkdir(exist_ok=True)
    addresses = {host: f"{NETWORK}.{number}" for number, host in enumerate(HOSTS, 2)}
    with ExitStack() as undo:
        run("ip", "link", "add", BRIDGE, "type", "bridge")
        undo.callback(run, "ip", "link", "delete", BRIDGE)
        run("ip", "address", "add", f"{NETWORK}.1/24", "dev", BRIDGE)
        run("ip", "link", "set", BRIDGE, "up")
        for host, address in addresses.items():
            (work / host).mkdir()
            run(*keygen, str(work / host / "host_key"))
            add_namespace(host, address, addresses, undo)
            start_sshd(work, host, address, undo)
            checkout = work / host / "muprover"  # as `git clone` and `make setup` leave it
            checkout.mkdir()
            (checkout / ".venv").symlink_to(Path(sys.prefix))
        yield user_environment(work, addresses)


def add_namespace(host: str, address: str, addresses: dict[str, str], undo: ExitStack) -> None:
    """A host with one address, which finds the others by name."""
    inside = ("ip", "-n", f"muprover-{host}")
    run("ip", "netns", "add", f"muprover-{host}")
    undo.callback(run, "ip", "netns", "delete", f"muprover-{host}")
    run("ip", "link", "add", f"mp-{host}", "type", "veth", "peer", "eth0", "netns", inside[2])
    run("ip", "link", "set", f"mp-{host}", "master", BRIDGE, "up")
    run(*inside, "address", "add", f"{address}/24", "dev", "eth0")
    run(*inside, "link", "set", "eth0", "up")
    run(*inside, "link", "set", "lo", "up")
    names = Path("/etc/netns") / f"muprover-{host}"  # `ip netns exec` lays it over /etc
    names.mkdir(parents=True)
    undo.callback(shutil.rmtree, names)
    lines = ["127.0.0.1 localhost", *(f"{at} {name}" for name, at in addresses.items())]
    (names / "hosts").write_text("\n".join(lines) + "\n")


def start_sshd(work: Path, host: str, address: str, undo: ExitStack) -> None:
    config = work / host / "sshd_config"
    config.write_text(
        f"ListenAddress {address}\nHostKey {work / host / 'host_key'}\n"
        f"AuthorizedKeysFile {work / 'authorized_keys'}\nStrictModes no\nUsePAM no\n"
        "PermitRootLogin yes\nPasswordAuthentication no\nPidFile none\n"
        f"SetEnv HOME={work / host} PYTHONPATH={REPOSITORY}\n"
    )
    log = (work / host / "sshd.log").open("wb")
    words = ["ip", "netns", "exec", f"muprover-{host}", SSHD, "-D", "-e", "-f", str(config)]
    server = subprocess.Popen(words, stdout=log, stderr=log)
    undo.callback(end_processes, host)
    undo.callback(server.wait)
    undo.callback(server.terminate)


def pids(host: str) -> list[int]:
    return [int(pid) for pid in run("ip", "netns", "pids", f"muprover-{host}").split()]


def components_on(host: str) -> int:
    """The run's processes there: the supervisor, and what it has started."""
    commands = []
    for pid in pids(host):
        with suppress(OSError):
            commands.append(Path(f"/proc/{pid}/cmdline").read_text())
    return sum("muprover.cli" in words or "hosts.daemon" in words for words in commands)


def end_processes(host: str) -> None:
    """Whatever is left in a namespace."""
    for pid in pids(host):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def user_environment(work: Path, addresses: dict[str, str]) -> dict[str, str]:
    """Commands `muprover` and `ssh`; the second knows the hosts as ~/.ssh/config would tell it."""
    config, known = work / "ssh_config", work / "known_hosts"
    config.write_text(
        "".join(f"Host {host}\n  HostName {address}\n" for host, address in addresses.items())
        + f"Host *\n  User root\n  IdentityFile {work / 'key'}\n  UserKnownHostsFile {known}\n"
    )
    keys = {a: (work / h / "host_key.pub").read_text() for h, a in addresses.items()}
    known.write_text("".join(f"{address} {key}" for address, key in keys.items()))
    commands = {
        "ssh": f'exec {shutil.which("ssh")} -F {config} "$@"',
        "muprover": f'exec {sys.executable} -m muprover.cli "$@"',
    }
    for name, command in commands.items():
        path = work / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{command}\n")
        path.chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{work / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
        "XDG_STATE_HOME": str(work / "state"),
    }


def read_page() -> tuple[str, dict[str, str]]:
    """The hosts.config and the commands that the page shows, these by their second word."""
    text = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"^```\w*\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    hosts = next(block for block in blocks if "\nreplay" in block and "alpha:" in block)
    commands = next(block for block in blocks if "muprover up -g" in block)
    lines = [line.partition("#")[0].strip() for line in commands.splitlines()]
    return hosts, {line.split()[1]: line for line in lines if line.startswith("muprover ")}


def prove(
    work: Path, environment: dict[str, str], minutes: float, settings: list[str]
) -> dict[str, Any] | None:
    """Does what the page says, shows it, and answers when the proof was there; None: it was not."""
    hosts, commands = read_page()
    (work / "hosts.config").write_text(hosts)
    print(hosts, flush=True)

    def call(name: str, more: str = "") -> int:
        command = commands[name] + more
        print(f"$ {command}", flush=True)
        status = subprocess.run(["sh", "-c", command], cwd=work, env=environment).returncode
        print(f"({status})\n", flush=True)
        return status

    start = time.monotonic()
    if call("up", "".join(f" {shlex.quote(word)}" for word in settings)):
        return None
    proven, figures = None, {}
    while proven is None and time.monotonic() < start + 60 * minutes:
        time.sleep(POLL_SECONDS)
        words = ["muprover", "status", "--json", "--seconds", "0.1"]
        asked = subprocess.run(words, cwd=work, env=environment, stdout=subprocess.PIPE)
        status = json.loads(asked.stdout)
        proven, figures = status["proven"], status["training"]
    wall = time.monotonic() - start
    load = os.getloadavg()[0]
    call("status")
    follow_logs(commands["logs"], work, environment)
    call("down")
    where = {host: sorted(p.name for p in folder(work, host).iterdir()) for host in HOSTS}
    for host, names in where.items():
        print(f"{host} keeps: {', '.join(names)}")
    left = {host: components_on(host) for host in HOSTS}
    print(f"components left: {left}")
    if proven is None or any(left.values()):
        return None
    return {"wall": wall, "steps": int(figures["steps"]), "load": load, **proven}


def folder(work: Path, host: str) -> Path:
    return next((work / host / "muprover" / "runs").iterdir())


def follow_logs(command: str, work: Path, environment: dict[str, str]) -> None:
    """For some lines, as one would who then presses Ctrl-C."""
    print(f"$ {command}", flush=True)
    words = ["env", *command.split()]  # so that the signal finds the command, and no shell
    with subprocess.Popen(
        words, cwd=work, env=environment, stdout=subprocess.PIPE, text=True
    ) as logs:
        assert logs.stdout is not None
        print("".join(islice(logs.stdout, 20)))
        logs.send_signal(signal.SIGINT)
    print(f"({logs.returncode})\n", flush=True)


def on_one_host(work: Path, minutes: float, settings: list[str]) -> float:
    """The seconds that `muprover run` takes, from the start of its processes to the same proof."""
    words = ["run", "--game", "tictactoe", "--folder", str(work / "one"), *settings]
    print(f"$ muprover {' '.join(words)}", flush=True)
    command = [sys.executable, "-m", "muprover.cli", *words, "--time-limit", str(minutes)]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return float(RunFolder(work / "one").read_result()["wall_clock_seconds"])


if __name__ == "__main__":
    sys.exit(main())
