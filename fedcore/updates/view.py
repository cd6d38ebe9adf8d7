"""An update's tensors by name, read or decoded where they lie."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from fedcore.dtypes import STORAGE, to_float64
from fedcore.quantized import QUANTIZED, Quantized, part_sizes

if TYPE_CHECKING:
    from fedcore.updates.update import Update


class TensorView(Mapping[str, np.ndarray]):
    """name -> read-only array over an update's bytes, in canonical order; made when asked for.

    What lies as its dtype in a buffer is never copied; what travels in another format is decoded to fp32 each time, and
    what lies in a file is read from it each time.
    """

    def __init__(self, update: Update):
        self._update, self._layout = update, update.layout

    def __repr__(self) -> str:
        return f"<TensorView of {self._update!r}>"

    def __getitem__(self, name: str) -> np.ndarray:
        k = self._layout.index[name]
        found = self.stored(k)
        if isinstance(found, Quantized):
            found = found.to_float32()
        elif self._layout.formats[k] != self._layout.dtypes[k]:
            found = np.asarray(to_float64(found), np.float32)
        found.flags.writeable = False
        return found

    def stored(self, k: int) -> np.ndarray | Quantized:
        """A tensor as it lies, by its position."""
        layout, update = self._layout, self._update
        format, shape = layout.formats[k], layout.shapes[k]
        if format not in QUANTIZED:
            size = int(layout.nbytes[k])
            return update.bytes_at(int(update.offsets[k]), size).view(STORAGE[format]).reshape(shape)
        starts = (int(update.offsets[k]), *update.scales[:, k].tolist())
        if update.mapped:
            return Quantized.over(update.buffer, starts, format, shape, layout.dtypes[k])
        sizes = part_sizes(format, int(layout.sizes[k]))
        parts = [
            update.bytes_at(start, size * kind.itemsize).view(kind)
            for start, (kind, size) in zip(starts, sizes, strict=False)
        ]
        return Quantized(format, shape, parts[0], tuple(parts[1:]), layout.dtypes[k])

    def __iter__(self) -> Iterator[str]:
        return iter(self._update.layout.names)

    def __len__(self) -> int:
        return len(self._update.layout)
