"""Group commits: games of many callers go to the disk with one write."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from muprover.replay.durable import Added, DurableReplay
from muprover.replay.store import DiskError
from muprover.v1 import replay_pb2

log = logging.getLogger(__name__)

FLUSH_SECONDS = 1.0  # between two writes of the counters while no games come in

Games = Sequence[replay_pb2.GameHistory]


class _Addition(NamedTuple):
    """Games that wait for the next write."""

    games: Games
    done: asyncio.Future[Added]


class GroupCommit:
    """Adds games to a `DurableReplay`: those that arrive during one write go with the next."""

    def __init__(self, replay: DurableReplay, on_change: Callable[[], Awaitable[None]]) -> None:
        """`on_change` is awaited after each write."""
        self._replay = replay
        self._on_change = on_change
        self._disk = ThreadPoolExecutor(1, "disk")
        self._pending: list[_Addition] = []
        self._arrived = asyncio.Event()

    async def add(self, games: Games) -> Added:
        """Returns when the games are on the disk. Raises `ValueError` for games that cannot be
        kept, `DiskError` if the disk refused them."""
        addition = _Addition(games, asyncio.get_running_loop().create_future())
        self._pending.append(addition)
        self._arrived.set()
        return await addition.done

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
        additions, self._pending = self._pending, []
        if not additions:
            return
        requests = [addition.games for addition in additions]
        outcomes: Sequence[Added | Exception]
        try:
            loop = asyncio.get_running_loop()
            outcomes = await loop.run_in_executor(self._disk, self._replay.add, requests)
        except Exception as error:
            log.exception("games could not be added")
            outcomes = [error] * len(additions)
        for addition, outcome in zip(additions, outcomes, strict=True):
            if addition.done.done():  # its caller is gone
                continue
            if isinstance(outcome, Added):
                addition.done.set_result(outcome)
            else:
                addition.done.set_exception(outcome)
        await self._on_change()

    async def _flush(self) -> None:
        with contextlib.suppress(DiskError):  # which has been logged; the next write may succeed
            await asyncio.get_running_loop().run_in_executor(self._disk, self._replay.flush)
