"""Tensors brought to another format: what `Update.quantize` does."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from fedcore.dtypes import name_of, round_from_float64, to_float64
from fedcore.errors import DTypeError, FormatError, LayoutError, RangeError
from fedcore.numbers import among, got, shown
from fedcore.quantized import QUANTIZED, SCALES, Quantized, part_sizes
from fedcore.updates.header import arrange, offsets_of
from fedcore.updates.layout import Layout
from fedcore.updates.pieces import WIRE_FORMATS, pieces_of, repeated_name


def encode(tensors: Mapping[str, np.ndarray], layout: Layout, format: str) -> tuple[Layout, np.ndarray, np.ndarray]:
    """(layout, 1-D uint8 buffer, (4, s) byte offsets in it) of the tensors in another format; one is read at a time.

    Raises DTypeError for an unknown format, LayoutError for a tensor whose name a scale array needs, and RangeError
    naming a tensor with a finite element that the format cannot hold.
    """
    if not among(format, WIRE_FORMATS):
        raise DTypeError(f"{got('format', format)}, expected one of {', '.join(WIRE_FORMATS)}")
    target = Layout(layout.names, layout.shapes, layout.dtypes, (format,) * len(layout))
    if problem := repeated_name(target):
        raise LayoutError(problem)
    _, starts = arrange(target)
    offsets, buffer = offsets_of(target, starts), np.empty(int(target.nbytes.sum()), np.uint8)
    pieces = pieces_of(target)
    for k, name in enumerate(target.names):
        try:
            arrays = _arrays(tensors[name], format)
        except RangeError as error:
            raise RangeError(f"tensor {shown(name)}: {error}") from None
        for piece in pieces[k * len(arrays) : (k + 1) * len(arrays)]:
            start = int(offsets[piece.part, k])
            buffer[start : start + piece.nbytes] = arrays[piece.part].reshape(-1).view(np.uint8)
    return target, buffer, offsets


def _arrays(tensor: np.ndarray, format: str) -> tuple[np.ndarray, ...]:
    """The payload and the scale arrays of one tensor."""
    if format in QUANTIZED:
        found = Quantized.from_array(tensor, format)
        return (found.payload, *found.scales)
    if name_of(tensor.dtype) == format:
        return (np.ascontiguousarray(tensor),)
    values = to_float64(tensor)
    rounded = np.ascontiguousarray(round_from_float64(values, format))
    if (np.isfinite(values) & ~np.isfinite(to_float64(rounded))).any():
        raise RangeError(f"an element does not fit {format}; choose another format")
    return (rounded,)


def check_scales(layout: Layout, read: Callable[[int, int], np.ndarray], scales: np.ndarray, source: str) -> None:
    """Raise FormatError naming the tensor for a negative number where a largest magnitude or their mean should be.

    read(start, size) gives bytes of the buffer or file; only fp32 scale arrays are read. NaN and Inf pass: they make
    elements that are not finite, which the ops name.
    """
    for k, (name, format) in enumerate(zip(layout.names, layout.formats, strict=True)):
        if format not in SCALES:
            continue
        sizes = part_sizes(format, int(layout.sizes[k]))[1:]
        for (suffix, dtype), (_, length), start in zip(SCALES[format], sizes, scales[:, k].tolist(), strict=False):
            found = read(start, length * dtype.itemsize).view(dtype)
            # unsigned codes are never negative
            if (found < 0).any():
                where = int(np.flatnonzero(found < 0)[0])
                raise FormatError(
                    f"{source}: tensor {shown(name)}: {shown(f'{name}.{suffix}')} is {found[where]:g} at {where}, "
                    "expected no negative number; quantise the tensor again"
                )
