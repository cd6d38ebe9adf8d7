"""What counts as a whole number, a real number or a flag, and how an error shows a value: one answer for every part.

True and False are flags and no numbers, and numbers are no flags, whether they are Python's, NumPy's or a tensor's
single element. What fits comes back as Python's own, and is kept as that: a NumPy integer would overflow in arithmetic
and stand in no JSON file.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Collection
from numbers import Integral, Real
from typing import Any

from fedcore.errors import FedcoreError

#: characters of a value in an error, of which the first and the last stay; bits of an integer that is shown in digits
LONGEST, FIRST, LAST, MOST_BITS = 160, 100, 40, 128


def as_whole(value: Any) -> int | None:
    """`value` as an int, where it is an integer of any kind without dimensions, else None."""
    if isinstance(value, bool) or getattr(value, "ndim", 0) != 0 or _dtype(value) == "bool":
        return None
    try:
        return int(operator.index(value))
    except (TypeError, RuntimeError):  # RuntimeError: a tensor that has no data
        return None


def as_real(value: Any) -> float | None:
    """`value` as a float, where it is an integer as above or a number of Python's or NumPy's that a float can hold.

    None for all else. NaN and the infinities are floats: who wants none compares what comes back.
    """
    whole = isinstance(value, Integral) or not isinstance(value, Real)
    number = as_whole(value) if whole else value
    try:
        return None if number is None else float(number)
    except OverflowError:
        return None


def as_flag(value: Any) -> bool | None:
    """`value` as a bool, where it is True or False of any kind without dimensions, else None."""
    if isinstance(value, bool):
        return value
    if getattr(value, "ndim", 0) != 0 or _dtype(value) != "bool":
        return None
    try:
        return bool(value)
    except RuntimeError:
        return None


def among(value: object, names: Collection[str]) -> bool:
    """Whether `value` is one of these texts; an array, which `in` compares element by element, is none."""
    return isinstance(value, str) and value in names


def shown(value: object) -> str:
    """A value as an error shows it: on one line, shortened if it is long; of a long integer its length in bits."""
    if isinstance(value, int) and value.bit_length() > MOST_BITS:
        return f"{'a negative' if value < 0 else 'an'} integer of {value.bit_length()} bits"
    try:
        text = repr(value)
    except RecursionError:
        return f"a deeply nested {type(value).__name__}"
    except Exception:  # whatever a class does in its repr, what is wrong with the value is to be said
        return f"a {type(value).__name__} that cannot be shown"
    return one_line(text)


def one_line(text: str) -> str:
    """A text on one line, without its middle if it is long."""
    text = " ".join(text.split()) if "\n" in text else text
    return text if len(text) <= LONGEST else f"{text[:FIRST]}...{text[-LAST:]}"


def printable(name: object) -> str:
    """A name or a path as it is, or escaped where a character of it would break a line or act on a terminal."""
    text = str(name)
    return text if text.isprintable() else ascii(text)


def shown_bytes(count: int) -> str:
    """A size in words, rounded up to three digits, so that what is shown as the least is enough."""
    for unit, base in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= base:
            step = max(base // 1000, 10 ** (len(str(count)) - 3))
            return f"{-(-count // step) * step / base:.3f}".rstrip("0").rstrip(".") + f" {unit}"
    return f"{count} bytes"


def got(name: str, value: object, of: str = "") -> str:
    """How an error about a value begins: its name, after what it is a parameter of, and the value."""
    return f"{of}: got {name}={shown(value)}" if of else f"{name}: got {shown(value)}"


def whole(
    name: str, value: Any, least: int, most: int | None = None, *, error: type[FedcoreError], of: str = ""
) -> int:
    """`value` as an int. Raises `error` unless it is a whole number from `least` to `most`, or of at least `least`."""
    number = as_whole(value)
    if number is None or number < least or (most is not None and number > most):
        expected = f"of at least {least}" if most is None else f"from {least} to {_limit(most)}"
        raise error(f"{got(name, value, of)}, expected a whole number {expected}")
    return number


def positive(name: str, value: Any, *, error: type[FedcoreError], of: str = "") -> float:
    """`value` as a float. Raises `error` unless it is a finite number above 0."""
    number = as_real(value)
    if number is None or not 0 < number < math.inf:
        raise error(f"{got(name, value, of)}, expected a finite number above 0")
    return number


def flag(name: str, value: Any, *, error: type[FedcoreError], of: str = "") -> bool:
    """`value` as a bool. Raises `error` unless it is True or False: a text such as "no" would count as true."""
    found = as_flag(value)
    if found is None:
        raise error(f"{got(name, value, of)}, expected True or False")
    return found


def keep(of: object, **fields: Any) -> None:
    """Give a frozen dataclass, while it is made, its fields as they were checked."""
    for name, value in fields.items():
        object.__setattr__(of, name, value)


def _dtype(value: Any) -> str:
    """The name of the dtype of an array, a tensor or a number of theirs; empty for what has none."""
    return str(getattr(value, "dtype", "")).removeprefix("torch.")


def _limit(most: int) -> str:
    """The end of a range: in digits as far as they are read, then as a power of two where it is one, or one less."""
    if most >> 33 and not most & (most - 1):
        return f"2^{most.bit_length() - 1}"
    return f"2^{most.bit_length()} - 1" if most >> 33 and not most & (most + 1) else str(most)
