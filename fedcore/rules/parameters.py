"""Checks of what rules are given: one line that names the rule, what it got and what fits."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fedcore.errors import RuleError


def check_count(rule: str, name: str, value: Any, least: int) -> None:
    """Raise RuleError unless `value` is an integer of at least `least`."""
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < least:
        raise RuleError(f"{rule}: got {name}={value!r}, expected an integer of at least {least}")


def check_bool(rule: str, name: str, value: Any) -> None:
    """Raise RuleError unless `value` is True or False: a text such as "no" would count as true."""
    if not isinstance(value, (bool, np.bool_)):
        raise RuleError(f"{rule}: got {name}={value!r}, expected True or False")


def check_positive(rule: str, name: str, value: Any) -> None:
    """Raise RuleError unless `value` is a finite number above 0."""
    number = isinstance(value, (int, float, np.floating, np.integer)) and not isinstance(value, bool)
    if not (number and math.isfinite(value) and value > 0):
        raise RuleError(f"{rule}: got {name}={value!r}, expected a finite number above 0")


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
