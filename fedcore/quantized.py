"""Quantised arrays: blockwise int8, and NF4 with double quantisation in the layout of bitsandbytes.

A tensor is taken flat, in row-major order, and cut into blocks of BLOCK elements, the last one shorter. What an element
decodes to is an fp32 number, defined down to the bit; every backend decodes to the same:

int8    q · s_b with q in [−128, 127] and s_b = absmax_b / 127: one fp32 division for a block, one fp32 product for an
        element, each rounded to nearest even. `absmax` is fp32, one for each block.
nf4     NF4_CODE[q] · a_b with a_b = DYNAMIC_CODE[absmax_b] · nested_absmax_c + offset: a product, a sum and a product,
        each rounded to fp32. Two elements share a byte, the first in its high half. `absmax` is uint8, one for each
        block; `nested_absmax` is fp32, one for each NESTED blocks; `nested_offset` is one fp32 number, the mean of the
        blocks' largest magnitudes. These are the operations of bitsandbytes, and its arrays: `quantize_4bit(x,
        blocksize=64, quant_type="nf4", compress_statistics=True)`.

Sources: Dettmers et al. 2022, "8-bit Optimizers via Block-wise Quantization" (the dynamic code); Dettmers et al. 2023,
"QLoRA", sections 3 and appendix E (NF4, double quantisation).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedcore.dtypes import ROW_DTYPES, name_of, round_from_float64, to_float64
from fedcore.errors import DTypeError, RangeError, ShapeError
from fedcore.numbers import among, got, shown, shown_bytes

BLOCK = 64
NESTED = 256
QUANTIZED = ("int8", "nf4")
#: format -> its scale arrays, in order: what a file calls them, and their dtypes
SCALES: dict[str, tuple[tuple[str, np.dtype], ...]] = {
    "int8": (("absmax", np.dtype("<f4")),),
    "nf4": (
        ("absmax", np.dtype("u1")),
        ("nested_absmax", np.dtype("<f4")),
        ("nested_offset", np.dtype("<f4")),
    ),
}
#: elements quantised at a time: what a client needs beside its tensors
_CHUNK = 1 << 18

NF4_CODE = np.array(
    [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
        0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ],
    np.float32,
)  # fmt: skip
_DYNAMIC_POSITIVE = np.array(
    [
        5.5000004e-07, 3.2500002e-06, 7.75e-06, 2.1249998e-05, 4.375e-05, 6.625e-05, 8.875e-05, 0.00015625001,
        0.00026875004, 0.00038125002, 0.00049375003, 0.0006062501, 0.00071875006, 0.00083125, 0.0009437501,
        0.0012812499, 0.00184375, 0.00240625, 0.00296875, 0.0035312497, 0.00409375, 0.0046562497, 0.0052187503,
        0.00578125, 0.00634375, 0.00690625, 0.00746875, 0.00803125, 0.00859375, 0.009156249, 0.00971875, 0.01140625,
        0.01421875, 0.01703125, 0.019843752, 0.02265625, 0.02546875, 0.028281251, 0.03109375, 0.03390625, 0.036718752,
        0.03953125, 0.042343747, 0.04515625, 0.04796875, 0.05078125, 0.05359375, 0.05640625, 0.059218753, 0.06203125,
        0.06484375, 0.067656256, 0.070468746, 0.07328125, 0.07609375, 0.07890625, 0.08171876, 0.08453125, 0.08734375,
        0.09015625, 0.092968754, 0.09578126, 0.09859375, 0.107031256, 0.12109375, 0.13515624, 0.14921875, 0.16328125,
        0.17734376, 0.19140625, 0.20546874, 0.21953125, 0.23359375, 0.24765624, 0.26171875, 0.27578127, 0.28984374,
        0.30390626, 0.31796873, 0.33203125, 0.34609374, 0.36015624, 0.37421876, 0.38828123, 0.40234375, 0.41640624,
        0.43046874, 0.44453126, 0.45859373, 0.47265625, 0.4867187, 0.50078124, 0.5148437, 0.5289062, 0.54296875,
        0.5570313, 0.5710938, 0.58515626, 0.5992187, 0.61328125, 0.6273438, 0.6414063, 0.65546876, 0.6695312,
        0.68359375, 0.6976563, 0.7117188, 0.72578126, 0.7398437, 0.75390625, 0.7679688, 0.78203124, 0.79609376,
        0.8101562, 0.82421875, 0.8382813, 0.85234374, 0.86640626, 0.8804687, 0.89453125, 0.9085938, 0.92265624,
        0.93671876, 0.9507812, 0.96484375, 0.9789063, 0.99296874
    ],
    np.float32,
)  # fmt: skip
#: (256,) ascending: 127 negative numbers, 0, the same 127 positive, 1
DYNAMIC_CODE = np.concatenate((-_DYNAMIC_POSITIVE[::-1], [0], _DYNAMIC_POSITIVE, [1])).astype(np.float32)


@dataclass(frozen=True, eq=False, repr=False)
class Quantized:
    """A tensor of one of the formats above.

    format    'int8' or 'nf4'
    shape     of the tensor
    payload   1-D int8, one for each element, or 1-D uint8, one for each two
    scales    the arrays that SCALES names for the format, each 1-D
    dtype     what the tensor was before: 'float32', 'float16' or 'bfloat16'

    Raises DTypeError or ShapeError for arrays that do not fit the format and the shape. Their values are not looked at:
    a NaN or Inf among the scales is found, like any other, by the op that reads it.
    """

    format: str
    shape: tuple[int, ...]
    payload: np.ndarray
    scales: tuple[np.ndarray, ...]
    dtype: str = "float32"

    def __post_init__(self) -> None:
        check_format(self.format)
        if self.dtype not in ROW_DTYPES:
            raise DTypeError(f"quantised tensor: got dtype {self.dtype}, expected one of {', '.join(ROW_DTYPES)}")
        names = ("payload", *(name for name, _ in SCALES[self.format]))
        expected = part_sizes(self.format, self.size)
        if len(self.scales) != len(names) - 1:
            raise ShapeError(f"quantised tensor: got {len(self.scales)} scale arrays, expected {len(names) - 1}")
        for name, array, (dtype, size) in zip(names, (self.payload, *self.scales), expected, strict=True):
            if array.dtype != dtype:
                raise DTypeError(f"quantised tensor: {name} is {array.dtype}, expected {dtype} for {self.format}")
            if array.shape != (size,):
                raise ShapeError(
                    f"quantised tensor: {name} has shape {array.shape}, expected ({size},) for {self.format} of shape "
                    f"{self.shape}"
                )
            if not array.flags.c_contiguous:
                raise ShapeError(f"quantised tensor: {name} is not contiguous; pass numpy.ascontiguousarray")

    def __repr__(self) -> str:
        return f"<Quantized {self.format} of {self.dtype} {self.shape}: {shown_bytes(self.nbytes)}>"

    @classmethod
    def from_array(cls, array: np.ndarray, format: str) -> Quantized:
        """Quantise an fp32, fp16 or bf16 array, each element to the nearest code.

        Codes of elements are those of bitsandbytes on a CPU. Scales of nf4 may differ from its own in the last bit, as
        its mean offset is summed in fp32, and zeros alone have scale 0 here and 1e-38 there.
        A block that holds NaN or Inf decodes to NaN, and in nf4 the whole tensor does, since its mean offset is NaN.
        Raises DTypeError, and RangeError for finite magnitudes so near fp32's largest that they would decode to Inf.
        """
        check_format(format)
        if not isinstance(array, np.ndarray):
            raise DTypeError(f"quantise: got {shown(array)}, expected a NumPy array; pass numpy.asarray(it)")
        dtype = name_of(array.dtype)
        if dtype not in ROW_DTYPES:
            raise DTypeError(f"quantise: got {dtype}, expected one of {', '.join(ROW_DTYPES)}; convert the array first")
        flat = np.ascontiguousarray(array).reshape(-1)
        payload, absmax = _quantize(flat, format)
        scales: tuple[np.ndarray, ...] = (absmax,)
        if format == "nf4":
            scales = _nested(absmax)
        decoded = block_scales(format, scales, 0, len(absmax))
        with np.errstate(over="ignore", invalid="ignore"):
            largest = np.abs(decoded * np.float32(127)) if format == "int8" else np.abs(decoded)
        if np.isinf(largest).any():  # what was not finite is NaN
            raise RangeError(
                f"quantise: a magnitude of {np.nanmax(absmax):g} does not survive {format}; scale the array down"
            )
        buffer, offsets = _joined((payload, *scales))
        return cls.over(buffer, offsets, format, array.shape, dtype)

    @classmethod
    def over(
        cls, buffer: np.ndarray, offsets: Sequence[int], format: str, shape: tuple[int, ...], dtype: str
    ) -> Quantized:
        """Views of a 1-D uint8 buffer in which payload and scales begin at these bytes; nothing is copied."""
        parts = []
        for start, (kind, size) in zip(offsets, part_sizes(format, math.prod(shape)), strict=False):
            parts.append(buffer[start : start + size * kind.itemsize].view(kind))
        return cls(format, shape, parts[0], tuple(parts[1:]), dtype)

    def joined(self) -> tuple[np.ndarray, tuple[int, ...]]:
        """(1-D uint8 buffer that holds all arrays, byte offset of each): the one they are views of, or a copy."""
        parts = (self.payload, *self.scales)
        owner = parts[0].base
        if isinstance(owner, np.ndarray) and owner.dtype == np.uint8 and owner.ndim == 1:
            starts = tuple(part.ctypes.data - owner.ctypes.data for part in parts)
            if owner.flags.c_contiguous and all(part.base is owner for part in parts):
                return owner, starts
        return _joined(parts)

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of payload and scales."""
        return self.payload.nbytes + sum(scale.nbytes for scale in self.scales)

    def to_float32(self) -> np.ndarray:
        """The tensor that this stands for, (shape) fp32; a copy."""
        return decode(self.format, self.payload, self.scales, 0, self.size).reshape(self.shape)


