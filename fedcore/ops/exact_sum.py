"""The public exact sum: rows one at a time, in any order, the same bits."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from fedcore.backends import default, implementation, requested
from fedcore.dtypes import OUT_DTYPES, STORAGE, name_of
from fedcore.errors import DTypeError, RangeError, ShapeError
from fedcore.expansion import CHUNK, Expansion
from fedcore.lock import Lock
from fedcore.numbers import as_whole, got, whole
from fedcore.ops.rows import as_rows, choose, raise_first_nonfinite, thread_count
from fedcore.ops.tensors import is_torch
from fedcore.ops.weighted_sum import checked_divisor, checked_weights
from fedcore.rowtable import RowTable


class ExactSum:
    """Σ_i w_i x_i of rows that arrive one at a time, never rounded on the way: every order gives the same bits.

    d         columns
    backend   'reference', 'c' or None; rows lie in main memory
    threads   of the C kernels; None for all cores

    Memory: typically 8 or 16 bytes a column, whatever the number of rows (fedcore/expansion.py). Cost of a row: a pass
    over it and over the sums. A row that was added with weight w is taken away again, exactly, by adding it with −w.
    `add` and `result` may be called from several threads: one waits for the other. So does a copy, which has sums of
    its own.

    Raises ShapeError and BackendError; in a forked child each call raises StorageError if another thread was in one at
    the time, and so does one by a signal handler that came in the middle of another.
    """

    def __init__(self, d: int, *, backend: str | None = None, threads: int | None = None):
        columns = whole("d", d, 0, of="ExactSum", error=ShapeError)
        implementation("exact_sum", requested(backend, "exact_sum") or default(on_gpu=False))
        self.d, self.backend, self.threads = columns, backend, thread_count(threads)
        self._total = Expansion(self.d)
        #: held while the sums change or are read: kernels let other threads run
        self._lock = Lock()

    def add(self, row: Any, weight: float = 1.0, start: int | None = None) -> None:
        """Add weight · row.

        row      (d,) array or CPU tensor in fp32, fp16 or bf16, or a RowTable of one row
        weight   a number as in weighted_sum, rounded to fp32; a row with weight 0 is not read
        start    the row is only the columns from here on, as many as it has; a whole number, a multiple of 8192

        Raises ShapeError, DTypeError, WeightError, BackendError and NonFiniteError with the column of a NaN or Inf;
        after any of them the sum is what it was. Where a signal handler raises on the way, as for Ctrl+C, the row is in
        the sum or it is not: `added` tells.
        """
        if not isinstance(row, (RowTable, np.ndarray)) and not is_torch(row):
            raise DTypeError(f"row: got {type(row).__name__}, expected a NumPy array, a torch tensor or a RowTable")
        data = as_rows(row if isinstance(row, RowTable) else [row])
        with self._lock.alone("add"):
            total = self._total if start is None else self._part(start, data.d)
            if (data.n, data.d) != (1, total.d):
                raise ShapeError(f"row: got {data.n} × {data.d}, expected one row of {total.d} columns")
            w = checked_weights([weight], 1)[0]
            add = implementation("exact_sum", choose(data, self.backend))
            refused = w != 0 and add(total, data.table, w, self.threads)
        if refused:
            raise_first_nonfinite(data, op="exact_sum")

    def _part(self, start: Any, columns: int) -> Expansion:
        begin = as_whole(start)
        if begin is None or begin % CHUNK or not 0 <= begin <= self.d - columns:
            raise ShapeError(
                f"{got('start', start)} for {columns} columns, expected a multiple of {CHUNK} of at most "
                f"{self.d - columns}, so that they end within {self.d}"
            )
        return self._total.part(begin, begin + columns)

    def result(self, divisor: float | None = None, out_dtype: Any = "float32") -> np.ndarray:
        """The sum rounded to fp64 once, divided by `divisor` if one is given, and rounded once to `out_dtype`: (d,).

        Adding may go on. Raises DTypeError, WeightError for a divisor that is not a finite number other than 0, and
        RangeError for a finite sum that `out_dtype` cannot hold.
        """
        by = None if divisor is None else checked_divisor(divisor)
        dtype = name_of(out_dtype)
        if dtype not in OUT_DTYPES:
            raise DTypeError(f"out_dtype: got {dtype}, expected one of {', '.join(OUT_DTYPES)}")
        out = np.empty(self.d, STORAGE[dtype])
        name = requested(self.backend) or default(on_gpu=False)
        with self._lock.alone("result"):
            too_large = implementation("exact_round", name)(self._total, by, out, self.threads)
        if too_large:
            raise RangeError(f"exact_sum: a finite sum does not fit {dtype}; ask for a wider out_dtype")
        return out

    @property
    def nbytes(self) -> int:
        """Bytes that the sums take."""
        return self._total.nbytes

    @property
    def added(self) -> int:
        """How many rows, or parts of rows, `add` has added; those of weight 0 do not count."""
        return self._total.count.rows

    def __getstate__(self) -> dict[str, Any]:
        with self._lock.alone("copying"):
            return self.__dict__ | {"_total": self._total.copied(), "_lock": Lock()}

    def __deepcopy__(self, memo: dict[int, Any]) -> ExactSum:
        return copy.copy(self)  # what __getstate__ gives is nobody else's
