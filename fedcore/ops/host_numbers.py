"""Numbers that ops are given beside rows and factors, such as weights, coefficients, pairs and divisors: as NumPy's."""

from __future__ import annotations

import contextlib
import itertools
from typing import Any

import numpy as np

from fedcore.dtypes import name_of, to_float64
from fedcore.errors import DTypeError, ShapeError
from fedcore.numbers import shown
from fedcore.ops.tensors import check_plain, is_torch


def host_numbers(what: str, value: Any, kinds: str = "buif", expected: str = "real numbers") -> np.ndarray:
    """An array, a tensor, or lists of numbers of either, as an array in main memory; bf16 becomes fp64.

    kinds      the NumPy kinds of dtype that are taken, which `expected` says in words; an empty array has any

    Gradients are left behind. Raises DTypeError for other dtypes, such as text or complex numbers, for masked arrays
    and for tensors that are not plain, and ShapeError for lists of different lengths and tensors that hold no data.
    """
    held = _held(what, value, expected, 2)
    try:
        found = np.asarray(held)
    except ValueError:
        raise ShapeError(f"{what}: got lists of different lengths, expected {expected} in one regular array") from None
    if "f" in kinds and found.dtype.kind == "V":
        with contextlib.suppress(DTypeError):  # refused below
            found = to_float64(found) if name_of(found.dtype) == "bfloat16" else found
    elif "f" in kinds and found.dtype.kind == "O" and found.ndim:
        found = _each(what, found, expected)
    if found.size and found.dtype.kind not in kinds:
        got = found.dtype if found.ndim else type(value).__name__
        raise DTypeError(f"{what}: got {got}, expected {expected}")
    return found


def _each(what: str, found: np.ndarray, expected: str) -> np.ndarray:
    """Whole numbers beyond 64 bits, fractions and the like as fp64. Raises DTypeError for the first that is none."""
    numbers = np.empty(found.shape)
    for index, value in np.ndenumerate(found):
        one = host_number(what, value)
        if one is None:
            raise DTypeError(f"{what}: got {shown(value)} at {', '.join(map(str, index))}, expected {expected}")
        numbers[index] = one
    return numbers


def _held(what: str, value: Any, expected: str, levels: int) -> Any:
    """What NumPy reads as it is: in lists each element is looked at, since NumPy would drop the mask of one."""
    if isinstance(value, (list, tuple)):
        kinds = set(map(type, value))
        if kinds <= {list, tuple}:
            kinds = set(map(type, itertools.chain.from_iterable(value)))
        if all(kind in (int, float, bool) or issubclass(kind, np.generic) for kind in kinds):
            return value  # the usual case, quickly: no element has a mask
        return [_held(what, part, expected, levels - 1) for part in value] if levels else value
    check_plain(what, value)
    if not is_torch(value):
        return value
    held = value.detach().cpu()
    try:
        return (held.double() if str(held.dtype) == "torch.bfloat16" else held).numpy()
    except TypeError:  # a dtype that NumPy does not have
        raise DTypeError(f"{what}: got {value.dtype}, expected {expected}") from None


def host_number(what: str, value: Any) -> float | None:
    """One number of any kind, also an array's or a tensor's single element, as a float; None where it is none.

    None is for text, complex numbers, several elements and what no fp64 holds. Raises DTypeError for masked arrays and
    for tensors that are not plain, and ShapeError for those that hold no data.
    """
    check_plain(what, value)
    try:
        one = value.item() if hasattr(value, "item") else value
        # text that float reads is no number, and of a complex number it would lose a part
        return None if isinstance(one, (str, bytes, bytearray, complex, np.complexfloating)) else float(one)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return None
