"""Checks of what rules are given: one line that names the rule, what it got and what fits."""

from __future__ import annotations

from typing import Any

from fedcore.errors import RuleError
from fedcore.numbers import flag, positive, whole

#: of whatever a rule counts; reports and their readers in other languages hold it in a float64
MOST_COUNT = 2**53


def check_count(rule: str, name: str, value: Any, least: int) -> int:
    """`value` as an int. Raises RuleError unless it is a whole number from `least` to MOST_COUNT."""
    return whole(name, value, least, MOST_COUNT, of=rule, error=RuleError)


def check_bool(rule: str, name: str, value: Any) -> bool:
    """`value` as a bool. Raises RuleError unless it is True or False."""
    return flag(name, value, of=rule, error=RuleError)


def check_positive(rule: str, name: str, value: Any) -> float:
    """`value` as a float. Raises RuleError unless it is a finite number above 0."""
    return positive(name, value, of=rule, error=RuleError)


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
