"""Locks on the doors: TLS, client certificates and tokens, on real servers and clients."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import ssl
import subprocess
import sys
import threading
import urllib.request

import grpc
import pytest
from bare_servers import bare_server
from environment_servers import environment_server
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from replay_games import free_port
from trial_locks import HOSTS, OTHER_TOKEN, TOKEN, certificates, part_of, token_file, using

from muprover.certificates import make_certificates
from muprover.config import SettingsError
from muprover.game import load_game
from muprover.services import locks as locks_module
from muprover.services.client import open_channel, service_error
from muprover.services.common import ALIVE
from muprover.services.environment import RemoteEnvironments
from muprover.services.health import HealthPort
from muprover.services.locks import ANY, CERTIFICATE, Locks, read_keys, read_tokens
from muprover.services.server import Server, ThreadedServer, start_metrics

UNAUTHENTICATED, UNAVAILABLE = grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNAVAILABLE
both_servers = pytest.mark.parametrize("make", [Server, ThreadedServer])


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    return certificates(tmp_path_factory.mktemp("locks") / "ours")


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    return certificates(tmp_path_factory.mktemp("locks") / "theirs")


@pytest.fixture
def tokens(tmp_path):
    return Locks(token_file=token_file(tmp_path / "token", TOKEN))


@pytest.fixture
def quick(monkeypatch):
    """Files are looked at whenever they are used."""
    monkeypatch.setattr(locks_module, "LOOK_SECONDS", 0.0)


@contextlib.contextmanager
def server(make, locks, host="localhost"):
    """One without services of its own; its port."""

    def locked():
        with using(locks):
            return make([], 0, host)

    with bare_server(locked) as port:
        yield port


def ask(channel):
    """Calls reflection, which is behind the locks as every service is but health."""
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    (answer,) = stub.ServerReflectionInfo(iter([request]), timeout=60)
    return [service.name for service in answer.list_services_response.service]


def is_served(port, locks):
    with open_channel(f"localhost:{port}", locks) as channel:
        return "grpc.health.v1.Health" in ask(channel)


def refusal(port, locks):
    """What a client is told."""
    with open_channel(f"localhost:{port}", locks) as channel, pytest.raises(grpc.RpcError) as error:
        ask(channel)
    return service_error("server", f"localhost:{port}", error.value)


@both_servers
def test_with_certificates_on_both_sides_their_holders_alone_are_served(make, ours, theirs):
    with server(make, Locks(ours)) as port:
        assert is_served(port, Locks(ours))
        for stranger in (Locks(), Locks(part_of(ours, "ca.crt")), Locks(theirs)):
            error = refusal(port, stranger)
            assert error.code == UNAVAILABLE
            assert "--tls" in str(error)


def test_a_server_that_asks_for_no_certificate_shows_its_own(ours, theirs):
    with server(Server, Locks(ours, clients=ANY)) as port:
        assert is_served(port, Locks(part_of(ours, "ca.crt")))
        assert refusal(port, Locks(part_of(theirs, "ca.crt"))).code == UNAVAILABLE


@both_servers
def test_without_the_token_nothing_is_answered_but_health(make, tokens, tmp_path, caplog):
    other = Locks(token_file=token_file(tmp_path / "other", OTHER_TOKEN))
    with server(make, tokens) as port:
        assert is_served(port, tokens)
        without, wrong = refusal(port, Locks()), refusal(port, other)
        assert (without.code, wrong.code) == (UNAUTHENTICATED, UNAUTHENTICATED)
        assert "--token-file" in str(without)
        with grpc.insecure_channel(f"localhost:{port}") as channel:
            request = health_pb2.HealthCheckRequest(service=ALIVE)
            answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=60)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    for said in (str(without), str(wrong), caplog.text, repr(tokens)):
        assert TOKEN not in said
        assert OTHER_TOKEN not in said


@both_servers
def test_a_stream_without_a_token_ends_before_it_says_anything(make, tokens):
    with server(make, tokens) as port, open_channel(f"localhost:{port}", Locks()) as channel:
        forever = threading.Event()
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        call = stub.ServerReflectionInfo(iter(lambda: forever.wait(60), True), timeout=60)
        assert call.code() == UNAUTHENTICATED
        forever.set()


def test_tokens_change_while_all_runs(tmp_path, quick):
    file = token_file(tmp_path / "server", TOKEN)
    old, new = (
        Locks(token_file=token_file(tmp_path / name, name)) for name in (TOKEN, OTHER_TOKEN)
    )
    with server(Server, Locks(token_file=file)) as port:
        assert is_served(port, old)
        token_file(file, OTHER_TOKEN, TOKEN)  # both, until every client has the new one
        assert is_served(port, old)
        assert is_served(port, new)
        token_file(file, OTHER_TOKEN)
        assert is_served(port, new)
        assert refusal(port, old).code == UNAUTHENTICATED


@both_servers
def test_certificates_change_while_all_runs(make, tmp_path, quick):
    """To those of another authority, at once on both sides, which is as hard as it gets."""
    folder = certificates(tmp_path / "used")
    old = Locks(shutil.copytree(folder, tmp_path / "old"))
    with server(make, Locks(folder)) as port, open_channel(f"localhost:{port}", Locks(folder)) as c:
        assert ask(c)
        held = reflection_pb2_grpc.ServerReflectionStub(c).ServerReflectionInfo(
            iter(threading.Event().wait, None), timeout=60
        )
        shutil.copytree(certificates(tmp_path / "new"), folder, dirs_exist_ok=True)
        assert ask(c)
        assert is_served(port, Locks(folder))
        assert refusal(port, old).code == UNAVAILABLE
        assert held.is_active()  # calls in flight go on
        held.cancel()


def test_half_of_a_pair_changes_nothing(tmp_path, quick, caplog):
    folder = certificates(tmp_path / "used")
    locks = Locks(folder)
    before = locks.keys.now
    new = shutil.copytree(folder, tmp_path / "new")
    make_certificates(new, HOSTS, days=2)
    shutil.copy(new / "tls.crt", folder)
    assert locks.keys.now == before
    assert "cannot be used" in caplog.text
    shutil.copy(new / "tls.key", folder)
    assert locks.keys.now.certificate == (new / "tls.crt").read_bytes()


def test_games_are_played_behind_a_certificate_and_a_token(ours, tmp_path):
    locks = Locks(ours, token_file=token_file(tmp_path / "token", TOKEN))
    game = load_game("tictactoe")
    with (
        using(locks),
        environment_server(game) as address,
        contextlib.closing(RemoteEnvironments(address, game.config, 2)) as environments,
    ):
        environments.reset([0, 1], [7, 8])
        assert not environments.step([0, 1], [0, 4]).terminated.any()


def test_metrics_are_told_over_tls_to_whoever_knows_the_authority(ours):
    with using(Locks(ours)):
        port = start_metrics(0, "localhost")
    known = ssl.create_default_context(cafile=ours / "ca.crt")
    page = urllib.request.urlopen(f"https://localhost:{port}/metrics", context=known, timeout=60)
    assert b"python_info" in page.read()
    with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
        urllib.request.urlopen(f"https://localhost:{port}/metrics", timeout=60)


def test_a_health_port_is_never_locked(ours):
    with using(Locks(ours)):
        health = HealthPort(0, "localhost")
    with contextlib.closing(health), grpc.insecure_channel(f"localhost:{health.port}") as channel:
        request = health_pb2.HealthCheckRequest(service=ALIVE)
        assert health_pb2_grpc.HealthStub(channel).Check(request, timeout=60).status == 1


@pytest.mark.parametrize(("host", "warns"), [("[::]", True), ("localhost", False)])
def test_a_server_that_anyone_may_use_says_so_in_one_sentence(host, warns, caplog):
    with server(Server, Locks(), host), caplog.at_level(logging.WARNING):
        pass
    said = [r.getMessage() for r in caplog.records if "anyone" in r.getMessage()]
    assert len(said) == warns
    assert all("--tls" in sentence and "--host localhost" in sentence for sentence in said)


def test_a_locked_server_does_not_say_so(tokens, caplog):
    with server(Server, tokens, "[::]"):
        pass
    assert "anyone" not in caplog.text


def test_commands_take_locks_from_options_and_from_the_environment(ours, tmp_path):
    """`muprover environment` with the one, `check`, another process, with the other."""
    file, port = token_file(tmp_path / "token", TOKEN), free_port()
    muprover = [sys.executable, "-m", "muprover.cli", "environment"]
    options = ["--tls", str(ours), "--token-file", str(file), "--host", "localhost"]
    game = ["--game", "tictactoe", "--port", str(port)]
    with subprocess.Popen([*muprover, *game, *options], stderr=subprocess.PIPE) as process:
        try:
            process.stderr.readline()  # it serves
            check = [*muprover, "check", f"localhost:{port}"]
            variables = {"MUPROVER_TLS": str(ours), "MUPROVER_TOKEN_FILE": str(file)}
            for given, status in ((variables, 0), ({}, 1)):
                environment = os.environ | given
                done = subprocess.run(check, capture_output=True, text=True, env=environment)
                assert done.returncode == status, done.stdout + done.stderr
                assert TOKEN not in done.stdout + done.stderr
        finally:
            process.terminate()
            said = process.stderr.read().decode()
    assert TOKEN not in said


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({}, "has neither ca.crt nor tls.crt and tls.key"),
        ({"tls.crt": b"x"}, "has no tls.key: a certificate and its key go together"),
        ({"ca.crt": b"x"}, "cannot be used"),
    ],
)
def test_certificates_that_cannot_be_used_are_refused(files, sentence, tmp_path):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(SettingsError, match=sentence):
        read_keys(tmp_path)


def test_an_authority_that_cannot_sign_is_not_replaced(ours):
    folder = part_of(ours, "ca.crt")
    before = (folder / "ca.crt").read_bytes()
    with pytest.raises(SettingsError, match=r"has a ca\.crt and not the ca\.key"):
        make_certificates(folder, HOSTS, days=2)
    assert [path.name for path in folder.iterdir()] == ["ca.crt"]
    assert (folder / "ca.crt").read_bytes() == before


def test_a_server_without_a_certificate_of_its_own_does_not_start(ours):
    with (
        pytest.raises(SettingsError, match=r"has no tls\.crt and tls\.key"),
        using(Locks(part_of(ours, "ca.crt"))),
    ):
        ThreadedServer([], 0, "localhost")
    with (
        pytest.raises(SettingsError, match=r"has no ca\.crt"),
        using(Locks(part_of(ours, "tls.crt", "tls.key"), clients=CERTIFICATE)),
    ):
        ThreadedServer([], 0, "localhost")


@pytest.mark.parametrize("text", ["", "short", "a token with spaces in it"])
def test_tokens_that_are_none_are_refused_without_being_shown(text, tmp_path):
    with pytest.raises(SettingsError, match="a token is a line of 16 or more") as error:
        read_tokens(token_file(tmp_path / "token", text))
    assert not text or text not in str(error.value)
