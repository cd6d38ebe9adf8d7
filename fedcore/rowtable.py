"""RowTable: where the rows of a cohort lie, without stacking them.

A cohort is n rows of d columns. Each row may be cut into the same `s` segments (the tensors of an update, in canonical
order), each segment lying anywhere in that row's buffer: an array, a memory-mapped file, the bytes of a message. What
the kernels get is one pointer table, built once.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter

import numpy as np

from fedcore.dtypes import ROW_DTYPES, STORAGE, name_of, to_float64
from fedcore.encoding import FORMATS, MOST_SCALES, Encoding
from fedcore.errors import DTypeError, ShapeError
from fedcore.quantized import Quantized


class RowTable:
    """n rows × d columns in s segments.

    buffers   n objects with the buffer protocol, one a row; kept alive by the table, never copied
    offsets   (s, n) int64: byte offset of each segment in its row's buffer; need not be aligned
    lengths   (s,) int64: columns of each segment
    dtype     'float32', 'float16' or 'bfloat16': one for the whole table
    encoding  None, or how the pieces lie where they are not simply of `dtype`, which is then 'float32': what ops see
    source    the dtype that the rows had before they were brought to the format that they lie in, and that results made
              of them are rounded to; `dtype` if it is not said
    """

    def __init__(
        self,
        buffers: Sequence[object],
        offsets: np.ndarray,
        lengths: np.ndarray,
        dtype: str,
        encoding: Encoding | None = None,
        source: str | None = None,
    ):
        if dtype not in ROW_DTYPES:
            raise DTypeError(f"rows: got {dtype}, expected one of {', '.join(ROW_DTYPES)}; convert the rows first")
        if encoding is not None and dtype != "float32":
            raise DTypeError(f"rows: got {dtype} with an encoding, expected float32, what encoded rows decode to")
        self.dtype = dtype
        self.source = source or dtype
        self.itemsize = STORAGE[dtype].itemsize
        self.encoding = None if encoding is None else encoding.contiguous()
        self.offsets = np.ascontiguousarray(offsets, np.int64)
        self.lengths = np.ascontiguousarray(lengths, np.int64)
        if self.offsets.shape != (len(self.lengths), len(buffers)):
            expected = (len(self.lengths), len(buffers))
            raise ShapeError(f"rows: offsets of shape {self.offsets.shape}, expected {expected} (segments, rows)")
        self.starts = np.concatenate(([0], np.cumsum(self.lengths))).astype(np.int64)
        self._bytes = [b.reshape(-1).view(np.uint8) if isinstance(b, np.ndarray) else np.frombuffer(b, np.uint8)  # type: ignore[call-overload]
                       for b in buffers]  # fmt: skip
        sizes = np.array([b.size for b in self._bytes], np.int64)
        if encoding is not None:
            self._check_encoded(sizes)
        elif self.offsets.size:
            # by division: offset + length · itemsize could overflow and pass
            room = (sizes[None, :] - np.clip(self.offsets, 0, None)) // self.itemsize
            outside = (self.offsets < 0) | (self.offsets > sizes[None, :]) | (self.lengths[:, None] > room)
            self._refuse(outside | (self.lengths < 0)[:, None], sizes, "")
        base = np.array([b.ctypes.data for b in self._bytes], np.uint64)
        #: (s, n) uint64 addresses, the form the C kernels take; where encoded, of the tensors' first elements
        self.pointers = base[None, :] + self.offsets.astype(np.uint64)
        #: (3, s, n) uint64 addresses of the scale arrays, None where nothing is encoded
        self.scales = None if self.encoding is None else base[None, None, :] + self.encoding.scales.astype(np.uint64)

    def _check_encoded(self, sizes: np.ndarray) -> None:
        encoding = self.encoding
        assert encoding is not None
        expected = (self.offsets.shape, (MOST_SCALES, *self.offsets.shape), self.offsets.shape)
        if (encoding.formats.shape, encoding.scales.shape, encoding.origins.shape) != expected:
            raise ShapeError(f"rows: their encoding is not of {self.offsets.shape} (segments, rows)")
        if not np.isin(encoding.formats, list(FORMATS.values())).all():
            raise DTypeError(f"rows: a format is unknown, expected one of {', '.join(FORMATS)}")
        self._refuse((self.lengths < 0)[:, None] | (encoding.origins < 0), sizes, "")
        starts = (self.offsets, *encoding.scales)
        for start, (used, size), what in zip(
            starts, encoding.parts(self.lengths), ("", "absmax of ", "nested absmax of ", "offset of "), strict=True
        ):
            self._refuse(
                used & ((start < 0) | (start > sizes) | (size > sizes - np.clip(start, 0, sizes))), sizes, what
            )

    def _refuse(self, outside: np.ndarray, sizes: np.ndarray, what: str) -> None:
        for segment, row in np.argwhere(outside):
            raise ShapeError(
                f"rows: {what}segment {segment} of row {row} ends past its buffer of {sizes[row]} bytes; give all of it"
            )

    @classmethod
    def from_arrays(cls, arrays: Sequence[np.ndarray | Quantized]) -> RowTable:
        """One segment: each 1-D contiguous array is a row. Raises ShapeError or DTypeError by row number.

        Where one of them is Quantized the others may be of any row dtype, and the table is encoded.
        """
        if not arrays:
            raise ShapeError("rows: got none, expected at least one row")
        encoded = any(isinstance(row, Quantized) for row in arrays)
        dtype, d = "float32" if encoded else name_of(arrays[0].dtype, "row 0", ROW_DTYPES), arrays[0].size
        buffers, offsets = [], np.zeros((1, len(arrays)), np.int64)
        encoding = Encoding.plain("float32", 1, len(arrays)) if encoded else None
        for i, row in enumerate(arrays):
            if len(row.shape) != 1 or row.size != d:
                raise ShapeError(f"row {i}: got shape {row.shape}, expected ({d},) like row 0; give rows of one length")
            if isinstance(row, Quantized):
                buffer, starts = row.joined()
                assert encoding is not None
                encoding.formats[0, i], offsets[0, i] = FORMATS[row.format], starts[0]
                encoding.scales[: len(starts) - 1, 0, i] = starts[1:]
                buffers.append(buffer)
                continue
            found = name_of(row.dtype, f"row {i}", ROW_DTYPES)
            if encoding is not None:
                encoding.formats[0, i] = FORMATS[found]
            elif found != dtype:
                raise DTypeError(f"row {i}: got {found}, expected {dtype} like row 0; convert to one dtype")
            if not row.flags.c_contiguous:
                raise ShapeError(f"row {i}: its elements are not contiguous; pass numpy.ascontiguousarray(row)")
            buffers.append(row)
        return cls(buffers, offsets, np.array([d]), dtype, encoding)

    @classmethod
    def from_matrix(cls, matrix: np.ndarray) -> RowTable:
        """The rows of an (n, d) array, as `from_arrays` makes them of a list; of a contiguous one in no time a row."""
        if not len(matrix) or not matrix.flags.c_contiguous:
            return cls.from_arrays(list(matrix))
        name_of(matrix.dtype, "rows", ROW_DTYPES)
        table = cls.from_arrays([matrix.reshape(-1)])
        n, d = matrix.shape
        table.lengths, table.starts = np.array([d]), np.array([0, d])
        table.offsets = d * table.itemsize * np.arange(n, dtype=np.int64)[None]
        table.pointers = table.pointers + table.offsets.astype(np.uint64)
        table._bytes *= n
        return table

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
        return int(self.extents()[1].sum())

    def extents(self) -> tuple[np.ndarray, np.ndarray]:
        """(addresses, sizes in bytes) of all the memory that the rows lie in, each (parts · s · n,)."""
        if self.encoding is None or self.scales is None:
            plain = np.broadcast_to((self.lengths * self.itemsize)[:, None], self.pointers.shape)
            return self.pointers.ravel(), plain.ravel()
        sizes = [np.where(used, size, 0) for used, size in self.encoding.parts(self.lengths)]
        return np.stack((self.pointers, *self.scales)).ravel(), np.stack(sizes).ravel()

    def segment(self, row: int, k: int) -> np.ndarray:
        """Segment `k` of a row: a NumPy view, or a decoded copy where it is encoded."""
        return self._piece(row, k, 0, int(self.lengths[k]))

    def _piece(self, row: int, k: int, low: int, high: int) -> np.ndarray:
        start = int(self.offsets[k, row])
        if self.encoding is not None:
            return self.encoding.decode(self._bytes[row], start, k, row, low, high)
        return self._bytes[row][start + low * self.itemsize : start + high * self.itemsize].view(STORAGE[self.dtype])

    def columns(self, row: int, start: int, stop: int) -> np.ndarray:
        """Columns start:stop of a row: a view where one segment holds them, else a copy of just those.

        Of an encoded table always a copy, decoded.
        """
        if len(self.lengths) == 1:  # what costs most here is asking NumPy
            return self._piece(row, 0, start, min(stop, self.d))
        parts = [self._piece(row, *place) for place in self._places(start, stop)]
        if not parts:
            return np.empty(0, STORAGE[self.dtype])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def sample(self, blocks: Sequence[tuple[int, int]]) -> np.ndarray:
        """The columns of all rows that lie in blocks (start, stop), joined, in fp64: (n, columns)."""
        places = [place for block in blocks for place in self._places(*block)]
        found = np.empty((self.n, sum(high - low for _, low, high in places)))
        index = [
            (k, np.concatenate([np.arange(low, high) for _, low, high in some]))
            for k, some in groupby(places, itemgetter(0))
        ]
        for row in range(self.n if places else 0):
            if self.encoding is None:  # by one index a segment: what costs most here is asking NumPy
                parts = [self.segment(row, k)[columns] for k, columns in index]
            else:
                parts = [self._piece(row, *place) for place in places]
            found[row] = to_float64(np.concatenate(parts))
        return found

    def _places(self, start: int, stop: int) -> list[tuple[int, int, int]]:
        """(segment, low, high) of the pieces of columns start:stop, the same of every row."""
        places, first = [], int(np.searchsorted(self.starts, start, side="right")) - 1
        for k in range(max(first, 0), len(self.lengths)):
            if self.starts[k] >= stop:
                break
            low, high = max(start - self.starts[k], 0), min(stop - self.starts[k], self.lengths[k])
            if high > low:
                places.append((k, int(low), int(high)))
        return places

    def take(self, rows: Sequence[int] | np.ndarray) -> RowTable:
        """The table of some of the rows, in the order given."""
        index = [int(i) for i in rows]
        encoding = None if self.encoding is None else self.encoding.take(index)
        buffers = [self._bytes[i] for i in index]
        return RowTable(buffers, self.offsets[:, index], self.lengths, self.dtype, encoding, self.source)

    def encoded(self) -> RowTable:
        """The same rows as a table that rows of any format can follow."""
        if self.encoding is not None:
            return self
        encoding = Encoding.plain(self.dtype, *self.offsets.shape)
        return RowTable(self._bytes, self.offsets, self.lengths, "float32", encoding, self.source)

    def slice(self, start: int, stop: int) -> RowTable:
        """The table of columns start:stop of the same rows; nothing is copied. Raises ShapeError unless they are there.

        Cost: that of its own segments, however many rows and segments this table has; buffers were checked already.
        """
        if not 0 <= start <= stop <= self.d:
            raise ShapeError(f"rows: got columns {start}:{stop}, expected a range within 0:{self.d}")
        first = max(int(np.searchsorted(self.starts, start, side="right")) - 1, 0)
        last = max(int(np.searchsorted(self.starts, stop, side="left")), first)
        lengths, begins = self.lengths[first:last], self.starts[first:last]
        low = np.clip(start - begins, 0, lengths)
        part = copy.copy(self)
        part.lengths = np.minimum(stop - begins, lengths) - low
        part.starts = np.concatenate(([0], np.cumsum(part.lengths))).astype(np.int64)
        part.offsets, part.pointers = self.offsets[first:last], self.pointers[first:last]
        if self.encoding is None or self.scales is None:
            part.offsets = part.offsets + (low * self.itemsize)[:, None]
            part.pointers = part.pointers + (low * self.itemsize).astype(np.uint64)[:, None]
            return part
        # an encoded piece is counted from its tensor's first element, which need not begin a block here
        whole = self.encoding
        part.encoding = Encoding(
            whole.formats[first:last], whole.scales[:, first:last], whole.origins[first:last] + low[:, None]
        )
        part.scales = np.ascontiguousarray(self.scales[:, first:last])
        part.pointers = np.ascontiguousarray(part.pointers)
        return part

    def extend(self, other: RowTable) -> RowTable:
        """These rows, then the rows of `other`, which has the same segments and dtype (reference rows, say).

        Rows of one source may lie in different formats, and rows of any may follow or precede encoded ones.
        """
        one, two = self, other
        if one.encoding or two.encoding or (one.dtype != two.dtype and one.source == two.source):
            one, two = one.encoded(), two.encoded()
        same = np.array_equal(one.lengths, two.lengths) and one.dtype == two.dtype
        if not same:
            raise ShapeError(
                f"rows: {other.d} columns of {other.dtype} in {len(other.lengths)} segments cannot follow "
                f"{self.d} of {self.dtype} in {len(self.lengths)}; expected the same segments and dtype, so convert one"
            )
        encoding = None if one.encoding is None or two.encoding is None else one.encoding.extend(two.encoding)
        offsets = np.concatenate((one.offsets, two.offsets), 1)
        return RowTable(one._bytes + two._bytes, offsets, one.lengths, one.dtype, encoding, one.source)
