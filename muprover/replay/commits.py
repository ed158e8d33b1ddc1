"""Group commits: games of many callers go to the disk with one write."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from muprover.replay.durable import Added, DurableReplay
from muprover.replay.store import DiskError
from muprover.v1 import replay_pb2

log = logging.getLogger(__name__)

FLUSH_SECONDS = 1.0  # between two writes of the counters while no games come in

Games = Sequence[replay_pb2.GameHistory]


class GroupCommit:
    """Adds games to a `DurableReplay`: those that arrive during one write go with the next."""

    def __init__(self, replay: DurableReplay, on_change: Callable[[], Awaitable[None]]) -> None:
        """`on_change` is awaited after each write."""
        self._replay = replay
        self._on_change = on_change
        self._disk = ThreadPoolExecutor(1, "disk")
        self._pending: dict[asyncio.Future[Added], Games] = {}  # that wait for the next write
        self._arrived = asyncio.Event()

    async def add(self, games: Games) -> Added:
        """Returns when the games are on the disk. Raises `ValueError` for games that cannot be
        kept, `DiskError` if the disk refused them. Those of a caller that goes before they are
        written are forgotten."""
        done: asyncio.Future[Added] = asyncio.get_running_loop().create_future()
        self._pending[done] = games
        self._arrived.set()
        try:
            return await done
        finally:
            self._pending.pop(done, None)

    async def run(self) -> None:
        """Writes what arrives, until cancelled."""
        while True:
            try:
                async with asyncio.timeout(FLUSH_SECONDS):
                    await self._arrived.wait()
            except TimeoutError:
                await self._flush()
            else:
                await self._write()

    async def close(self) -> None:
        """Writes what is left."""
        await self._write()
        self._disk.shutdown()

    async def _write(self) -> None:
        self._arrived.clear()
        additions, self._pending = self._pending, {}
        if not additions:
            return
        requests = list(additions.values())
        outcomes: Sequence[Added | Exception]
        try:
            loop = asyncio.get_running_loop()
            outcomes = await loop.run_in_executor(self._disk, self._replay.add, requests)
        except Exception as error:
            log.exception("games could not be added")
            outcomes = [error] * len(additions)
        for done, outcome in zip(additions, outcomes, strict=True):
            if done.done():  # its caller is gone
                continue
            if isinstance(outcome, Added):
                done.set_result(outcome)
            else:
                done.set_exception(outcome)
        await self._on_change()

    async def _flush(self) -> None:
        with contextlib.suppress(DiskError):  # which has been logged; the next write may succeed
            await asyncio.get_running_loop().run_in_executor(self._disk, self._replay.flush)
