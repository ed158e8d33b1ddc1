"""The model repository of a trainer: its calls, and its answers as network servers read them."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path
from typing import Any

from fuzz.mutate import message
from fuzz.target import AsyncCall, Feed, Loop, Target, answers, parsed
from muprover.services import models
from muprover.services.client import ServiceError
from muprover.v1 import models_pb2

CONTENT = bytes(range(256)) * 9
models.WATCH_SECONDS = 0.001  # who knows all there is would wait for 20 s


def opened(folder: Path) -> tuple[Loop, models.ModelRepositoryServicer]:
    """A servicer with one version."""
    path = folder / "models" / "1" / "variables" / "variables.index"
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    run, servicer = Loop(), models.ModelRepositoryServicer(folder / "models")
    run(servicer.look())
    return run, servicer


def open_watch(folder: Path) -> Feed:
    run, servicer = opened(folder)

    def feed(data: bytes) -> None:
        for request in parsed(models_pb2.WatchRequest, [data]):
            assert run(servicer.Watch(request, AsyncCall())).versions

    return feed


def open_fetch(folder: Path) -> Feed:
    run, servicer = opened(folder)

    def feed(data: bytes) -> None:
        for request in parsed(models_pb2.FetchRequest, [data]):
            context = AsyncCall()
            run(answers(servicer.Fetch(request, context), context))

    return feed


def open_answer(folder: Path) -> Feed:
    """What a trainer says that it has; no path of it may lead out of a version's folder."""
    remote = models.RemoteModels("localhost:1")

    class Stub:
        answer: Any

        def Watch(self, *_: Any, **__: Any) -> Any:
            return self.answer

    remote._stub = stub = Stub()

    def feed(data: bytes) -> None:
        for stub.answer in parsed(models_pb2.WatchResponse, [data]):
            with suppress(ServiceError):
                for version in remote.watch():
                    for file in version.files:
                        place = (folder / file.path).resolve()
                        assert folder in place.parents

    return feed


def watches() -> list[bytes]:
    return [models_pb2.WatchRequest(known=known).SerializeToString() for known in ([], [1], [7, 9])]


def fetches() -> list[bytes]:
    sha256 = hashlib.sha256(CONTENT).digest()
    made = [models_pb2.FetchRequest(sha256=sha256, offset=n) for n in (0, 300, len(CONTENT))]
    return [request.SerializeToString() for request in made]


def versions() -> list[bytes]:
    file = models_pb2.ModelFile(path="variables/variables.index", size=3, sha256=bytes(32))
    version = models_pb2.ModelVersion(number=1, files=[file, file])
    return [models_pb2.WatchResponse(versions=[version]).SerializeToString()]


TARGETS = [
    Target("models.Watch", open_watch, watches, message(models_pb2.WatchRequest), 0.3),
    Target("models.Fetch", open_fetch, fetches, message(models_pb2.FetchRequest), 0.3),
    Target("models.answer", open_answer, versions, message(models_pb2.WatchResponse)),
]
