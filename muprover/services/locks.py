"""Locks on the doors: who a process lets in, and what it shows where it knocks.

Certificates are three files in one folder, named as Kubernetes and cert-manager name them:
`tls.crt` and `tls.key` are a process's own, `ca.crt` tells whom it believes. A token is a line in a
file. Both are read again when they change. A process has one set of locks: `use` sets it, and
otherwise it is what the environment variables say. `doors` opens the ports of servers with them,
`client` channels.
"""

from __future__ import annotations

import hmac
import logging
import os
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from muprover.config import SettingsError

log = logging.getLogger(__name__)

TLS, TLS_CLIENTS, TOKEN_FILE = "MUPROVER_TLS", "MUPROVER_TLS_CLIENTS", "MUPROVER_TOKEN_FILE"
CERTIFICATE, ANY = "certificate", "any"  # whom a server with TLS answers
CA_FILE, CERTIFICATE_FILE, KEY_FILE = "ca.crt", "tls.crt", "tls.key"
LOOK_SECONDS = 1.0  # files are looked at no more often
SHORTEST_TOKEN = 16  # characters
NO_TOKEN = f"this server wants a token; give its file with --token-file (or {TOKEN_FILE})"
WRONG_TOKEN = "the token is none of this server's"

T = TypeVar("T")


class Keys(NamedTuple):
    """The certificates of a folder, in PEM; None: there is no such file."""

    ca: bytes | None
    certificate: bytes | None
    key: bytes | None


@dataclass(frozen=True)
class Locks:
    """What keeps others out: certificates in a folder, a token in a file, both, or neither."""

    tls: Path | None = None
    clients: str = ""  # CERTIFICATE or ANY; "": the first where the folder has a `ca.crt`
    token_file: Path | None = None

    @classmethod
    def from_environment(cls, variables: Mapping[str, str] = os.environ) -> Locks:
        folder, token = variables.get(TLS), variables.get(TOKEN_FILE)
        clients = variables.get(TLS_CLIENTS, "")
        if clients not in ("", CERTIFICATE, ANY):
            raise SettingsError(f"{TLS_CLIENTS} is {clients}; it may be {CERTIFICATE} or {ANY}")
        return cls(Path(folder) if folder else None, clients, Path(token) if token else None)

    @cached_property
    def keys(self) -> Followed[Keys] | None:
        """The certificates, if there is TLS; raises `SettingsError` if they cannot be used."""
        if self.tls is None:
            return None
        folder = self.tls
        paths = [folder / name for name in (CA_FILE, CERTIFICATE_FILE, KEY_FILE)]
        return Followed(paths, lambda: read_keys(folder))

    @cached_property
    def tokens(self) -> Followed[list[bytes]] | None:
        """Those of the file: a server takes each of them, a client shows the first."""
        if self.token_file is None:
            return None
        file = self.token_file
        return Followed([file], lambda: read_tokens(file))

    @property
    def has_own_certificate(self) -> bool:
        return self.keys is not None and self.keys.now.certificate is not None

    @property
    def asks_for_certificates(self) -> bool:
        """Of those who connect to a server of this process."""
        if self.keys is None or self.clients == ANY:
            return False
        if self.clients == CERTIFICATE and self.keys.now.ca is None:
            raise SettingsError(
                f"{self.tls} has no {CA_FILE}, by which clients' certificates could be checked"
            )
        return self.keys.now.ca is not None

    @property
    def keeps_out(self) -> bool:
        """Whether strangers are turned away."""
        return self.tokens is not None or self.asks_for_certificates

    @property
    def server_keys(self) -> Followed[Keys]:
        """For the servers of this process; raises `SettingsError` where the folder has none."""
        if self.keys is None or not self.has_own_certificate:
            raise SettingsError(
                f"{self.tls} has no {CERTIFICATE_FILE} and {KEY_FILE}, which a server must show"
            )
        return self.keys

    def refusal_of(self, authorization: str | None) -> str:
        """Why a call with this header is not answered; empty if it is. How long that takes tells
        nothing of the token."""
        if self.tokens is None:
            return ""
        if authorization is None:
            return NO_TOKEN
        scheme, _, given = authorization.partition(" ")
        same = [hmac.compare_digest(given.strip().encode(), token) for token in self.tokens.now]
        return "" if scheme.lower() == "bearer" and any(same) else WRONG_TOKEN

    @property
    def authorization(self) -> str | None:
        """The header that calls of this process carry."""
        return None if self.tokens is None else f"Bearer {self.tokens.now[0].decode()}"


