"""Checks of what rules are given: one line that names the rule, what it got and what fits.

What fits comes back as Python's own number, and rules keep that: a NumPy integer would overflow in their arithmetic and
stand in no JSON file.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np

from fedcore.errors import RuleError


def integer(value: Any) -> int | None:
    """`value` as an int, where it is an integer of any kind; True and False are none."""
    if isinstance(value, (bool, np.bool_)):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def real(value: Any) -> float | None:
    """`value` as a float, where it is a number of any kind that a float can hold; True and False are none."""
    number = float(value) if isinstance(value, (float, np.floating)) else integer(value)
    try:
        return None if number is None else float(number)
    except OverflowError:
        return None


def check_count(rule: str, name: str, value: Any, least: int) -> int:
    """`value` as an int. Raises RuleError unless it is an integer of at least `least`."""
    number = integer(value)
    if number is None or number < least:
        raise RuleError(f"{rule}: got {name}={value!r}, expected an integer of at least {least}")
    return number


def check_bool(rule: str, name: str, value: Any) -> bool:
    """`value` as a bool. Raises RuleError unless it is True or False: a text such as "no" would count as true."""
    if not isinstance(value, (bool, np.bool_)):
        raise RuleError(f"{rule}: got {name}={value!r}, expected True or False")
    return bool(value)


def check_positive(rule: str, name: str, value: Any) -> float:
    """`value` as a float. Raises RuleError unless it is a finite number above 0."""
    number = real(value)
    if number is None or not math.isfinite(number) or number <= 0:
        raise RuleError(f"{rule}: got {name}={value!r}, expected a finite number above 0")
    return number


def keep(rule: object, **parameters: Any) -> None:
    """Give a frozen rule its parameters as they were checked."""
    for name, value in parameters.items():
        object.__setattr__(rule, name, value)


def check_minority(rule: str, f: int, clients: int) -> None:
    """Raise RuleError, with the largest f for this n, unless 2f < n."""
    check_bound(rule, f, clients, "2f < n", (clients - 1) // 2, least=1)


def check_bound(rule: str, f: int, clients: int, bound: str, largest: int, least: int) -> None:
    """Raise RuleError unless f ≤ largest; `bound` is the inequality in words, `least` the n that f = 0 needs."""
    if f <= largest:
        return
    remedy = (
        f"the largest f for n={clients} is {largest}"
        if largest >= 0
        else f"no f fits: even f=0 needs n of at least {least}"
    )
    raise RuleError(f"{rule}: got f={f} with n={clients} clients, expected {bound}; {remedy}")
