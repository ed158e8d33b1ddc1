"""What must be right on a host before anything is started; each function runs on that host."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

import numpy as np

from muprover.components import can_listen, listen_everywhere
from muprover.config import SettingsError
from muprover.game import load_game
from muprover.hosts.orders import Orders
from muprover.hosts.place import Place, Tree

LEAST_FREE = {"replay": 2e9, "trainer": 2e9, "network": 1e9}  # bytes; runs of days need more
LEAST_FREE_ELSEWHERE = 1e8
CONNECT_SECONDS = 5.0
NEEDED_BY = {"trainer": "tensorflow", "network": "tensorflow"}  # an extra of the package
MODULES = {"tensorflow": ("tensorflow", "tensorflow_serving", "aiohttp")}


def check(message: Tree) -> Tree:
    """All that is wrong for what this host is to do, in words; and what it has of the run."""
    place = Place(**message["place"])
    components: list[str] = message["components"]
    orders = Orders.read(place) if place.supervisor() else Orders()
    mine = set(orders.listens.values())
    problems = [
        *_packages(components),
        *_game(message["game"], "environment" in components),
        *_ports({s: p for s, p in message["servers"].items() if p not in mine}),
        *check_folders(place, components),
    ]
    return {
        "problems": problems,
        "listens": sorted(mine),  # already
        "elsewhere": orders.elsewhere,
        "run": _stored(place),
        "ssh": os.environ.get("SSH_CONNECTION", "").split(),
    }


def _packages(components: list[str]) -> list[str]:
    extras = {NEEDED_BY[name]: name for name in components if name in NEEDED_BY}
    return [
        f"{sys.executable} has no {module}, which the {component} needs: "
        f"{sys.executable} -m pip install 'muprover[{extra}]'"
        for extra, component in extras.items()
        for module in MODULES[extra]
        if importlib.util.find_spec(module) is None
    ][:1]


def _game(game: Tree, plays: bool) -> list[str]:
    """game: `source` and, of a file, its `text`. plays: whether its rules must work here."""
    with tempfile.TemporaryDirectory() as folder:
        source = game["source"]
        if game["text"] is not None:
            source = str(Path(folder) / Path(source).name)
            Path(source).write_text(game["text"], encoding="utf-8")
        try:
            found = load_game(source)
            if plays and found.has_rules:
                environments = found.make_environments(1)
                environments.reset(np.array([0]), np.array([0]))
                environments.close()
        except SettingsError as error:
            return [str(error).replace(source, game["source"])]
        except Exception as error:  # whatever a game's code raises
            return [f"game {game['source']} does not start: {type(error).__name__}: {error}"]
    return []


def _ports(servers: dict[str, int]) -> list[str]:
    return [
        f"port {port} ({'versions, of the trainer' if server == 'models' else server}) is in use"
        for server, port in servers.items()
        if not can_listen(port)
    ]


def check_folders(place: Place, components: list[str]) -> list[str]:
    least = max(LEAST_FREE.get(name, LEAST_FREE_ELSEWHERE) for name in components)
    versions = place.versions(components)
    problems = []
    for folder in [place.folder.path, *([versions] if versions else [])]:
        there = next(path for path in (folder, *folder.parents) if path.exists())
        if not there.is_dir():
            problems.append(f"{there} is no folder")
        elif not os.access(there, os.W_OK | os.X_OK):
            problems.append(f"{there} may not be written to")
        elif (free := shutil.disk_usage(there).free) < least:
            problems.append(
                f"{free / 1e9:.1f} GB are free in {there}; at least {least / 1e9:g} are needed"
            )
    return list(dict.fromkeys(problems)) + _contents(place, versions)


def _contents(place: Place, versions: Path | None) -> list[str]:
    """What lies there and is not of this run."""
    folder = place.folder
    if not folder.exists:
        if folder.path.is_dir() and any(folder.path.iterdir()):
            return [f"{folder.path} is not empty and holds no run; choose another -n"]
        if versions and any(path.name.isdigit() for path in versions.glob("*")):
            return [f"{versions} holds models of another run; choose another -n or -m"]
    elif versions and folder.models.exists() and not folder.models.is_symlink():
        return [f"{folder.models} is a folder, of `muprover run`: move it to {versions} to go on"]
    return []


def _stored(place: Place) -> Tree | None:
    """The files that make a run, by name, and which of its data are here; None: no run."""
    folder = place.folder
    if not folder.exists:
        return None
    files = [folder.settings, folder.facts]
    if folder.source.endswith(".py"):
        files.append(Path(folder.source))
    return {
        "files": {path.name: path.read_text(encoding="utf-8") for path in files},
        "trainer": any(folder.path.glob("checkpoints/*")),
        "replay": any(folder.path.glob("replay/*")),
    }


def listen(message: Tree) -> None:
    """Listens on `ports` and answers everyone with `word`, until nobody reads any more."""
    word = message["word"].encode()
    for port in message["ports"]:
        server = listen_everywhere(port)
        threading.Thread(target=_greet, args=(server, word), daemon=True).start()
    print(json.dumps({"listening": message["ports"]}), flush=True)
    sys.stdin.read()


def _greet(server: socket.socket, word: bytes) -> None:
    while True:
        with suppress(OSError):
            caller, _ = server.accept()
            with caller:
                caller.sendall(word)


def connect(message: Tree) -> Tree:
    """Which of several addresses of each server leads to it from here; None: none does."""
    return {
        server: next((a for a in addresses if _leads(a, message["word"])), None)
        for server, addresses in message["addresses"].items()
    }


def _leads(address: str, word: str) -> bool:
    """Whether who answers says `word`; a server that is at work already says nothing so soon."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS) as server:
            return not word or server.recv(len(word)).decode(errors="replace") == word
    except OSError:
        return False