class Followed(Generic[T]):
    """What `read` makes of some files, read again when they change. Threads may share it.

    Files that have become unusable (half of a pair has been replaced) change nothing.
    """

    def __init__(self, paths: list[Path], read: Callable[[], T]) -> None:
        self._paths = paths
        self._read = read
        self._lock = threading.Lock()
        self._stamp = self._look()
        self._value = read()
        self._looked = time.monotonic()
        self._failed = ""
        self.changes = 0

    @property
    def now(self) -> T:
        if time.monotonic() - self._looked >= LOOK_SECONDS:
            self._follow()
        return self._value

    def _follow(self) -> None:
        with self._lock:
            self._looked = time.monotonic()
            stamp = self._look()
            if stamp == self._stamp:
                return
            try:
                value = self._read()
            except SettingsError as error:
                if str(error) != self._failed:
                    log.error("%s; what was read before stays in use", error)
                self._failed = str(error)
                return
            if stamp == self._look():  # else it is still being written
                self._stamp, self._value, self._failed = stamp, value, ""
                self.changes += 1
                log.info("%s has changed and is in use", self._paths[-1])

    def _look(self) -> tuple[tuple[int, int, int] | None, ...]:
        return tuple(map(_stamp, self._paths))


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def read_keys(folder: Path) -> Keys:
    """The certificates in a folder; raises `SettingsError` where they do not fit."""
    if not folder.is_dir():
        raise SettingsError(
            f"{folder} is no folder (with {CERTIFICATE_FILE}, {KEY_FILE}, {CA_FILE})"
        )
    keys = Keys(
        *map(_read_if_there, (folder / CA_FILE, folder / CERTIFICATE_FILE, folder / KEY_FILE))
    )
    if (keys.certificate is None) != (keys.key is None):
        missing = CERTIFICATE_FILE if keys.certificate is None else KEY_FILE
        raise SettingsError(f"{folder} has no {missing}: a certificate and its key go together")
    if keys == (None, None, None):
        raise SettingsError(f"{folder} has neither {CA_FILE} nor {CERTIFICATE_FILE} and {KEY_FILE}")
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        if keys.certificate is not None:
            context.load_cert_chain(folder / CERTIFICATE_FILE, folder / KEY_FILE, _no_password)
        if keys.ca is not None:
            context.load_verify_locations(folder / CA_FILE)
    except (ssl.SSLError, OSError) as error:
        raise SettingsError(f"the certificates in {folder} cannot be used: {error}") from None
    return keys


def _no_password() -> bytes:
    raise SettingsError(f"{KEY_FILE} is encrypted; nobody is there to be asked for its password")


def _read_if_there(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror}") from None


def read_tokens(path: Path) -> list[bytes]:
    """The tokens in a file, one a line; raises `SettingsError`, which shows none of them."""
    text = _read_if_there(path)
    if text is None:
        raise SettingsError(f"no token file {path}")
    tokens = [line.strip() for line in text.splitlines() if line.strip()]
    if not tokens:
        raise SettingsError(
            f"{path} is empty; a token is a line of {SHORTEST_TOKEN} or more letters"
        )
    for token in tokens:
        if len(token) < SHORTEST_TOKEN or not all(32 < letter < 127 for letter in token):
            raise SettingsError(
                f"{path}: a token is a line of {SHORTEST_TOKEN} or more letters, digits and signs, "
                "without spaces; make one with: openssl rand -hex 32"
            )
    return tokens


_in_use: Locks | None = None


def use(locks: Locks | None) -> None:
    """From now on this process has these locks; None: those of the environment variables."""
    global _in_use
    if locks is not None:
        _ = locks.keys, locks.tokens  # what is wrong with them is said now
    _in_use = locks


def in_use() -> Locks:
    return _in_use or Locks.from_environment()
