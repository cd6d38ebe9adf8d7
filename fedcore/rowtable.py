"""RowTable: where the rows of a cohort lie, without stacking them.

A cohort is n rows of d columns. Each row may be cut into the same `s` segments (the tensors of an update, in canonical
order), each segment lying anywhere in that row's buffer: an array, a memory-mapped file, the bytes of a message. What
the kernels get is one pointer table, built once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedcore.dtypes import ROW_DTYPES, STORAGE, name_of
from fedcore.errors import DTypeError, ShapeError


class RowTable:
    """n rows × d columns in s segments.

    buffers   n objects with the buffer protocol, one a row; kept alive by the table, never copied
    offsets   (s, n) int64: byte offset of each segment in its row's buffer; need not be aligned
    lengths   (s,) int64: columns of each segment
    dtype     'float32', 'float16' or 'bfloat16': one for the whole table
    """

    def __init__(self, buffers: Sequence[object], offsets: np.ndarray, lengths: np.ndarray, dtype: str):
        if dtype not in ROW_DTYPES:
            raise DTypeError(f"rows: got {dtype}, expected one of {', '.join(ROW_DTYPES)}; convert the rows first")
        self.dtype = dtype
        self.itemsize = STORAGE[dtype].itemsize
        self.offsets = np.ascontiguousarray(offsets, np.int64)
        self.lengths = np.ascontiguousarray(lengths, np.int64)
        if self.offsets.shape != (len(self.lengths), len(buffers)):
            expected = (len(self.lengths), len(buffers))
            raise ShapeError(f"rows: offsets of shape {self.offsets.shape}, expected {expected} (segments, rows)")
        self.starts = np.concatenate(([0], np.cumsum(self.lengths))).astype(np.int64)
        self._bytes = [b.reshape(-1).view(np.uint8) if isinstance(b, np.ndarray) else np.frombuffer(b, np.uint8)  # type: ignore[call-overload]
                       for b in buffers]  # fmt: skip
        if self.offsets.size:
            sizes = np.array([b.size for b in self._bytes], np.int64)
            # by division: offset + length · itemsize could overflow and pass
            room = (sizes[None, :] - np.clip(self.offsets, 0, None)) // self.itemsize
            outside = (self.offsets < 0) | (self.offsets > sizes[None, :]) | (self.lengths[:, None] > room)
            outside |= (self.lengths < 0)[:, None]
            if outside.any():
                segment, row = np.argwhere(outside)[0]
                raise ShapeError(f"rows: segment {segment} of row {row} ends past its buffer of {sizes[row]} bytes")
        base = np.array([b.ctypes.data for b in self._bytes], np.uint64)
        #: (s, n) uint64 addresses, the form the C kernels take
        self.pointers = base[None, :] + self.offsets.astype(np.uint64)

    @classmethod
    def from_arrays(cls, arrays: Sequence[np.ndarray]) -> RowTable:
        """One segment: each 1-D contiguous array is a row. Raises ShapeError or DTypeError by row number."""
        if not arrays:
            raise ShapeError("rows: got none, expected at least one row")
        dtype, d = name_of(arrays[0].dtype), arrays[0].size
        for i, row in enumerate(arrays):
            if row.ndim != 1 or row.size != d:
                raise ShapeError(f"row {i}: got shape {row.shape}, expected ({d},) like row 0; give rows of one length")
            if name_of(row.dtype) != dtype:
                raise DTypeError(
                    f"row {i}: got {name_of(row.dtype)}, expected {dtype} like row 0; convert to one dtype"
                )
            if not row.flags.c_contiguous:
                raise ShapeError(f"row {i}: its elements are not contiguous; pass numpy.ascontiguousarray(row)")
        return cls(arrays, np.zeros((1, len(arrays)), np.int64), np.array([d]), dtype)

    @property
    def n(self) -> int:
        """Rows."""
        return len(self._bytes)

    @property
    def d(self) -> int:
        """Columns."""
        return int(self.starts[-1])

    @property
    def nbytes(self) -> int:
        """Bytes of row data that one pass reads."""
        return self.n * self.d * self.itemsize

    def segment(self, row: int, k: int) -> np.ndarray:
        """Segment `k` of a row as a NumPy view."""
        start = self.offsets[k, row]
        return self._bytes[row][start : start + self.lengths[k] * self.itemsize].view(STORAGE[self.dtype])

    def columns(self, row: int, start: int, stop: int) -> np.ndarray:
        """Columns start:stop of a row: a view where one segment holds them, else a copy of just those."""
        first = int(np.searchsorted(self.starts, start, side="right")) - 1
        parts = []
        for k in range(max(first, 0), len(self.lengths)):
            if self.starts[k] >= stop:
                break
            low, high = max(start - self.starts[k], 0), min(stop - self.starts[k], self.lengths[k])
            if high > low:
                parts.append(self.segment(row, k)[low:high])
        if not parts:
            return np.empty(0, STORAGE[self.dtype])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def take(self, rows: Sequence[int] | np.ndarray) -> RowTable:
        """The table of some of the rows, in the order given."""
        index = [int(i) for i in rows]
        return RowTable([self._bytes[i] for i in index], self.offsets[:, index], self.lengths, self.dtype)

    def extend(self, other: RowTable) -> RowTable:
        """These rows, then the rows of `other`, which has the same segments and dtype (reference rows, say)."""
        if not np.array_equal(self.lengths, other.lengths) or self.dtype != other.dtype:
            raise ShapeError(
                f"rows: {other.d} columns of {other.dtype} in {len(other.lengths)} segments cannot follow "
                f"{self.d} of {self.dtype} in {len(self.lengths)}"
            )
        return RowTable(
            self._bytes + other._bytes, np.concatenate((self.offsets, other.offsets), 1), self.lengths, self.dtype
        )
