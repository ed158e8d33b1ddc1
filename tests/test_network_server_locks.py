"""The embedded network server behind locks: gRPC, REST and metrics."""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from network_servers import MODEL, network_server, search_inputs, tiny_config, tiny_exporter
from trial_locks import TOKEN, certificates, part_of, token_file, using

from muprover.model.serving.server import NetworkServer
from muprover.services.client import ServiceError
from muprover.services.locks import Locks
from muprover.services.network import RemoteNetwork


@pytest.fixture(scope="module")
def locks(tmp_path_factory: pytest.TempPathFactory) -> Locks:
    folder = tmp_path_factory.mktemp("locks")
    token = token_file(folder / "token", TOKEN)
    return Locks(certificates(folder / "tls"), token_file=token)


@pytest.fixture(scope="module")
def server(locks: Locks, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NetworkServer]:
    folder = tmp_path_factory.mktemp("models") / MODEL
    tiny_exporter(folder).export(7)
    with using(locks), network_server(folder, metrics_port=0) as served:
        yield served


def http(port: int, path: str, context: ssl.SSLContext, body: Any = None, token: str = "") -> int:
    """The status of an answer."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"https://localhost:{port}{path}", data)
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=60, context=context) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def context_of(folder: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=folder / "ca.crt")
    if (folder / "tls.crt").exists():
        context.load_cert_chain(folder / "tls.crt", folder / "tls.key")
    return context


def test_a_search_needs_the_keys(server: NetworkServer, locks: Locks) -> None:
    at, config = f"localhost:{server.port}", tiny_config()
    with using(locks):
        network = RemoteNetwork(at, MODEL, config)
    assert network.policy(search_inputs()).version == 7
    network.close()
    with using(Locks(locks.tls)):
        network = RemoteNetwork(at, MODEL, config, patience=60)
    with pytest.raises(ServiceError, match="wants a token"):
        network.policy(search_inputs())
    network.close()


def test_rest_asks_for_certificate_and_token(server: NetworkServer, locks: Locks) -> None:
    assert locks.tls is not None
    known, path = context_of(locks.tls), f"/v1/models/{MODEL}"
    assert http(server.rest_port, path, known, token=TOKEN) == 200
    assert http(server.rest_port, path, known) == 401
    assert http(server.rest_port, path, known, token="wrong") == 401
    nobody = context_of(part_of(locks.tls, "ca.crt"))
    with pytest.raises((urllib.error.URLError, ConnectionError, ssl.SSLError)):
        http(server.rest_port, path, nobody, token=TOKEN)


def test_the_metrics_port_tells_and_does_nothing_else(server: NetworkServer, locks: Locks) -> None:
    assert locks.tls is not None
    nobody, path = context_of(part_of(locks.tls, "ca.crt")), f"/v1/models/{MODEL}"
    port = server._metrics_only.port
    assert http(port, "/metrics", nobody) == 200
    assert http(port, path, nobody) == 200
    assert http(port, f"{path}:predict", nobody, {"inputs": {}}) == 400
