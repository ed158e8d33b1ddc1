"""What a target of fuzzing is, and what a servicer sees of a call that comes from none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import grpc
from google.protobuf.message import DecodeError

from fuzz.mutate import Mutator, mutate_bytes

Feed = Callable[[bytes], None]
OWN_FAULTS = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN)  # never the answer to garbage


class Target(NamedTuple):
    """Something that takes bytes from outside."""

    name: str
    open: Callable[[Path], Feed]  # given an empty folder; what it answers raises only for faults
    seeds: Callable[[], list[bytes]]  # sound data
    mutate: Mutator = mutate_bytes
    share: float = 1.0  # of the messages of a long run


class Refused(Exception):
    """A call was ended with a status."""


class Call:
    """As much of a `grpc.ServicerContext`, on a thread or an event loop, as servicers use."""

    def __init__(self, seconds: float | None = None) -> None:
        self._seconds = seconds
        self.written = 0

    def peer(self) -> str:
        return "fuzzer"

    def time_remaining(self) -> float | None:
        return self._seconds

    def add_callback(self, _: Callable[[], Any]) -> bool:
        return True

    def set_code(self, code: grpc.StatusCode) -> None:
        _check(code, "")

    def set_details(self, _: str) -> None: ...

    async def write(self, answer: Any) -> None:
        answer.SerializeToString()
        self.written += 1


class AsyncCall(Call):
    async def abort(self, code: grpc.StatusCode, details: str = "") -> NoReturn:
        _check(code, details)
        raise Refused(code, details)


class ThreadCall(Call):
    def abort(self, code: grpc.StatusCode, details: str = "") -> NoReturn:
        _check(code, details)
        raise Refused(code, details)


def _check(code: grpc.StatusCode, details: str) -> None:
    assert code not in OWN_FAULTS, f"{code.name}: {details}"


class Loop:
    """An event loop that runs while it is asked to."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()

    def __call__(self, work: Awaitable[Any], seconds: float = 120.0) -> Any:
        """What `work` comes to; None for a call that was refused."""

        async def run() -> Any:
            async with asyncio.timeout(seconds):
                return await work

        try:
            return self._loop.run_until_complete(run())
        except Refused:
            return None

    def start(self, work: Coroutine[Any, Any, Any]) -> None:
        """Does `work` beside others."""
        task = self._loop.create_task(work)
        task.add_done_callback(lambda task: task.result())


async def stream(requests: Iterable[Any]) -> AsyncIterator[Any]:
    for request in requests:
        yield request


async def answers(call: Any, context: Call) -> int:
    """How many answers a call streams, as a generator or by writing them."""
    if not hasattr(call, "__aiter__"):
        await call
        return context.written
    count = 0
    async for answer in call:
        answer.SerializeToString()
        count += 1
    return count


def parsed(kind: Any, data: Iterable[bytes]) -> list[Any]:
    """The messages that gRPC would hand to a servicer, up to the first that is none."""
    messages = []
    for some in data:
        try:
            messages.append(kind.FromString(some))
        except DecodeError:
            break
    return messages
