"""Servers without services of their own (health and reflection they have all), for tests."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator

from muprover.services.server import Server, ThreadedServer


@contextlib.contextmanager
def bare_server(make: Callable[[], Server | ThreadedServer]) -> Iterator[int]:
    """Runs what `make` makes in a thread of this process; its port."""
    loop, stop, port, ready = asyncio.new_event_loop(), asyncio.Event(), [], threading.Event()

    async def main() -> None:
        served = make()
        async with served.running(0):
            port.append(served.port)
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(main()))
    thread.start()
    assert ready.wait(60)
    try:
        yield port[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()
