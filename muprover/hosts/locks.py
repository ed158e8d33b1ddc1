"""The locks of a run on its hosts: files that `muprover up` brings along, through ssh."""

from __future__ import annotations

import shutil
import ssl
from contextlib import suppress
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


def why_refused(folder: Path, name: str) -> str:
    """What a client that believes the folder's authority has against a server that shows its
    certificate, if it calls it `name`; empty: nothing."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / CERTIFICATE_FILE, folder / KEY_FILE)
    authority = folder / CA_FILE
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if authority.exists():
        client.load_verify_locations(authority)
    else:
        client.load_default_certs()
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [client.wrap_bio(back, there, server_hostname=name)]
    ends.append(server.wrap_bio(there, back, server_side=True))
    try:
        while ends:
            for end in list(ends):  # each in turn, until it waits for the other
                with suppress(ssl.SSLWantReadError):
                    end.do_handshake()
                    ends.remove(end)
    except ssl.SSLCertVerificationError as error:
        return error.verify_message
    except ssl.SSLError as error:
        return str(error)
    return ""


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
