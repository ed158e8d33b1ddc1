"""The model repository: `ModelPort`, with which a trainer lets others read its versions, and
`RemoteModels`, with which they do.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
import zlib
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import grpc

from muprover.modelfolder import (
    PIECE_BYTES,
    ModelFile,
    ModelVersion,
    read_version,
    version_numbers,
)
from muprover.services.client import ServiceError, open_channel, service_error
from muprover.services.common import PortError
from muprover.services.limits import Places, being_read, in_words
from muprover.services.server import Server
from muprover.v1 import models_pb2, models_pb2_grpc

log = logging.getLogger(__name__)

SERVICE = models_pb2.DESCRIPTOR.services_by_name["ModelRepositoryService"].full_name
WATCH_SECONDS = 20.0  # of one long poll
ANSWER_SECONDS = 10.0  # that an answer may be late
LOOK_SECONDS = 0.25  # between two looks at the folder
HAND_OVER_SECONDS = 10.0  # that a last version has, at the end, to reach those who ask for it
ABSENT_SECONDS = 2.0  # after an answer: who has not asked again will not
MAX_FILES = 10_000  # of one version
MAX_FETCHES = 256  # at once, each with a piece of a file in memory


class ModelRepositoryServicer(models_pb2_grpc.ModelRepositoryServiceServicer):
    """The versions of one folder, as `follow` sees them.

    Only regular files of these versions are ever opened: clients ask for contents, not for paths.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._versions: tuple[ModelVersion, ...] = ()
        self._folders: dict[int, tuple[int, int]] = {}  # what tells a version's from its successor
        self._paths: dict[bytes, Path] = {}  # by SHA-256
        self._looking = asyncio.Lock()
        self._changed = asyncio.Condition()
        self._waiting: list[list[int]] = []  # what those know who wait for more
        self._answered: dict[str, float] = {}  # who has not come back since, and when that was
        self._fetching = Places(MAX_FETCHES, "files that are being fetched")
        self._complaint = ""  # the last one about the folder

    async def follow(self) -> None:
        """Looks at the folder again and again, until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_SECONDS)

    async def look(self) -> None:
        """Takes note of what is in the folder now."""
        async with self._looking:
            try:
                versions = await asyncio.to_thread(self._read)
            except OSError as error:
                if str(error) != self._complaint:
                    self._complaint = str(error)
                    log.error("versions in %s cannot be read: %s", self._folder, error)
                versions = self._versions
            await self._note(versions)

    async def _note(self, versions: tuple[ModelVersion, ...]) -> None:
        async with self._changed:
            since = time.monotonic() - ABSENT_SECONDS
            answered = {client: at for client, at in self._answered.items() if at > since}
            if versions != self._versions or answered != self._answered:
                self._answered = answered
                self._versions = versions
                self._paths = {
                    file.sha256: self._folder / str(version.number) / file.path
                    for version in versions
                    for file in version.files
                }
                self._changed.notify_all()

    async def hand_over(self, seconds: float) -> None:
        """Waits until those who are asking for versions have the newest, if they get it in time."""
        await self.look()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds), self._changed:
                await self._changed.wait_for(
                    lambda: (
                        not self._fetching.taken
                        and not self._answered
                        and all(known == self._numbers for known in self._waiting)
                    )
                )

    async def Watch(
        self, request: models_pb2.WatchRequest, context: Any
    ) -> models_pb2.WatchResponse:
        known, client = list(request.known), context.peer()
        async with self._changed:
            self._answered.pop(client, None)
            self._waiting.append(known)
            self._changed.notify_all()
            try:
                async with asyncio.timeout(WATCH_SECONDS):
                    await self._changed.wait_for(lambda: known != self._numbers)
            except TimeoutError:
                pass
            finally:
                self._waiting.remove(known)
            self._answered[client] = time.monotonic()
        return models_pb2.WatchResponse(versions=map(_to_proto, self._versions))

    async def Fetch(self, request: models_pb2.FetchRequest, context: Any) -> None:
        client = context.peer()
        async with in_words(context):
            with self._fetching.take():
                try:
                    await self._send(request, context)
                finally:
                    self._answered[client] = time.monotonic()

    async def _send(self, request: models_pb2.FetchRequest, context: Any) -> None:
        """A file, piece by piece."""
        with await self._open(request.sha256, context) as file:
            size = os.fstat(file.fileno()).st_size
            if not 0 <= request.offset <= size:
                what = f"no byte {request.offset} in a file of {size} bytes"
                await context.abort(grpc.StatusCode.OUT_OF_RANGE, what)
            try:
                file.seek(request.offset)
                while data := await asyncio.to_thread(file.read, PIECE_BYTES):
                    async with being_read(context):
                        piece = models_pb2.FetchResponse(data=data, crc32=zlib.crc32(data))
                        await context.write(piece)
            except OSError as error:
                what = f"cannot be read: {error.strerror}"
                await context.abort(grpc.StatusCode.DATA_LOSS, what)

    @property
    def _numbers(self) -> list[int]:
        return [version.number for version in self._versions]

    def _read(self) -> tuple[ModelVersion, ...]:
        """What is in the folder; of versions that were there already, what was in them then."""
        before = {version.number: version for version in self._versions}
        versions, folders = [], {}
        for number in version_numbers(self._folder):
            with suppress(FileNotFoundError, NotADirectoryError):  # removed meanwhile; no version
                status = (self._folder / str(number)).lstat()
                folders[number] = identity = (status.st_ino, status.st_mtime_ns)
                if number in before and self._folders.get(number) == identity:
                    versions.append(before[number])
                else:
                    versions.append(read_version(self._folder, number))
        self._folders = folders
        return tuple(versions)

    async def _open(self, sha256: bytes, context: Any) -> BinaryIO:
        path = self._paths.get(sha256)
        with suppress(OSError):
            if path is not None:
                descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
                return open(descriptor, "rb", buffering=0)
        there = ", ".join(map(str, self._numbers)) or "none"
        wanted = sha256[:32].hex()
        await context.abort(
            grpc.StatusCode.NOT_FOUND,
            f"no version that is here has a file with SHA-256 {wanted}; versions: {there}",
        )
        raise AssertionError  # `abort` has raised


class ModelPort:
    """The versions of a folder on a port (0: a free one), served from a thread of its own."""

    def __init__(self, folder: Path, port: int, host: str = "[::]") -> None:
        self._stop = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop
        opened: Future[int] = Future()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(folder, port, host, opened)),
            name="model port",
            daemon=True,
        )
        self._thread.start()
        try:
            self.port = opened.result()
        except PortError:
            raise PortError(
                f"model port {port} is in use or not allowed; choose another with --model-port"
            ) from None
        log.info("versions for network servers elsewhere on port %d", self.port)

    def close(self) -> None:
        """Lets those who are asking for versions have the newest, and ends."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    async def _serve(self, folder: Path, port: int, host: str, opened: Future[int]) -> None:
        self._loop = asyncio.get_running_loop()
        try:
            server = Server([SERVICE], port, host)
        except BaseException as error:
            opened.set_exception(error)
            return
        servicer = ModelRepositoryServicer(folder)
        models_pb2_grpc.add_ModelRepositoryServiceServicer_to_server(servicer, server.grpc)
        async with server.running(grace=0.5):
            await server.set_serving(True)
            opened.set_result(server.port)
            following = asyncio.create_task(servicer.follow())
            await self._stop.wait()
            await servicer.hand_over(HAND_OVER_SECONDS)
            following.cancel()