def check_format(format: str) -> None:
    """Raise DTypeError unless it is 'int8' or 'nf4'."""
    if not among(format, QUANTIZED):
        raise DTypeError(f"{got('format', format)}, expected one of {', '.join(QUANTIZED)}")


def part_sizes(format: str, size: int) -> tuple[tuple[np.dtype, int], ...]:
    """(dtype, length) of the payload and of each scale array of `size` elements."""
    blocks = -(-size // BLOCK)
    if format == "int8":
        return (np.dtype("i1"), size), (np.dtype("<f4"), blocks)
    return (
        (np.dtype("u1"), -(-size // 2)),
        (np.dtype("u1"), blocks),
        (np.dtype("<f4"), -(-blocks // NESTED)),
        (np.dtype("<f4"), 1),
    )


def block_scales(format: str, scales: Sequence[np.ndarray], first: int, last: int) -> np.ndarray:
    """(last − first,) fp32: the factor of each of these blocks."""
    with np.errstate(all="ignore"):
        if format == "int8":
            return scales[0][first:last] / np.float32(127)
        absmax, nested, offset = scales
        outer = nested[np.arange(first, last) // NESTED]
        return DYNAMIC_CODE[absmax[first:last]] * outer + offset


def decode(format: str, payload: np.ndarray, scales: Sequence[np.ndarray], start: int, stop: int) -> np.ndarray:
    """(stop − start,) fp32: elements start to stop of a flat tensor."""
    if format == "int8":
        codes = payload[start:stop].astype(np.float32)
    else:
        pair = payload[start // 2 : -(-stop // 2)]
        halves = np.stack((pair >> 4, pair & 15), axis=1).reshape(-1)
        codes = NF4_CODE[halves[start % 2 : start % 2 + stop - start]]
    first = start // BLOCK
    factors = np.repeat(block_scales(format, scales, first, -(-stop // BLOCK)), BLOCK)
    with np.errstate(all="ignore"):
        return codes * factors[start - first * BLOCK : stop - first * BLOCK]


def _joined(parts: Sequence[np.ndarray]) -> tuple[np.ndarray, tuple[int, ...]]:
    """The arrays one after the other in one buffer, each aligned, and where each begins."""
    starts, end = [], 0
    for part in parts:
        starts.append(end)
        end += -(-part.nbytes // 8) * 8
    buffer = np.zeros(end, np.uint8)
    for start, part in zip(starts, parts, strict=True):
        buffer[start : start + part.nbytes] = part.view(np.uint8)
    return buffer, tuple(starts)


def _quantize(flat: np.ndarray, format: str) -> tuple[np.ndarray, np.ndarray]:
    """(payload, absmax (blocks,) fp32) of a flat array."""
    (kind, size), _ = part_sizes(format, flat.size)[:2]
    payload, absmax = np.zeros(size, kind), np.zeros(-(-flat.size // BLOCK), np.float32)
    packed = 1 if format == "int8" else 2
    for start in range(0, flat.size, _CHUNK):
        values = to_float64(flat[start : start + _CHUNK]).astype(np.float32)
        # zeros after the end change no largest magnitude, and are the low half of a last odd byte
        blocks = np.pad(values, (0, -len(values) % BLOCK)).reshape(-1, BLOCK)
        largest = np.abs(blocks).max(1)
        largest[~np.isfinite(largest)] = np.nan
        codes = _int8_codes(blocks, largest) if format == "int8" else _nf4_codes(blocks, largest, len(values))
        absmax[start // BLOCK : start // BLOCK + len(largest)] = largest
        payload[start // packed : (start + len(values) + packed - 1) // packed] = codes[: -(-len(values) // packed)]
    return payload, absmax


def _int8_codes(blocks: np.ndarray, absmax: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        scaled = blocks / (absmax / np.float32(127))[:, None]
    # where the scale vanishes all elements decode to 0, whatever their codes
    return np.rint(np.nan_to_num(scaled, nan=0.0, posinf=0.0, neginf=0.0).clip(-127, 127)).astype(np.int8).reshape(-1)


def _nf4_codes(blocks: np.ndarray, absmax: np.ndarray, size: int) -> np.ndarray:
    """Packed codes. bitsandbytes multiplies by the reciprocal, and divides in a last block that is not full."""
    tiny = np.float32(1e-38)
    with np.errstate(all="ignore"):
        scaled = blocks * (np.float32(1) / np.maximum(absmax, tiny))[:, None]
        if size % BLOCK:
            scaled[-1] = blocks[-1] / np.maximum(absmax[-1], tiny)
    codes = _nearest(scaled.reshape(-1), NF4_CODE)
    return codes[::2] << 4 | codes[1::2]


def _nested(absmax: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(absmax uint8, nested_absmax fp32, offset fp32 (1,)): the blocks' magnitudes less their mean, quantised."""
    offset = np.array([absmax.astype(np.float64).mean() if absmax.size else 0.0]).astype(np.float32)
    rest = np.pad(absmax - offset, (0, -len(absmax) % NESTED)).reshape(-1, NESTED)
    outer = np.abs(rest).max(1)
    with np.errstate(all="ignore"):
        scaled = rest / outer[:, None]
    codes = _nearest(np.nan_to_num(scaled, nan=0.0).reshape(-1), DYNAMIC_CODE)
    return codes[: len(absmax)], outer, offset


def _nearest(values: np.ndarray, code: np.ndarray) -> np.ndarray:
    """uint8 positions of the nearest entries of an ascending code; halfway goes down, NaN to the last."""
    return np.searchsorted((code[:-1] + code[1:]) / np.float32(2), values).astype(np.uint8)


def to_dtype(values: np.ndarray, dtype: str) -> np.ndarray:
    """fp32 values rounded once to the named dtype: what a tensor that was quantised is written back as."""
    return values if dtype == "float32" else round_from_float64(values.astype(np.float64), dtype)
