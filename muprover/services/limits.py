"""What a server takes on at once; who asks for more is refused, so that others are served on."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, TypeVar

import grpc

log = logging.getLogger(__name__)

FIRST_SECONDS = 60.0  # until a stream says its first word
SILENCE_SECONDS = 3600.0  # between two of its requests
READING_SECONDS = 600.0  # until a client has taken an answer
WANTED_FILES, FEW_FILES = 65_536, 4096  # a connection is an open file

Request = TypeVar("Request")


class RequestError(RuntimeError):
    """Why a call ends; `code` says whose fault it is."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code


class Places:
    """So many of something at once."""

    def __init__(self, most: int, what: str) -> None:
        self.most = most
        self.taken = 0
        self._what = what

    @contextlib.contextmanager
    def take(self, number: int = 1) -> Iterator[None]:
        """Holds so many inside the `with`; raises `RequestError` where there are no more."""
        self.add(number)
        try:
            yield
        finally:
            self.taken -= number

    @contextlib.contextmanager
    def later(self) -> Iterator[Callable[[], None]]:
        """Yields what takes one when it is first called; it is held until the `with` ends."""
        held = 0

        def take() -> None:
            nonlocal held
            if not held:
                self.add(1)
                held = 1

        try:
            yield take
        finally:
            self.taken -= held

    def add(self, number: int) -> None:
        """Takes more, which are to be taken off `taken` again."""
        if self.taken + number > self.most:
            raise RequestError(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"this server holds {self.taken} {self._what} and at most {self.most}; "
                "try again later, or start another server",
            )
        self.taken += number


async def spoken(
    requests: AsyncIterator[Request], silence: float = SILENCE_SECONDS
) -> AsyncIterator[Request]:
    """The requests of a stream; raises `RequestError` when it says nothing for too long: at first,
    or for `silence` seconds between two of them."""
    seconds, stream = FIRST_SECONDS, aiter(requests)
    while True:
        try:
            async with asyncio.timeout(seconds):
                request = await anext(stream)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise RequestError(
                grpc.StatusCode.ABORTED, f"the stream said nothing for {seconds:g} s; open another"
            ) from None
        yield request
        seconds = silence


@contextlib.asynccontextmanager
async def in_words(context: Any) -> AsyncIterator[None]:
    """Ends the call when a request is refused inside the `with`."""
    try:
        yield
    except RequestError as error:
        log.warning("stream of %s ends: %s: %s", context.peer(), error.code.name, error)
        await context.abort(error.code, str(error))


class NotReadError(asyncio.CancelledError):
    """An answer that its client does not take. No status could reach it behind that answer: gRPC
    drops the call of a handler that ends as if it were cancelled."""


@contextlib.asynccontextmanager
async def being_read(context: Any) -> AsyncIterator[None]:
    """For sending an answer; raises `NotReadError` when its client does not take it."""
    try:
        async with asyncio.timeout(READING_SECONDS):
            yield
    except TimeoutError:
        log.warning("%s does not read its answers: dropped", context.peer())
        raise NotReadError from None


def allow_open_files() -> None:
    """Lets this process have as many connections as the system allows it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = WANTED_FILES if hard == resource.RLIM_INFINITY else min(hard, WANTED_FILES)
    if soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if max(soft, most) < FEW_FILES:
        log.warning(
            "only %d open files are allowed here, and each client needs one: more will have to "
            "wait. Raise the limit before the start: ulimit -n %d",
            *(max(soft, most), WANTED_FILES),
        )
