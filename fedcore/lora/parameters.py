"""What a method's parameters must be: one check, so that a bool is no number and a string no bool."""

from __future__ import annotations

import math

from fedcore.errors import RuleError


def check_whole(method: str, name: str, value: object, least: int = 1, *, optional: bool = False) -> None:
    """Raise RuleError unless `value` is an int of at least `least`, or None where that is allowed."""
    if optional and value is None:
        return
    if type(value) is not int or value < least:
        raise RuleError(f"{method}: got {name} {value!r}, expected a whole number of at least {least}")


def check_flag(method: str, name: str, value: object) -> None:
    """Raise RuleError unless `value` is True or False."""
    if type(value) is not bool:
        raise RuleError(f"{method}: got {name} {value!r}, expected true or false")


def check_positive(method: str, name: str, value: object) -> None:
    """Raise RuleError unless `value` is a finite number above 0."""
    if type(value) not in (int, float) or not 0 < value < math.inf:  # type: ignore[operator]
        raise RuleError(f"{method}: got {name} {value!r}, expected a finite number above 0")
