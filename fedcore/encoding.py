"""Encoding: how the pieces of a RowTable lie that are not simply elements of its dtype.

Such a table has the dtype float32, what its rows decode to. Each piece (a segment of a row) is a tensor in a format of
its own, of which a range of elements counts, so that a cohort may mix formats, and plain reference rows stand beside
quantised ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fedcore.dtypes import STORAGE, to_float64
from fedcore.quantized import BLOCK, NESTED, SCALES, decode, part_sizes

#: format -> its number in the C API
FORMATS = {"float32": 0, "float16": 1, "bfloat16": 2, "int8": 4, "nf4": 5}
NAMES = {code: name for name, code in FORMATS.items()}
#: scale arrays that a format has at most
MOST_SCALES = 3


class Encoding(NamedTuple):
    """Formats and scales of the pieces of a table of n rows in s segments.

    formats    (s, n) uint8: FORMATS of each piece
    scales     (3, s, n) int64: byte offset of each scale array in its row's buffer, in the order of
               fedcore.quantized.SCALES; entries that a format has no use for are 0
    origins    (s, n) int64: the element of its tensor that a piece begins with
    """

    formats: np.ndarray
    scales: np.ndarray
    origins: np.ndarray

    @classmethod
    def plain(cls, dtype: str, segments: int, rows: int) -> Encoding:
        """Pieces that lie as elements of one dtype."""
        formats = np.full((segments, rows), FORMATS[dtype], np.uint8)
        return cls(formats, np.zeros((MOST_SCALES, *formats.shape), np.int64), np.zeros(formats.shape, np.int64))

    def contiguous(self) -> Encoding:
        """The same in arrays as the C kernels take them."""
        formats = np.ascontiguousarray(self.formats, np.uint8)
        scales, origins = (np.ascontiguousarray(array, np.int64) for array in (self.scales, self.origins))
        return Encoding(formats, scales, origins)

    def take(self, rows: Sequence[int]) -> Encoding:
        """That of some of the rows."""
        return Encoding(self.formats[:, rows], self.scales[:, :, rows], self.origins[:, rows])

    def extend(self, other: Encoding) -> Encoding:
        """That of these rows and then the rows of `other`."""
        return Encoding(*(np.concatenate(both, -1) for both in zip(self, other, strict=True)))

    def parts(self, lengths: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """(used (s, n) bool, bytes (s, n) int64) of the payload and of each scale array, from the tensor's beginning.

        Bytes saturate where sizes are absurd, instead of overflowing.
        """
        elements = np.minimum(self.origins + np.minimum(lengths, 1 << 60)[:, None], 1 << 60)
        blocks = -(-elements // BLOCK)
        itemsize = np.array([STORAGE[NAMES[c]].itemsize if NAMES.get(c) in STORAGE else 1 for c in range(8)], np.int64)
        int8, nf4 = self.formats == FORMATS["int8"], self.formats == FORMATS["nf4"]
        payload = np.where(nf4, -(-elements // 2), elements * itemsize[self.formats])
        return [
            (np.ones_like(int8), payload),
            (int8 | nf4, np.where(int8, 4 * blocks, blocks)),
            (nf4, 4 * -(-blocks // NESTED)),
            (nf4, np.full(nf4.shape, 4)),
        ]

    def decode(self, data: np.ndarray, at: int, segment: int, row: int, start: int, stop: int) -> np.ndarray:
        """(stop − start,) fp32: those columns of a piece that begins at byte `at` of its row's bytes; a copy."""
        name, origin = NAMES[int(self.formats[segment, row])], int(self.origins[segment, row])
        start, stop = origin + start, origin + stop
        if name not in SCALES:
            dtype = STORAGE[name]
            found = data[at + start * dtype.itemsize : at + stop * dtype.itemsize].view(dtype)
            return to_float64(found).astype(np.float32)
        arrays = []
        for position, (dtype, size) in zip((at, *self.scales[:, segment, row]), part_sizes(name, stop), strict=False):
            arrays.append(data[position : position + size * dtype.itemsize].view(dtype))
        return decode(name, arrays[0], arrays[1:], start, stop)
