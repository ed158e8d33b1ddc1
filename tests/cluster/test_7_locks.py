"""A release that answers only those who have a certificate and a token."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from installed import Installed
from kubectl import Kubectl, restarts, wait_for

from muprover.certificates import make_certificates

CERTIFICATE = """
import ssl, sys
print(ssl.get_server_certificate((sys.argv[1], int(sys.argv[2]))))
"""
CALL = """
import grpc, sys
from muprover.v1 import replay_pb2, replay_pb2_grpc
channel = grpc.insecure_channel(sys.argv[1])
if "tls" in sys.argv:
    names = ("ca.crt", "tls.key", "tls.crt")
    files = [open(f"/etc/muprover/tls/{name}", "rb").read() for name in names]
    channel = grpc.secure_channel(sys.argv[1], grpc.ssl_channel_credentials(*files))
try:
    replay_pb2_grpc.ReplayServiceStub(channel).Stats(replay_pb2.StatsRequest(), timeout=5)
    print("answered")
except grpc.RpcError as error:
    print(error.code().name)
"""


def secret(name: str, files: dict[str, bytes]) -> dict[str, Any]:
    data = {key: base64.b64encode(value).decode() for key, value in files.items()}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "data": data}


def certificates(folder: Path, release: Installed) -> dict[str, Any]:
    """The Secret of a new certificate, by the authority in the folder."""
    services = ("environment", "replay", "network", "network-headless", "trainer")
    make_certificates(folder, [f"{release.fullname}-{name}" for name in services], days=2)
    names = ("ca.crt", "tls.crt", "tls.key")
    return secret("certificates", {name: (folder / name).read_bytes() for name in names})


@pytest.mark.row("locks", "TLS with client certificates and a token; the certificate renewed")
def test_a_locked_release_works_and_renews(
    namespaces: Callable[[], Kubectl], tmp_path: Path, saw: Any
) -> None:
    kubectl = namespaces()
    release = Installed(kubectl, "locked")
    release.scheme = "https:"
    kubectl.apply(certificates(tmp_path, release), secret("token", {"token": b"a" * 32}))
    release.install(
        "--set=game=tictactoe",
        "--set=locks.tls.enabled=true",
        "--set=locks.tls.existingSecret=certificates",
        "--set=locks.token.existingSecret=token",
    )
    release.wait_training()
    saw(f"first game after {release.first_game_seconds:.0f} s, and it trains")
    agent = release.pod("agent")
    replay = f"{release.fullname}-replay"

    def call(*how: str) -> str:
        return kubectl.python(agent, CALL, f"{replay}:50001", *how, container="agent").strip()

    assert call() == "UNAVAILABLE"  # no handshake
    assert call("tls") == "UNAUTHENTICATED"
    assert "trains tictactoe" in release.cluster("status")
    out = release.helm("test", release.name, "--timeout", "600s")
    assert out.count("Succeeded") == 2, out
    saw("no answer without TLS, nor with it and no token; `helm test` and `cluster status` work")

    def shown() -> str:
        return kubectl.python(agent, CERTIFICATE, replay, "50001", container="agent").strip()

    before, crashed = shown(), sum(map(restarts, release.pods()))
    kubectl.apply(certificates(tmp_path, release))
    start = time.monotonic()
    wait_for("new certificate", lambda: shown() != before, 240, every=5)
    seconds = time.monotonic() - start
    assert shown() == (tmp_path / "tls.crt").read_text().strip()
    release.wait_training()
    assert sum(map(restarts, release.pods())) == crashed
    saw(f"a renewed certificate was shown after {seconds:.0f} s; training went on, no restart")
    release.helm("uninstall", release.name, "--wait")
