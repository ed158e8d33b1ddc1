"""The locks of a run on its hosts: files that `muprover up` brings along, through ssh."""

from __future__ import annotations

import shutil
from pathlib import Path

from muprover.hosts.place import Place, Tree
from muprover.runfolder import write_text
from muprover.services.locks import (
    CA_FILE,
    CERTIFICATE_FILE,
    KEY_FILE,
    TLS,
    TLS_CLIENTS,
    TOKEN_FILE,
    Locks,
)

TOKEN = "token"  # the file's name on hosts
VARIABLES = (TLS, TLS_CLIENTS, TOKEN_FILE)


def read_locks(locks: Locks) -> Tree:
    """What hosts are told of these locks; raises `SettingsError` where they cannot be used."""
    files: dict[str, str] = {}
    if locks.keys is not None:
        names = (CA_FILE, CERTIFICATE_FILE, KEY_FILE)
        found = zip(names, locks.server_keys.now, strict=True)
        files = {name: data.decode() for name, data in found if data is not None}
    if locks.tokens is not None:
        files[TOKEN] = "".join(f"{token.decode()}\n" for token in locks.tokens.now)
    return {"files": files, "clients": locks.clients}


def write_locks(place: Place, told: Tree) -> dict[str, str]:
    """Keeps the files where nobody else may read them; answers the variables that name them to a
    component, which follows them when they change."""
    folder, files = place.own / "locks", told["files"]
    if not files:
        shutil.rmtree(folder, ignore_errors=True)
        return {}
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path in folder.iterdir():
        if path.name not in files:
            path.unlink()
    for name, text in files.items():
        write_text(folder / name, text, mode=0o600)
    values = {
        TLS: str(folder.resolve()) if KEY_FILE in files else "",
        TLS_CLIENTS: told["clients"],
        TOKEN_FILE: str((folder / TOKEN).resolve()) if TOKEN in files else "",
    }
    return {name: values[name] for name in VARIABLES}
