"""FileRows: rows whose data stay in files (or elsewhere in memory) until a few of their columns are asked for."""

from __future__ import annotations

import os
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property

import numpy as np

from fedcore.dtypes import ROW_DTYPES, STORAGE, to_float64
from fedcore.encoding import MOST_SCALES
from fedcore.errors import FedcoreError
from fedcore.quantized import BLOCK, NESTED, decode, part_sizes
from fedcore.updates.file import File
from fedcore.updates.layout import Layout
from fedcore.updates.update import Update

#: brings bytes from an offset on into a view
Take = Callable[[int, np.ndarray], None]


class FileRows:
    """n rows × d columns of tensors of one dtype in s segments: where each lies, and nothing of what it holds.

    sources   (n,) a File, a 1-D uint8 array, or None for a row of zeros
    offsets   (4, s, n) int64: byte offset of each segment in its source, and of its scale arrays where it is quantised
    lengths   (s,) int64: columns of each segment
    dtype     what the tensors are
    formats   (s, n) how each segment lies
    names     (n,) what messages call each row
    lying     the dtype that columns are given in: the format of all segments, or float32 where formats are mixed or
              quantised, which then are decoded as they are read
    """

    def __init__(
        self,
        sources: Sequence[File | np.ndarray | None],
        offsets: np.ndarray,
        lengths: np.ndarray,
        dtype: str,
        formats: np.ndarray,
        names: Sequence[str],
    ):
        self.sources, self.names, self.dtype, self.formats = list(sources), tuple(names), dtype, formats
        self.offsets, self.lengths = offsets, lengths
        given = [row for row, source in enumerate(self.sources) if source is not None]
        found = set(formats[:, given].ravel().tolist())
        self.lying = found.pop() if len(found) == 1 and found <= set(ROW_DTYPES) else "float32" if found else dtype
        self.itemsize = STORAGE[self.lying].itemsize
        #: (n,) whether a row lies as its columns are given
        self.plain = (formats == self.lying).all(axis=0)
        self.starts = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
        self._edges: list[int] = self.starts.tolist()

    @classmethod
    def of_updates(
        cls, updates: Sequence[Update | None], layout: Layout, names: Sequence[str]
    ) -> list[tuple[tuple[str, ...], FileRows]]:
        """The tensors of `layout`, which every update has, one FileRows per dtype: (tensor names, rows).

        None is the update of zeros. An update with a file is read from it, mapped or not.
        """
        groups: dict[str, list[int]] = {}
        for k, dtype in enumerate(layout.dtypes):
            groups.setdefault(dtype, []).append(k)
        places = [_places(update, layout) for update in updates]
        offsets = np.stack([_offsets(update, place) for update, place in zip(updates, places, strict=True)], axis=2)
        formats = np.array(
            [
                layout.dtypes if update is None else [update.layout.formats[k] for k in place]
                for update, place in zip(updates, places, strict=True)
            ],
            object,
        ).T.reshape(len(layout), len(updates))
        sources = [None if update is None else update.file or update.buffer for update in updates]
        return [
            (
                tuple(layout.names[k] for k in group),
                cls(sources, offsets[:, group], layout.sizes[group], dtype, formats[group], names),
            )
            for dtype, group in groups.items()
        ]

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
        first = bisect_right(self._edges, start) - 1
        if stop <= self._edges[first + 1]:  # by far the most common case, and a tile has a thousand rows
            offset = int(self.offsets[0, first, row]) + (start - self._edges[first]) * self.itemsize
            yield offset, 0, (stop - start) * self.itemsize
            return
        last = int(np.searchsorted(self.starts, stop, side="left"))
        begin = self.offsets[0, first:last, row].copy()
        begin[0] += (start - self.starts[first]) * self.itemsize
        edges = np.clip(self.starts[first : last + 1], start, stop) * self.itemsize
        sizes = np.diff(edges)
        begin, edges, sizes = begin[sizes > 0], edges[:-1][sizes > 0], sizes[sizes > 0]
        breaks = np.flatnonzero(begin[1:] != begin[:-1] + sizes[:-1]) + 1
        at = np.concatenate(([0], breaks))
        for offset, edge, size in zip(begin[at], edges[at], np.add.reduceat(sizes, at), strict=True):
            yield int(offset), int(edge - start * self.itemsize), int(size)

    def announce(self, row: int, start: int, stop: int, descriptors: Descriptors) -> None:
        """Have the operating system fetch columns that will be filled soon, while this process does something else.

        Threads that wait for a disk a few pages at a time lose it to every other thread that is ready to run; asked for
        a stretch at once it goes on by itself.
        """
        source = self.sources[row]
        if isinstance(source, File) and self.plain[row] and hasattr(os, "posix_fadvise"):
            # whatever is wrong is said when the columns are filled
            with suppress(FedcoreError, OSError), descriptors.of(row) as descriptor:
                for offset, _, size in self.spans(row, start, stop):
                    os.posix_fadvise(descriptor, offset, size, os.POSIX_FADV_WILLNEED)

    def fill(self, row: int, start: int, stop: int, out: np.ndarray, descriptors: Descriptors) -> None:
        """Columns start:stop of a row into `out` ((stop − start) · itemsize,) uint8. Errors name row and file."""
        source = self.sources[row]
        if source is None:
            out[:] = 0
        elif isinstance(source, np.ndarray):

            def take(offset: int, view: np.ndarray) -> None:
                view[:] = source[offset : offset + len(view)]

            self._fill(row, start, stop, out, take)
        else:
            try:
                with descriptors.of(row) as descriptor:
                    self._fill(
                        row, start, stop, out, lambda offset, view: source.read_into(descriptor, view.data, offset)
                    )
                    source.check(descriptor)
            except FedcoreError as error:
                raise type(error)(f"{self.names[row]}: {error}") from None

    def _fill(self, row: int, start: int, stop: int, out: np.ndarray, take: Take) -> None:
        if self.plain[row]:
            for offset, to, size in self.spans(row, start, stop):
                take(offset, out[to : to + size])
            return
        columns = out.view(STORAGE[self.lying])
        first = int(np.searchsorted(self.starts, start, side="right")) - 1
        for k in range(max(first, 0), len(self.lengths)):
            low, high = max(start - int(self.starts[k]), 0), min(stop - int(self.starts[k]), int(self.lengths[k]))
            if high > low:
                at = int(self.starts[k]) + low - start
                columns[at : at + high - low] = self._decoded(row, k, low, high, take)
            if self.starts[k + 1] >= stop:
                break

    def _decoded(self, row: int, k: int, low: int, high: int, take: Take) -> np.ndarray:
        """(high − low,) fp32: elements of one segment, from no more of its bytes than the blocks that hold them."""
        format = self.formats[k, row]
        # scale arrays are cut where a block under one nested scale begins
        origin = low if format in ROW_DTYPES else low - low % (BLOCK * NESTED)
        parts = []
        for part, ((kind, begin), (_, end)) in enumerate(
            zip(_parts(format, origin), _parts(format, high), strict=True)
        ):
            begin = 0 if begin == end else begin  # an array of one number for the whole tensor
            raw = np.empty((end - begin) * kind.itemsize, np.uint8)
            take(int(self.offsets[part, k, row]) + begin * kind.itemsize, raw)
            parts.append(raw.view(kind))
        if format in ROW_DTYPES:
            return to_float64(parts[0]).astype(np.float32)
        return decode(format, parts[0], parts[1:], low - origin, high - origin)

    def columns(self, row: int, start: int, stop: int, descriptors: Descriptors) -> np.ndarray:
        """Columns start:stop of a row, a copy."""
        out = np.empty((stop - start) * self.itemsize, np.uint8)
        self.fill(row, start, stop, out, descriptors)
        return out.view(STORAGE[self.lying])


def _parts(format: str, size: int) -> Sequence[tuple[np.dtype, int]]:
    """(dtype, length) of the payload and each scale array of the first `size` elements of a tensor."""
    return ((STORAGE[format], size),) if format in ROW_DTYPES else part_sizes(format, size)


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
