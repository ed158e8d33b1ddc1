"""What every server has: locks in files, health, reflection."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from fuzz.files import file, refused
from fuzz.mutate import join, message, mutate_bytes, mutate_text, several, split
from fuzz.target import AsyncCall, Feed, Loop, Refused, Target, parsed, stream
from muprover.certificates import make_certificates
from muprover.services.common import ALIVE
from muprover.services.health_servicers import AsyncHealth
from muprover.services.locks import CA_FILE, CERTIFICATE_FILE, KEY_FILE, read_keys, read_tokens
from muprover.services.reflection import AsyncReflection

NAMES = (CA_FILE, CERTIFICATE_FILE, KEY_FILE)
SERVICES = ("muprover.v1.ReplayService", "grpc.health.v1.Health")
Request = reflection_pb2.ServerReflectionRequest


def open_certificates(folder: Path) -> Feed:
    """Some of the three files of a folder."""

    def feed(data: bytes) -> None:
        for name in NAMES:
            (folder / name).unlink(missing_ok=True)
        for name, content in zip(NAMES, split(data), strict=False):
            (folder / name).write_bytes(content)
        refused(lambda: read_keys(folder))

    return feed


@cache
def certificates() -> list[bytes]:
    """Those of a trial, where there is openssl."""
    if shutil.which("openssl") is None:
        return [join([b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"] * 3)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_certificates(folder, ["localhost"], days=2)
        return [join([(folder / file).read_bytes() for file in NAMES])]


def open_health(folder: Path) -> Feed:
    """Whether a service is ready, asked of a server that is ending, so that watches end too."""
    run, health = Loop(), AsyncHealth()
    health.set(ALIVE, health_pb2.HealthCheckResponse.SERVING)

    async def ended() -> None:
        health.end()

    run(ended())

    def feed(data: bytes) -> None:
        for request in parsed(health_pb2.HealthCheckRequest, [data]):
            run(health.Check(request, AsyncCall()))
            watch = AsyncCall()
            run(health.Watch(request, watch))
            assert watch.written == 1

    return feed


def open_reflection(folder: Path) -> Feed:
    run, servicer = Loop(), AsyncReflection(SERVICES)

    def feed(data: bytes) -> None:
        requests = parsed(Request, split(data))
        call = AsyncCall()
        with suppress(Refused):
            run(servicer.ServerReflectionInfo(stream(requests), call))
        assert call.written == len(requests)

    return feed


def reflections() -> list[bytes]:
    asked = [
        Request(list_services="*"),
        Request(file_containing_symbol=SERVICES[0]),
        Request(file_by_filename="muprover/v1/replay.proto"),
        Request(all_extension_numbers_of_type=SERVICES[1]),
    ]
    return [join([request.SerializeToString() for request in asked])]


TARGETS = [
    Target(
        "door.token",
        file(read_tokens, "token"),
        lambda: [
            b"a-token-that-is-long-enough\n",
            b"another-token-of-them\nand-an-older-token-yet\n",
        ],
        lambda data, rng: (mutate_text if rng.randrange(2) else mutate_bytes)(data, rng),
        0.3,
    ),
    Target("door.certificates", open_certificates, certificates, several(mutate_bytes), 0.3),
    Target(
        "door.health",
        open_health,
        lambda: [b"", health_pb2.HealthCheckRequest(service=ALIVE).SerializeToString()],
        message(health_pb2.HealthCheckRequest),
        0.3,
    ),
    Target("door.reflection", open_reflection, reflections, several(message(Request)), 0.3),
]
