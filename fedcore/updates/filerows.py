"""FileRows: rows whose data stay in files (or elsewhere in memory) until a few of their columns are asked for."""

from __future__ import annotations

import math
import os
import threading
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property

import numpy as np

from fedcore.dtypes import STORAGE
from fedcore.errors import FedcoreError
from fedcore.rowtable import RowTable
from fedcore.updates.file import File


class FileRows:
    """n rows × d columns of tensors of one dtype in s segments: where each lies, and nothing of what it holds.

    sources   (n,) a File, a 1-D uint8 array, or None for a row of zeros
    offsets   (4, s, n) int64: byte offset of each segment in its source, and of its scale arrays where it is quantised
    lengths   (s,) int64: columns of each segment
    dtype     what the tensors are
    names     (n,) what messages call each row
    lying     the row dtype that all of them lie in
    tensors   (s,) the tensor of each segment
    """

    #: whether all stretches of as many columns lie alike in their buffers
    alike = True

    def __init__(
        self,
        sources: Sequence[File | np.ndarray | None],
        offsets: np.ndarray,
        lengths: np.ndarray,
        dtype: str,
        names: Sequence[str],
        lying: str,
        tensors: tuple[str, ...],
    ):
        self.tensors = tensors
        self.sources, self.names, self.dtype, self.lying = list(sources), tuple(names), dtype, lying
        self.offsets, self.lengths = offsets, lengths
        #: bytes of a column, and what a stretch of columns takes beside them
        self.itemsize: float = STORAGE[lying].itemsize
        self.margin = 0
        self.starts = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
        self._edges: list[int] = self.starts.tolist()

    @property
    def n(self) -> int:
        """Rows."""
        return len(self.sources)

    @property
    def d(self) -> int:
        """Columns."""
        return int(self.starts[-1])

    @cached_property
    def files(self) -> dict[int, File]:
        """The rows that lie in files."""
        return {row: source for row, source in enumerate(self.sources) if isinstance(source, File)}

    def spans(self, row: int, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Columns start:stop of a row as (byte offset in its source, byte offset in the result, bytes).

        Segments that follow each other in the source, as those of one dtype do in most files, are one span.
        """
        if start >= stop:
            return
        itemsize = STORAGE[self.lying].itemsize
        first = bisect_right(self._edges, start) - 1
        if stop <= self._edges[first + 1]:  # by far the most common case, and a tile has a thousand rows
            offset = int(self.offsets[0, first, row]) + (start - self._edges[first]) * itemsize
            yield offset, 0, (stop - start) * itemsize
            return
        last = int(np.searchsorted(self.starts, stop, side="left"))
        begin = self.offsets[0, first:last, row].copy()
        begin[0] += (start - self.starts[first]) * itemsize
        edges = np.clip(self.starts[first : last + 1], start, stop) * itemsize
        sizes = np.diff(edges)
        begin, edges, sizes = begin[sizes > 0], edges[:-1][sizes > 0], sizes[sizes > 0]
        breaks = np.flatnonzero(begin[1:] != begin[:-1] + sizes[:-1]) + 1
        at = np.concatenate(([0], breaks))
        for offset, edge, size in zip(begin[at], edges[at], np.add.reduceat(sizes, at), strict=True):
            yield int(offset), int(edge - start * itemsize), int(size)

    def room(self, columns: int) -> int:
        """Bytes that are enough for any so many columns of a row, as `fill` brings them."""
        return math.ceil(columns * self.itemsize) + self.margin

    def table(self, buffers: Sequence[np.ndarray], index: Sequence[int], start: int, stop: int) -> RowTable:
        """Columns start:stop of the rows `index`, each in a buffer that `fill` has filled, as ops take them."""
        offsets = np.zeros((1, len(buffers)), np.int64)
        return RowTable(buffers, offsets, np.array([stop - start]), self.lying, source=self.dtype)

    def announce(self, row: int, start: int, stop: int, descriptors: Descriptors) -> None:
        """Have the operating system fetch columns that will be filled soon, while this process does something else.

        Threads that wait for a disk a few pages at a time lose it to every other thread that is ready to run; asked for
        a stretch at once it goes on by itself.
        """
        source = self.sources[row]
        if isinstance(source, File) and hasattr(os, "posix_fadvise"):
            # whatever is wrong is said when the columns are filled
            with suppress(FedcoreError, OSError), descriptors.of(row) as descriptor:
                for offset, _, size in self.spans(row, start, stop):
                    os.posix_fadvise(descriptor, offset, size, os.POSIX_FADV_WILLNEED)

    def fill(self, row: int, start: int, stop: int, out: np.ndarray, descriptors: Descriptors) -> None:
        """Columns start:stop of a row into `out`, uint8, of at least room(stop − start). Errors name row and file."""
        source = self.sources[row]
        if source is None:
            out[:] = 0
        elif isinstance(source, np.ndarray):
            for offset, to, size in self.spans(row, start, stop):
                out[to : to + size] = source[offset : offset + size]
        else:
            try:
                with descriptors.of(row) as descriptor:
                    for offset, to, size in self.spans(row, start, stop):
                        source.read_into(descriptor, out[to : to + size].data, offset)
                    source.check(descriptor)
            except FedcoreError as error:
                raise error.with_message(f"{self.names[row]}: {error}") from None

    def columns(self, row: int, start: int, stop: int, descriptors: Descriptors) -> np.ndarray:
        """Columns start:stop of a row, a copy."""
        out = np.empty(self.room(stop - start), np.uint8)
        self.fill(row, start, stop, out, descriptors)
        return self.table([out], [row], start, stop).columns(0, 0, stop - start)


class Descriptors:
    """The open files of some rows, for the length of a `with`.

    As many as `most` stay open from one visit to the next, the rest are opened for each: a cohort may have any number
    of files, and the process needs descriptors for other things too.
    """

    def __init__(self, rows: FileRows, most: int):
        self._files, self._most = rows.files, most
        self._kept: dict[int, int] = {}
        self._opening = threading.Lock()

    def __enter__(self) -> Descriptors:
        return self

    def __exit__(self, *_: object) -> None:
        while self._kept:
            os.close(self._kept.popitem()[1])

    @contextmanager
    def of(self, row: int) -> Iterator[int]:
        """The descriptor of a row's file. Raises as `File.open` does. Several threads may ask at once."""
        with self._opening:
            if row not in self._kept and len(self._kept) < self._most:
                self._kept[row] = self._files[row].open()
            kept = self._kept.get(row)
        if kept is not None:
            yield kept
            return
        with self._files[row].opened() as descriptor:
            yield descriptor
