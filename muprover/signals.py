"""What is done at signals, by a thread: a handler may interrupt anything, so it may wait for no
lock, and not even set an event for which the main thread waits."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any


@contextmanager
def on_signals(acts: Mapping[signal.Signals, Callable[[], Any]]) -> Iterator[None]:
    """Does what `acts` say at signals that arrive inside the `with`. For the main thread."""
    arrived: SimpleQueue[int] = SimpleQueue()  # a handler may put here
    over = 0

    def watch() -> None:
        while number := arrived.get():
            acts[signal.Signals(number)]()

    thread = threading.Thread(target=watch, name="signals", daemon=True)
    thread.start()
    before = {n: signal.signal(n, lambda number, _: arrived.put(number)) for n in acts}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        arrived.put(over)
        thread.join()
