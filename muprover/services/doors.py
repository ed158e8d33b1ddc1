"""The ports of servers, locked as `locks` says: gRPC with `interceptors` and `open_port`, HTTP with
`TlsContext`."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import grpc

from muprover.services.locks import (
    CA_FILE,
    CERTIFICATE_FILE,
    KEY_FILE,
    Followed,
    Keys,
    Locks,
)

log = logging.getLogger(__name__)

HEALTH = "/grpc.health.v1.Health/"  # asked by probes and by gRPC itself, which carry no token


def open_port(server: Any, host: str, port: int, locks: Locks) -> int:
    """Opens a port of a gRPC server; answers its number, 0 if it cannot be had. The server must
    have been made with `interceptors` of the same locks."""
    address = f"{host}:{port}"
    credentials = None if locks.tls is None else server_credentials(locks)
    try:
        if credentials is None:
            opened = int(server.add_insecure_port(address))
        else:
            opened = int(server.add_secure_port(address, credentials))
    except RuntimeError:
        return 0
    warn_if_open(host, opened, locks)
    return opened


def warn_if_open(host: str, port: int, locks: Locks) -> None:
    """Says so where anyone may use what listens on a port."""
    if port and not locks.keeps_out and not is_local(host):
        log.warning(
            "anyone who reaches port %d may use it: lock it with --tls or --token-file, or keep it "
            "to this machine with --host localhost",
            port,
        )


def is_local(host: str) -> bool:
    """Whether only this machine can reach it."""
    return host.strip("[]") in ("localhost", "::1") or host.startswith(("127.", "unix:"))


def server_credentials(locks: Locks) -> grpc.ServerCredentials:
    """Certificates as the folder has them whenever a client connects."""
    followed, checked = locks.server_keys, locks.asks_for_certificates
    used = followed.now

    def configuration(keys: Keys) -> Any:
        pair = (keys.key, keys.certificate)
        return grpc.ssl_server_certificate_configuration([pair], keys.ca if checked else None)

    def newer() -> Any:
        nonlocal used
        if followed.now is used:
            return None
        used = followed.now
        return configuration(used)

    return grpc.dynamic_ssl_server_credentials(configuration(used), newer, checked)


def interceptors(locks: Locks, on_event_loop: bool = True) -> list[Any]:
    """What a gRPC server is to be made with, so that it answers only calls that carry a token."""
    if locks.tokens is None:
        return []
    return [AsyncTokens(locks) if on_event_loop else Tokens(locks)]


class Tokens(grpc.ServerInterceptor):  # type: ignore[misc] # grpc has no types
    """Refuses calls without a token of the file. For servers with threads."""

    def __init__(self, locks: Locks) -> None:
        self._locks = locks

    def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:
        refusal = refusal_of(self._locks, details)
        if not refusal:
            return continuation(details)

        def refuse(_: Any, context: Any) -> Any:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, refusal)

        return grpc.stream_stream_rpc_method_handler(refuse)  # it waits for no message


class AsyncTokens(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """The same on the event loop."""

    def __init__(self, locks: Locks) -> None:
        self._locks = locks

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], details: Any
    ) -> Any:
        refusal = refusal_of(self._locks, details)
        if not refusal:
            return await continuation(details)

        async def refuse(_: Any, context: Any) -> None:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, refusal)

        return grpc.stream_stream_rpc_method_handler(refuse)


def refusal_of(locks: Locks, details: Any) -> str:
    """Why a call is not answered; empty if it is."""
    if details.method.startswith(HEALTH):
        return ""
    headers: Iterable[tuple[str, str]] = details.invocation_metadata or ()
    return locks.refusal_of(dict(headers).get("authorization"))


class TlsContext(ssl.SSLContext):
    """For servers of HTTP: each connection has the certificates as the folder has them then."""

    locks: Locks
    checked: bool
    _made: tuple[Keys, ssl.SSLContext]

    @classmethod
    def of(cls, locks: Locks, checked: bool) -> TlsContext:
        """`checked`: whether clients must show a certificate."""
        context = cls(ssl.PROTOCOL_TLS_SERVER)
        context.locks, context.checked = locks, checked
        context._made = context._make(locks.server_keys)
        return context

    def wrap_bio(self, *args: Any, **options: Any) -> Any:
        return self._now().wrap_bio(*args, **options)

    def wrap_socket(self, *args: Any, **options: Any) -> Any:
        return self._now().wrap_socket(*args, **options)

    def _now(self) -> ssl.SSLContext:
        followed = self.locks.server_keys
        if followed.now is not self._made[0]:
            self._made = self._make(followed)
        return self._made[1]

    def _make(self, followed: Followed[Keys]) -> tuple[Keys, ssl.SSLContext]:
        keys, folder = followed.now, self.locks.tls
        assert folder is not None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / CERTIFICATE_FILE, folder / KEY_FILE)
        if self.checked:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(folder / CA_FILE)
        return keys, context
