"""A share of the garbage over real connections, to real servers in processes of their own."""

from __future__ import annotations

import json
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import grpc

from fuzz import plain, targets
from fuzz.mutate import mutate_bytes, split
from muprover.services.client import open_channel

REST_SHARE = 0.2  # of the network server's messages
RAW_SHARE = 0.02  # that are no gRPC at all
TAKEN_SECONDS = 30.0
SERVICES = {
    "environment": "muprover.v1.EnvironmentService",
    "replay": "muprover.v1.ReplayService",
    "network": "tensorflow.serving.PredictionService",
}
MODEL_SERVICE = "tensorflow.serving.ModelService"
STREAMS = ("Play", "AddStream", "Sample", "Restore")
OTHERS = {
    "grpc.health.v1.Health/Check": b"\n\x05alive",
    "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": b":\x01*",
}


class Served(NamedTuple):
    """A server in a process."""

    name: str
    process: subprocess.Popen[bytes]
    port: int
    rest_port: int = 0

    def memory_mb(self) -> float:
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * 4096 / (1 << 20)

    def files(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))


def fuzz(count: int, seed: int, folder: Path) -> list[dict[str, Any]]:
    """So many messages to each kind of server in all; a row for each call."""
    rows = []
    for name in SERVICES:
        with served(name, folder) as server:
            rows += fuzz_server(server, count // len(SERVICES), random.Random(seed))
    return rows


def fuzz_server(server: Served, count: int, rng: random.Random) -> list[dict[str, Any]]:
    calls = dict(calls_of(server))
    each = max(1, count // len(calls))
    rows = []
    for path, (send, garbage) in calls.items():
        for data in islice(garbage, max(1, each // 10)):
            send(data)
        early, began, slowest = server.memory_mb(), time.monotonic(), 0.0
        for data in islice(garbage, each):
            start = time.monotonic()
            send(data)
            slowest = max(slowest, time.monotonic() - start)
        ended = server.process.poll()
        row = {
            "target": f"socket: {path}",
            "messages": each + max(1, each // 10),
            "seconds": time.monotonic() - began,
            "slowest": slowest,
            "mb": 0.0 if ended is not None else server.memory_mb(),
            "harm": "" if ended is None else f"the server ended with {ended}",
        }
        row["growth_mb"] = row["mb"] - early
        rows.append(row)
        print(f"{row['target']:60} {row['messages']:7,} messages {row['harm'] or 'ok'}", flush=True)
    return rows


def calls_of(server: Served) -> Iterator[tuple[str, tuple[Callable[[bytes], None], Any]]]:
    """What sends garbage to each door of a server, and the garbage."""
    known = targets.load((server.name,))
    channel = open_channel(f"localhost:{server.port}")
    for target in known.values():
        garbage = plain.mutations(target, plain.known(target))
        name = target.name.partition(".")[2]
        if name == "REST":
            yield "REST", (lambda data: send_rest(server.rest_port, data), garbage)
            continue
        service = SERVICES[server.name]
        if name in ("GetModelStatus", "HandleReloadConfigRequest"):
            service = MODEL_SERVICE
        path = f"/{service}/{name}"
        yield path, (caller(channel, path, name in STREAMS), garbage)
    rng = random.Random(0)
    for path, data in OTHERS.items():
        noise = (mutate_bytes(data, rng) for _ in iter(int, 1))
        yield f"/{path}", (caller(channel, f"/{path}", "Info" in path), noise)
    ports = [port for port in (server.port, server.rest_port) if port]
    raw = (
        rng.choice((b"", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")) + rng.randbytes(99)
        for _ in iter(int, 1)
    )
    yield "no protocol at all", (lambda data: send_raw(rng.choice(ports), data), raw)


def caller(channel: grpc.Channel, path: str, streams: bool) -> Callable[[bytes], None]:
    method = channel.stream_stream(path)

    def send(data: bytes) -> None:
        parts = split(data) if streams else [data]
        try:
            for _ in method(iter(parts), timeout=TAKEN_SECONDS, wait_for_ready=True):
                pass
        except grpc.RpcError as error:
            code, details = error.code(), error.details() or ""
            unparsed = "deserializing" in details.lower() or "parsing" in details.lower()
            own_fault = code in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL)
            if code is grpc.StatusCode.DEADLINE_EXCEEDED or (own_fault and not unparsed):
                raise AssertionError(f"{path} answered {code}: {details}") from None

    return send


def send_rest(port: int, data: bytes) -> None:
    line, _, body = data.partition(b"\n")
    head = line + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    answer = send_raw(port, head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    assert b" 500 " not in answer.partition(b"\r\n")[0], answer


def send_raw(port: int, data: bytes) -> bytes:
    answer = b""
    with (
        suppress(ConnectionError, TimeoutError),
        socket.create_connection(("localhost", port), timeout=TAKEN_SECONDS) as connection,
    ):
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        while some := connection.recv(1 << 16):
            answer += some
    return answer


@contextmanager
def served(name: str, folder: Path) -> Iterator[Served]:
    """The real server of this name, in a process; it must end by itself when it is told to."""
    work = folder / f"served-{name}"
    work.mkdir()
    with ExitStack() as stack:
        log = stack.enter_context((work / "log").open("wb"))
        command = [sys.executable, str(Path(__file__).with_name("serve.py")), name, str(work)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log)
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, (work / "log").read_text()
        port, rest_port = json.loads(line)
        try:
            yield Served(name, process, port, rest_port)
        finally:
            process.terminate()
            try:
                status = process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        assert status == 0, f"{name} ended with {status}: {(work / 'log').read_text()[-2000:]}"
