"""A first-in, first-out table of numpy columns: what the buffer keeps its positions in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

Array = NDArray[Any]


class Ring:
    """Rows that are appended at the head and dropped at the tail.

    A row keeps its id for ever: ids count up from 0 and are never used again. Reading many rows is
    one gather for each column, with no Python per row.
    """

    def __init__(
        self,
        columns: Mapping[str, tuple[tuple[int, ...], DTypeLike]],
        capacity: int,
        first_id: int = 0,
    ) -> None:
        """`columns`: (shape, dtype) of one row's entry in each."""
        self.tail = first_id  # the oldest row's id
        self.head = first_id  # the next row's id
        self._columns = {  # pages of zeros cost no memory until they are written
            name: np.zeros((capacity, *shape), dtype) for name, (shape, dtype) in columns.items()
        }
        self._capacity = capacity

    def __len__(self) -> int:
        return self.head - self.tail

    @property
    def capacity(self) -> int:
        return self._capacity

    @property
    def nbytes(self) -> int:
        return sum(column.nbytes for column in self._columns.values())

    def append(self, rows: Mapping[str, Array]) -> int:
        """Adds `[n, …]` rows, for which there must be room; answers the first one's id."""
        count = len(next(iter(rows.values())))
        first, at = self.head, self.head % self._capacity
        before_wrap = min(count, self._capacity - at)
        for name, column in self._columns.items():
            values = rows[name]
            column[at : at + before_wrap] = values[:before_wrap]
            column[: count - before_wrap] = values[before_wrap:]
        self.head += count
        return first

    def drop(self, count: int) -> None:
        """Forgets the `count` oldest rows."""
        self.tail += count

    def slots(self, ids: Array) -> Array:
        """Where rows lie now, to be passed to `take`."""
        return ids % self._capacity

    def take(self, name: str, slots: Array) -> Array:
        """`[*slots.shape, …]` a copy of one column's entries."""
        return self._columns[name].take(slots, axis=0)

    def grow(self, capacity: int) -> None:
        """Makes room for `capacity` rows; ids stay, slots change."""
        ids = np.arange(self.tail, self.head)
        old, new = ids % self._capacity, ids % capacity
        for name, column in self._columns.items():
            grown = np.zeros((capacity, *column.shape[1:]), column.dtype)
            grown[new] = column[old]
            self._columns[name] = grown
        self._capacity = capacity
