"""The memory budget of an aggregation: what it is given, what it must hold, and how wide tiles may be."""

from __future__ import annotations

import re
from fractions import Fraction
from math import ceil
from typing import Any

from fedcore.errors import BudgetError
from fedcore.numbers import as_whole, got, shown_bytes
from fedcore.ops.gram import GRAIN
from fedcore.rules.order_statistic import MIXED_BYTES, NARROWEST

#: tiles that exist at a time: one is worked on while the next is read
SLOTS = 2
#: bytes after each row of a tile: rows that start at one address modulo a page would fight for the same cache sets
PADDING = 64
#: bytes counted for Python, its libraries, the headers of files and the kernels' own scratch
WORKSPACE = 64_000_000
#: bytes of a column of a tile beside its rows: the statistic of it, joined, and the votes and signs of a majority
COLUMN = 32
#: matrices (rows, rows) in fp64 that a decision over a Gram holds at a time, and how many more on mixtures of rows
MATRICES, MIXING = 12, 5
#: bytes of a row that one read takes at most, and of a tile at least, where the budget has room: from there on neither
#: fewer reads nor longer kernels gain, and buffers that stay in the cache are quicker to write
READ, TILE = 1 << 19, 1 << 25
#: bytes of the columns of pairs of rows, or of mixtures, at a time (fedcore/reference/squared_distances.py)
PAIRS = 1 << 23
#: what updates in files may take where nobody says
DEFAULT = "1GB"

_UNITS = {"": 1, "B": 1} | {
    prefix + unit: base**power
    for power, prefix in enumerate("KMGT", 1)
    for unit, base in (("B", 1000), ("iB", 1024), ("", 1000))
}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kKMGT]?(?:iB|B)?)\s*")


def parse_memory(memory: Any) -> int:
    """Bytes of "1GB", "512MiB", "1.5 GB" (decimal units, and binary ones with an i) or a whole number.

    Raises BudgetError for anything else.
    """
    if isinstance(memory, str) and (found := _SIZE.fullmatch(memory)):
        number, unit = found.groups()
        count: int | None = int(Fraction(number) * _UNITS[unit.replace("k", "K")])
    else:
        count = as_whole(memory)
    if count is None or count < 0:
        raise BudgetError(f"{got('memory', memory)}, expected bytes or a size such as '1GB' or '512MiB'")
    return count


class Budget:
    """Bytes that an aggregation may take, its output and the interpreter included.

    rows      rows of the extended cohort
    itemsize  bytes of their widest element, scales included
    margin    bytes of a row of a tile beside its elements
    output    bytes of the result
    matrices  matrices (rows, rows) in fp64 that the decision holds at a time, its Gram among them; 0 without a Gram
    mixtures  mixtures of rows that an order statistic is taken of, in fp32; 0 for none
    """

    def __init__(
        self,
        memory: Any,
        rows: int,
        itemsize: float,
        output: int,
        matrices: int,
        threads: int,
        margin: int = 0,
        mixtures: int = 0,
    ):
        self.total, self._beside = parse_memory(memory), PADDING + margin
        matrix = rows * rows * 8
        held = WORKSPACE + output
        #: what is taken beside the tiles: the Gram with its threads' own, then the decision, which may read pairs again
        self.held = held + (max(threads + 3, matrices) * matrix + PAIRS if matrices else 0)
        self._narrowest = SLOTS * rows * (ceil(GRAIN * itemsize) + self._beside) + GRAIN * COLUMN
        self._least_mixed = 4 * NARROWEST * mixtures
        self.least = self.held + self._narrowest + self._least_mixed
        self.rows = rows

    @property
    def mixed(self) -> int:
        """Bytes that mixtures may take at a time: where there is room a third of it, as two tiles have the others."""
        third = (self.total - self.held - self._narrowest) // 3
        return max(self._least_mixed, min(MIXED_BYTES, third)) if self._least_mixed else 0

    def check(self, what: str) -> None:
        """Raise BudgetError where even the narrowest tiles do not fit."""
        if self.total < self.least:
            raise BudgetError(
                f"memory: got {shown_bytes(self.total)}, expected at least {shown_bytes(self.least)} for {what}; give "
                "more, or aggregate fewer clients at a time"
            )

    def width(self, rows: int, itemsize: float, d: int) -> int:
        """Columns of a tile of so many rows: a multiple of GRAIN, or all there are."""
        rows = max(rows, 1)
        room = self.total - self.held - self.mixed - SLOTS * rows * self._beside
        columns = min(room / (SLOTS * rows * itemsize + COLUMN), max(READ, TILE // rows) / itemsize)
        return min(max(int(columns) // GRAIN, 1) * GRAIN, d)
