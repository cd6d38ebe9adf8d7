"""The element types of rows: fp32, fp16 and bf16, and fp64 for outputs.

NumPy has no bfloat16. fedcore stores it as a one-field structured dtype over uint16, `BF16`, so that an array says what
it is without another package; `ml_dtypes.bfloat16` arrays are accepted where the caller has them.
"""

from __future__ import annotations

import contextlib
from typing import cast

import numpy as np
import numpy.typing as npt

from fedcore.errors import DTypeError, RangeError
from fedcore.numbers import one_line

BF16 = np.dtype([("bfloat16", "<u2")])

#: name -> the NumPy dtype that stores it
STORAGE: dict[str, np.dtype] = {
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": BF16,
    "float64": np.dtype("<f8"),
}
#: a NumPy dtype of this machine's byte order -> its name
_NAMES = {dtype: name for name, dtype in STORAGE.items() if dtype.isnative}
ROW_DTYPES = ("float32", "float16", "bfloat16")
OUT_DTYPES = ("float32", "float64", "float16", "bfloat16")


def bf16(bits: npt.ArrayLike) -> np.ndarray:
    """View the bit patterns of bfloat16 numbers (a uint16 array of any shape) as a bf16 array; no copy is made.

    Raises DTypeError if `bits` is not uint16. `fedcore.dtypes.bf16_bits` is the way back.
    """
    bits = np.asarray(bits)
    if bits.dtype != np.uint16:
        raise DTypeError(
            f"bf16: got an array of {bits.dtype}, expected uint16 bit patterns; use array.view(numpy.uint16)"
        )
    return bits.view(BF16)


def bf16_bits(array: np.ndarray) -> np.ndarray:
    """The uint16 bit patterns of a bf16 array (`BF16` or `ml_dtypes.bfloat16`), as a view of the same shape."""
    return array.view(np.uint16)


def name_of(dtype: object, what: str = "dtype", among: tuple[str, ...] = tuple(STORAGE)) -> str:
    """The fedcore name ('float32', 'float16', 'bfloat16', 'float64') of a NumPy or torch dtype or of a name.

    Raises DTypeError, which names `what` it is the dtype of, for one that is not `among` those, and for a byte order
    that is not this machine's.
    """
    if isinstance(dtype, np.dtype) and (name := _NAMES.get(dtype)) in among:
        return cast(str, name)
    if isinstance(dtype, np.dtype) and not dtype.isnative:
        raise DTypeError(
            f"{what}: got {dtype.str}, expected this machine's byte order; use array.astype(dtype.newbyteorder('='))"
        )
    if dtype is None:  # which NumPy takes for float64
        raise DTypeError(f"{what}: got None, expected one of {', '.join(among)}")
    text = str(dtype).removeprefix("torch.")
    with contextlib.suppress(TypeError, ValueError):  # not a dtype at all: refused below
        text = text if text in STORAGE else np.dtype(dtype).name  # type: ignore[call-overload]
    if text not in among:
        raise DTypeError(
            f"{what}: got {one_line(str(dtype))}, expected one of {', '.join(among)}; convert the array first"
        )
    return text


def to_float64(array: np.ndarray) -> np.ndarray:
    """Every element as fp64, exactly."""
    with np.errstate(invalid="ignore"):  # a signalling NaN is still NaN, and is found by whoever asked
        if name_of(array.dtype) != "bfloat16":
            return array.astype(np.float64)
        return (bf16_bits(array).astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def round_from_float64(values: np.ndarray, dtype: str) -> np.ndarray:
    """fp64 values rounded once, to nearest even, to the named dtype; overflow gives Inf, as in IEEE 754.

    bf16 goes through fp32 rounded to odd, which leaves the second rounding equal to one direct rounding
    (Boldo and Melquiond, 2008, "Emulation of a FMA and correctly rounded sums: proved algorithms using rounding to
    odd").
    """
    with np.errstate(over="ignore", under="ignore"):
        if dtype != "bfloat16":
            return values.astype(STORAGE[dtype])
        nearest = values.astype(np.float32)
        back = nearest.astype(np.float64)
        bits = nearest.view(np.uint32).astype(np.int64)
        even = (bits & 1) == 0
        # magnitude bits order like the magnitudes, so one ulp towards `values` is one step of the integer
        odd = np.where(even & (np.abs(back) > np.abs(values)), bits - 1, bits)
        odd = np.where(even & (np.abs(back) < np.abs(values)), bits + 1, odd)
        odd = np.where(np.isnan(values), bits, odd)
        rounded = (odd + 0x7FFF + ((odd >> 16) & 1)) >> 16
        rounded = np.where(np.isnan(values), 0x7FC0, rounded)
    return rounded.astype(np.uint16).view(BF16)


def rounded(values: np.ndarray, dtype: str, refusal: str) -> np.ndarray:
    """The same, in C order. Raises RangeError with the text `refusal` where a value is not finite then."""
    result = round_from_float64(np.asarray(values, order="C"), dtype)
    if not np.isfinite(to_float64(result)).all():
        raise RangeError(refusal)
    return result
