"""Exact sums of columns, held in fp64 numbers that are never rounded: the state of exact_sum."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

CHUNK = 1 << 13


class Count:
    """How many rows were added: noted in one step with the addition.

    A signal handler may raise between two bytecodes, so also between the return of a kernel and what would note it.
    `extend` over `map` is one call of C from before the kernel begins until its return is noted.
    """

    def __init__(self, rows: int = 0):
        #: those of earlier steps, and what came of the last one
        self._noted: tuple[int, list[Any]] = rows, []

    @property
    def rows(self) -> int:
        rows, last = self._noted
        return rows + (bool(last) and not any(last))

    def step(self, function: Callable[..., Any], *arguments: Iterable[Any]) -> list[Any]:
        """list(map(function, *arguments)), of functions in C: a row, unless one of them returned what is true."""
        last: list[Any] = []
        self._noted = self.rows, last
        last.extend(map(function, *arguments))
        return last


class Expansion:
    """d exact sums. Column k has the value levels[0][k] + levels[1][k] + …, taken without rounding.

    levels    (d,) fp64 each, 64-byte aligned: a sum, what its additions rounded off, what those did, …
    depth     (chunks,) uint8: how many levels each chunk of CHUNK columns uses. The others are 0 there and have never
              been written, so that they take address space and no memory.
    count     of the rows that were added, to all columns or to a part

    Two levels are typical, 16 bytes a column; one where products are short (counts as weights, 16-bit rows). Magnitudes
    fall by 2³³ or more from level to level for up to 2²⁰ rows, and products of fp32 numbers span fewer than 460 bits,
    so 14 levels are enough for any of them.
    """

    def __init__(self, d: int):
        self.d = d
        self.levels: list[np.ndarray] = []
        self.depth = np.zeros(-(-d // CHUNK), np.uint8)
        self.count = Count()
        self.reserve()

    def reserve(self) -> None:
        """See that every chunk has a level to grow into; done before a row is added, since it can run out of memory."""
        while len(self.levels) <= int(self.depth.max(initial=0)):
            room = np.zeros(8 * self.d + 64, np.uint8)
            start = -room.ctypes.data % 64
            self.levels.append(room[start : start + 8 * self.d].view(np.float64))

    def part(self, start: int, stop: int) -> Expansion:
        """The sums of columns start:stop, which begin a chunk: views of these."""
        self.reserve()
        part = object.__new__(Expansion)
        vars(part).update(vars(self) | {"d": stop - start})
        part.levels = [level[start:stop] for level in self.levels]
        part.depth = self.depth[start // CHUNK : -(-stop // CHUNK)]
        return part

    def copied(self) -> Expansion:
        """The same sums in memory of their own."""
        return copy.copy(self)

    def __getstate__(self) -> dict[str, Any]:
        """Without the level that nothing was written to yet."""
        used = int(self.depth.max(initial=0))
        own = {"levels": self.levels[:used], "depth": self.depth.copy(), "count": Count(self.count.rows)}
        return vars(self) | own

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Levels of its own; what was never written is not written here."""
        vars(self).update(state | {"levels": []})
        self.reserve()
        for number, (own, level) in enumerate(zip(self.levels, state["levels"], strict=False)):
            for chunk in np.flatnonzero(self.depth > number).tolist():
                own[chunk * CHUNK : (chunk + 1) * CHUNK] = level[chunk * CHUNK : (chunk + 1) * CHUNK]

    @property
    def nbytes(self) -> int:
        """Bytes of the levels that are in use."""
        columns = np.minimum(CHUNK, self.d - CHUNK * np.arange(len(self.depth)))
        return 8 * int((columns * self.depth).sum())