class RemoteModels:
    """The versions of a trainer elsewhere; raises `ServiceError`."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._channel = open_channel(address)
        self._stub = models_pb2_grpc.ModelRepositoryServiceStub(self._channel)

    def close(self) -> None:
        """Ends all calls."""
        self._channel.close()

    def watch(self, known: Sequence[int] = ()) -> tuple[ModelVersion, ...]:
        """The versions that are there, as soon as they are others than those `known`; after
        `WATCH_SECONDS` in any case."""
        request = models_pb2.WatchRequest(known=known)
        with self._errors():
            response = self._stub.Watch(request, timeout=WATCH_SECONDS + ANSWER_SECONDS)
            return tuple(self._version(version) for version in response.versions)

    def fetch(self, file: ModelFile, offset: int = 0) -> Generator[bytes]:
        """The content of a file from `offset` on, in pieces that arrived as they were sent."""
        request = models_pb2.FetchRequest(sha256=file.sha256, offset=offset)
        with self._errors():
            call = self._stub.Fetch(request)
            try:
                for response in call:
                    if zlib.crc32(response.data) != response.crc32:
                        raise self._refusal(f"{file.path} was damaged on its way")
                    yield response.data
            finally:
                call.cancel()

    def _version(self, message: models_pb2.ModelVersion) -> ModelVersion:
        """A version as it was told; what cannot be one is refused."""
        if message.number < 0:
            raise self._refusal(f"no version has the number {message.number}")
        if len(message.files) > MAX_FILES:
            raise self._refusal(f"version {message.number} has more than {MAX_FILES} files")
        for file in message.files:
            if not is_inside(file.path):
                raise self._refusal(f"version {message.number} names a file {file.path!r}")
            if file.size < 0 or len(file.sha256) != 32:
                raise self._refusal(f"version {message.number} tells no content of {file.path}")
        files = (ModelFile(file.path, file.size, file.sha256) for file in message.files)
        return ModelVersion(message.number, tuple(files))

    def _refusal(self, why: str) -> ServiceError:
        return ServiceError(grpc.StatusCode.DATA_LOSS, f"trainer at {self._address}: {why}")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as error:
            raise service_error("trainer", self._address, error) from None
        except ValueError as error:  # of a channel that has been closed
            raise ServiceError(grpc.StatusCode.CANCELLED, f"{self._address}: {error}") from None


def is_inside(path: str) -> bool:
    """Whether a path leads to a place below where it begins, in one way of writing it."""
    parts = PurePosixPath(path).parts
    plain = "/".join(parts) == path and not path.startswith("/") and "\0" not in path
    return plain and path != "" and ".." not in parts


def _to_proto(version: ModelVersion) -> models_pb2.ModelVersion:
    files = (
        models_pb2.ModelFile(path=file.path, size=file.size, sha256=file.sha256)
        for file in version.files
    )
    return models_pb2.ModelVersion(number=version.number, files=files)
