"""Which batch sizes of a function are compiled, which one a batch takes, which is worth adding."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

WINDOW = 256  # batches remembered
MIN_BATCHES = 24  # before anything is concluded from them
MAX_PADDING = 0.125  # share of the rows from which on another size is worth compiling
MIN_BACKLOG = 0.5  # share of the batches that left others waiting, from which on a larger one is
MAX_LEARNED = 12  # sizes of one function
MAX_MERGED = 256  # rows up to which joining requests is expected to pay


class Plan(NamedTuple):
    """A batch: the first so many requests of a queue, run at a compiled size."""

    num_requests: int
    size: int


class BatchSizes:
    """The compiled sizes of one function.

    With `allowed` sizes there are no others. Without, they follow what clients send: when too many
    rows are padding, the size that would have saved most becomes wanted, and when requests keep
    waiting behind others, one that joins twice as many.
    """

    def __init__(self, max_rows: int, allowed: Sequence[int] = ()) -> None:
        self.max_rows = max_rows
        self._allowed = tuple(allowed)
        self._compiled: list[int] = []
        self._recent: deque[tuple[int, int]] = deque(maxlen=WINDOW)  # rows, size
        self._backlogs: deque[int] = deque(maxlen=WINDOW)  # rows that could have been one batch
        self._lock = threading.Lock()

    @property
    def compiled(self) -> tuple[int, ...]:
        return tuple(self._compiled)

    def add(self, size: int) -> None:
        """Notes that `size` has been compiled."""
        with self._lock:
            self._compiled = sorted({*self._compiled, size})
            self._recent.clear()
            self._backlogs.clear()

    def target(self, rows: int) -> int:
        """The size that `rows` rows would best run at."""
        return next((size for size in self._allowed if size >= rows), rows)

    def runnable(self, rows: int) -> int | None:
        """The compiled size that takes `rows` rows at the least cost."""
        return next((size for size in self._compiled if size >= rows), None)

    def plan(self, waiting: Sequence[int]) -> Plan | None:
        """The batch with the least padding that takes the first requests of a queue, of so many
        rows each; of equals the one with most of them. None: no compiled size takes the first."""
        best, best_share, rows = None, 0.0, 0
        for count, more in enumerate(waiting, 1):
            rows += more
            size = self.runnable(rows)
            if size is None:
                break
            if rows / size >= best_share:
                best, best_share = Plan(count, size), rows / size
        return best

    def observe(self, waiting: Sequence[int], plan: Plan) -> None:
        """Notes a batch that ran, and the requests that had been there to choose from."""
        rows, twice = sum(waiting[: plan.num_requests]), sum(waiting[: 2 * plan.num_requests])
        joins = len(waiting) >= 2 * plan.num_requests and twice <= min(self.max_rows, MAX_MERGED)
        with self._lock:
            self._recent.append((rows, plan.size))
            self._backlogs.append(twice if joins else 0)

    def wanted(self) -> int | None:
        """A size that is worth compiling; None: all is well."""
        with self._lock:
            if len(self._recent) < MIN_BATCHES or len(self._compiled) >= MAX_LEARNED:
                return None
            rows, total = (sum(column) for column in zip(*self._recent, strict=True))
            size = self._saves_most() if rows < (1 - MAX_PADDING) * total else self._joins_more()
            return None if size is None or size in self._compiled else size

    def _saves_most(self) -> int | None:
        def saved(size: int) -> int:
            return sum(max(0, ran - size) for rows, ran in self._recent if rows <= size)

        candidates = sorted({self.target(rows) for rows, _ in self._recent})
        best = max(candidates, key=saved)
        return best if saved(best) > 0 else None

    def _joins_more(self) -> int | None:
        joined = [rows for rows in self._backlogs if rows]
        if len(joined) < MIN_BACKLOG * len(self._backlogs):
            return None
        return self.target(max(joined))
