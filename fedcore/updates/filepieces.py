"""Rows in files whose tensors are quantised or lie in several formats: read as they lie, decoded inside the kernels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from fedcore.dtypes import ROW_DTYPES, STORAGE
from fedcore.encoding import FORMATS, MOST_SCALES, Encoding
from fedcore.quantized import BLOCK, NESTED
from fedcore.rowtable import RowTable
from fedcore.updates.file import File
from fedcore.updates.filerows import FileRows
from fedcore.updates.layout import Layout
from fedcore.updates.update import Update

#: format -> elements at a multiple of which a tensor can be cut: no block of its scale arrays is cut then
UNITS = {"int8": BLOCK, "nf4": BLOCK * NESTED}
#: bytes of an element, scales included
RATES = {
    **{name: float(STORAGE[name].itemsize) for name in ROW_DTYPES},
    "int8": 1 + 4 / BLOCK,
    "nf4": 1 / 2 + 1 / BLOCK + 4 / (BLOCK * NESTED),
}
#: what a stretch of columns takes beside that: where it begins between cuts, and where each segment ends
BEFORE, BEYOND = UNITS["nf4"] // 2 + UNITS["nf4"] // BLOCK + 64, 16
#: columns of a stretch of which many are remembered: it has few pieces
SHORT = 256
#: how rows of zeros lie
ZEROS = "int8"


class Pieces(NamedTuple):
    """A stretch of columns of all rows, in s segments.

    encoding   how each piece lies in its row's buffer
    lengths    (s,) columns
    source     (4, s, n) byte of its source at which a piece begins, and each of its scale arrays
    position   (4, s, n) the same in its row's buffer
    sizes      (4, s, n) bytes; 0 for an array that the format has no use for
    """

    encoding: Encoding
    lengths: np.ndarray
    source: np.ndarray
    position: np.ndarray
    sizes: np.ndarray


class EncodedFileRows(FileRows):
    """FileRows of which each segment lies in a format of its own: formats (s, n).

    What is read of a tensor are the bytes that hold the columns and no others, but for the first of a stretch that
    begins inside a block: it is read from the last cut before on, up to 63 elements of int8 and, since NF4 has a scale
    for 256 of its blocks, up to 16,383 of NF4. Ops decode from there (fc_gather), so that no decoded copy is made.
    """

    alike = False

    def __init__(
        self,
        sources: Sequence[File | np.ndarray | None],
        offsets: np.ndarray,
        lengths: np.ndarray,
        dtype: str,
        names: Sequence[str],
        formats: np.ndarray,
        tensors: tuple[str, ...],
    ):
        super().__init__(sources, offsets, lengths, dtype, names, "float32", tensors)
        self._formats = np.vectorize(FORMATS.__getitem__, otypes=[np.uint8])(formats)
        self._units = np.vectorize(lambda name: UNITS.get(name, 1), otypes=[np.int64])(formats)
        self.itemsize = max(RATES[name] for name in set(formats.ravel().tolist()))
        self.margin = BEFORE + BEYOND * len(lengths)
        # each is asked for by all rows: a few tiles in turn, and each of the short stretches of a sample
        self._of_tiles, self._of_samples = lru_cache(4)(self._pieces), lru_cache(16)(self._pieces)

    def pieces(self, start: int, stop: int) -> Pieces:
        """Columns start:stop."""
        return (self._of_samples if stop - start <= SHORT else self._of_tiles)(start, stop)

    def _pieces(self, start: int, stop: int) -> Pieces:
        first = min(int(np.searchsorted(self.starts, start, side="right")) - 1, len(self.lengths) - 1)
        some = slice(first, max(int(np.searchsorted(self.starts, stop, side="left")), first + 1))
        low, high = (np.clip(edge - self.starts[some], 0, self.lengths[some]) for edge in (start, stop))
        formats, cut = self._formats[some], low[:, None] - low[:, None] % self._units[some]
        nothing = np.zeros((MOST_SCALES, *cut.shape), np.int64)
        # what lies before the cut, and then what a tensor that began there would take
        before = _sizes(Encoding(formats, nothing, cut), np.zeros_like(low))
        before[MOST_SCALES] = 0  # one offset for the whole tensor
        sizes = _sizes(Encoding(formats, nothing, low[:, None] - cut), high - low)
        end = sizes.swapaxes(0, 1).reshape(-1, self.n).cumsum(0).reshape(-1, 1 + MOST_SCALES, self.n).swapaxes(0, 1)
        encoding = Encoding(formats, (end - sizes)[1:], low[:, None] - cut)
        return Pieces(encoding, high - low, self.offsets[:, some] + before, end - sizes, sizes)

    def spans(self, row: int, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Columns start:stop of a row as (byte offset in its source, byte offset in the result, bytes)."""
        if start >= stop:
            return
        pieces = self.pieces(start, stop)
        found = (array[:, :, row].ravel().tolist() for array in (pieces.source, pieces.position, pieces.sizes))
        for offset, to, size in zip(*found, strict=True):
            if size:
                yield offset, to, size

    def table(self, buffers: Sequence[np.ndarray], index: Sequence[int], start: int, stop: int) -> RowTable:
        """Columns start:stop of the rows `index`, each in a buffer that `fill` has filled, as ops take them."""
        pieces, rows = self.pieces(start, stop), list(index)
        encoding = pieces.encoding.take(rows)
        return RowTable(buffers, pieces.position[0][:, rows], pieces.lengths, "float32", encoding, self.dtype)


