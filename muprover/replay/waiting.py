"""Calls that wait their turn, and the seconds that they spend on it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable


class WaitClock:
    """Seconds waited, summed over all who wait; they count while the waiting lasts."""

    def __init__(self) -> None:
        self._waiting = 0
        self._sum = 0.0
        self._since = time.monotonic()

    def __enter__(self) -> None:
        self._change(1)

    def __exit__(self, *_: object) -> None:
        self._change(-1)

    @property
    def seconds(self) -> float:
        return self._sum + self._waiting * (time.monotonic() - self._since)

    def _change(self, by: int) -> None:
        self._sum, self._since = self.seconds, time.monotonic()
        self._waiting += by


class Turns:
    """Wakes those who wait whenever something has changed; of one event loop."""

    def __init__(self) -> None:
        self._waiting: dict[asyncio.Future[None], Callable[[], bool]] = {}  # in order of arrival

    async def notify(self) -> None:
        """Wakes those whose turn it is; a thousand who wait for the same are asked once."""
        answers: dict[Callable[[], bool], bool] = {}
        for future, ready in self._waiting.items():
            if ready not in answers:
                answers[ready] = ready()
            if answers[ready] and not future.done():
                future.set_result(None)

    async def wait(
        self, ready: Callable[[], bool], clock: WaitClock, timeout: float | None = None
    ) -> bool:
        """Waits until `ready()`; False if it is not within `timeout` seconds."""
        if ready():
            return True
        with clock:
            try:
                async with asyncio.timeout(timeout):
                    while not ready():  # whoever was woken before may have changed that
                        await self._next_turn(ready)
            except TimeoutError:
                return False
        return True

    async def _next_turn(self, ready: Callable[[], bool]) -> None:
        future = asyncio.get_running_loop().create_future()
        self._waiting[future] = ready
        try:
            await future
        finally:
            del self._waiting[future]
