"""Parameters of rules and methods from files and command lines: of the types that their dataclasses say."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

from fedcore.errors import RuleError
from fedcore.numbers import shown

_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def in_file(parameter: str) -> str:
    """A parameter as a configuration file spells it."""
    return f"parameter {parameter!r}"


def as_written(value: Any) -> str:
    """A value as errors show it, true and false as files spell them."""
    return str(value).lower() if isinstance(value, bool) else shown(value)


def check_types(name: str, kind: type, parameters: Mapping[str, Any], spelled: Callable[[str], str]) -> None:
    """Raise RuleError naming the first of `parameters` whose value is of another type than the field of `kind` says.

    Python takes true for 1 and any text for true, which no user of a file means. Names that are no fields pass, and so
    do fields of other types than whole numbers, numbers, true or false, text and choices of these.
    """
    hints = typing.get_type_hints(kind)
    for parameter, value in parameters.items():
        wanted = _choices(hints.get(parameter, Any))
        if wanted and not any(_fits(value, choice) for choice in wanted):
            words = " or ".join(_WORDS.get(choice) or repr(choice) for choice in wanted if choice is not type(None))
            raise RuleError(f"{name}: {spelled(parameter)}: got {as_written(value)}, expected {words}")


def _choices(hint: Any) -> list[Any]:
    """The plain types and values that a field takes; none where it takes others too."""
    if typing.get_origin(hint) is typing.Literal:
        return list(typing.get_args(hint))
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        each = [_choices(part) for part in typing.get_args(hint)]
        return [choice for part in each for choice in part] if all(each) else []
    return [hint] if hint in _WORDS or hint is type(None) else []


def _fits(value: Any, choice: Any) -> bool:
    """Whether a value is of a plain type, or is a value: True is no whole number, and 2 is a number."""
    if not isinstance(choice, type):
        return type(value) is type(choice) and value == choice
    return type(value) is choice or (choice is float and type(value) is int)