def _sizes(encoding: Encoding, lengths: np.ndarray) -> np.ndarray:
    """(4, s, n) bytes of pieces and of their scale arrays, from the tensors' beginnings."""
    return np.stack([np.where(used, size, 0) for used, size in encoding.parts(lengths)])


def file_rows(updates: Sequence[Update | None], layout: Layout, names: Sequence[str]) -> list[FileRows]:
    """The tensors of `layout`, which every update has, one FileRows per dtype.

    None is the update of zeros. An update with a file is read from it, mapped or not.
    """
    groups: dict[str, list[int]] = {}
    for k, dtype in enumerate(layout.dtypes):
        groups.setdefault(dtype, []).append(k)
    places = [_places(update, layout) for update in updates]
    offsets = np.stack([_offsets(update, place) for update, place in zip(updates, places, strict=True)], axis=2)
    sources = [None if update is None else update.file or update.buffer for update in updates]
    found: list[FileRows] = []
    for dtype, group in groups.items():
        formats = [
            None if update is None else [update.layout.formats[place[k]] for k in group]
            for update, place in zip(updates, places, strict=True)
        ]
        seen = {format for row in formats if row is not None for format in row} or {dtype}
        where = (sources, offsets[:, group], layout.sizes[group], dtype, names)
        tensors = tuple(layout.names[k] for k in group)
        if len(seen) == 1 and seen <= set(ROW_DTYPES):
            found.append(FileRows(*where, seen.pop(), tensors))
            continue
        columns = [[ZEROS] * len(group) if row is None else row for row in formats]
        found.append(EncodedFileRows(*where, np.array(columns, object).T, tensors))
    return found


def widest(layouts: Iterable[Layout], zeros: bool) -> tuple[float, int]:
    """(bytes of a column, and beside them) that a row of updates of these layouts takes at most, or one of `zeros`."""
    each = list(layouts)
    if all(layout.formats == layout.dtypes for layout in each):
        return max((RATES[dtype] for layout in each for dtype in layout.dtypes), default=1.0), 0
    rates = [RATES[format] for layout in each for format in layout.formats]
    return max([*rates, RATES[ZEROS] * zeros]), BEFORE + BEYOND * max(map(len, each))


def _places(update: Update | None, layout: Layout) -> np.ndarray:
    """Where the tensors of `layout` stand in an update's own."""
    if update is None or update.layout is layout:
        return np.arange(len(layout))
    return np.array([update.layout.index[name] for name in layout.names], np.intp)


def _offsets(update: Update | None, places: np.ndarray) -> np.ndarray:
    """(4, s): bytes to each tensor and its scale arrays."""
    if update is None:
        return np.zeros((1 + MOST_SCALES, len(places)), np.int64)
    return np.vstack((update.offsets[places], update.scales[:, places]))
