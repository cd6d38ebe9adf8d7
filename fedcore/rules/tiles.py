"""Tiles of columns of rows in files, read ahead of the work on them.

A few threads fill one buffer while the caller works on the other; the interpreter is free during both, for reads and
kernels release its lock. Rows are shared out between the threads in stretches, so that one tile is ready as soon as
possible, and the operating system is told of the tile after it, so that a disk is not left idle while threads wait for
a core.
"""

from __future__ import annotations

import os
import resource
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np

from fedcore.rowtable import RowTable
from fedcore.rules.budget import PADDING, SLOTS
from fedcore.rules.buffer import buffer
from fedcore.updates.filerows import Descriptors, FileRows

#: stretches of rows that a tile is read in, for each thread
STRETCHES = 4


class Tile(NamedTuple):
    """Columns from `start` on, of some rows: in the form that ops take, valid until the next tile is asked for."""

    start: int
    rows: Any


def open_files_allowed() -> int:
    """Files that a pass may keep open: half of those that the process may still open. The rest is for other work."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return 1 << 20
    return max(0, soft - len(os.listdir("/dev/fd"))) // 2


class TileReader:
    """Iterate over tiles of `width` columns of some rows of a FileRows; a context manager, for one pass.

    Raises what `FileRows.fill` raises, for the first row that fails; the threads have stopped when the `with` ends.
    """

    def __init__(self, rows: FileRows, index: Sequence[int], width: int, threads: int):
        self._rows, self._index, self._width = rows, list(index), max(width, 1)
        self._threads = threads
        self.count = max(1, -(-rows.d // self._width))

    def __enter__(self) -> TileReader:
        self._stack = ExitStack()
        self._descriptors = self._stack.enter_context(Descriptors(self._rows, open_files_allowed()))
        self._pool = ThreadPoolExecutor(self._threads, "fedcore-read")
        self._stack.callback(self._pool.shutdown, wait=True, cancel_futures=True)
        self._slots = [self._buffer() for _ in range(min(SLOTS, self.count))]
        self._tables: dict[tuple[int, int], RowTable] = {}
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def __iter__(self) -> Iterator[Tile]:
        coming = deque(self._read(k) for k in range(len(self._slots)))
        for k in range(self.count):
            for future in coming.popleft():
                future.result()
            yield Tile(k * self._width, self._table(k))
            if k + len(self._slots) < self.count:
                coming.append(self._read(k + len(self._slots)))

    def _buffer(self) -> np.ndarray:
        """(rows, stride) uint8, each row at the start of a cache line."""
        stride = self._rows.room(min(self._width, self._rows.d))
        stride += -stride % PADDING + PADDING
        return buffer(len(self._index) * stride).reshape(len(self._index), stride)

    def _span(self, k: int) -> tuple[int, int]:
        return k * self._width, min((k + 1) * self._width, self._rows.d)

    def _read(self, k: int) -> list[Future[None]]:
        """Start to fill the slot of tile k."""
        step = -(-len(self._index) // (self._threads * STRETCHES)) or 1
        return [self._pool.submit(self._fill, k, first, first + step) for first in range(0, len(self._index), step)]

    def _fill(self, k: int, first: int, last: int) -> None:
        start, stop = self._span(k)
        slot = self._slots[k % len(self._slots)]
        if k + 1 < self.count:
            for row in self._index[first:last]:
                self._rows.announce(row, *self._span(k + 1), self._descriptors)
        for place, row in enumerate(self._index[first:last], first):
            self._rows.fill(row, start, stop, slot[place], self._descriptors)

    def _table(self, k: int) -> RowTable:
        start, stop = self._span(k)
        slot = k % len(self._slots)
        key = (slot, stop - start if self._rows.alike else -1)
        if key not in self._tables or not self._rows.alike:
            self._tables[key] = self._rows.table(list(self._slots[slot]), self._index, start, stop)
        return self._tables[key]
