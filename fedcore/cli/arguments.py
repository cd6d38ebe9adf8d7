"""What `fedcore aggregate` reads out of the texts of its options."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import typer

from fedcore.errors import LayoutError, RuleError, WeightError

#: how a command line spells a bool, in any case
_TRUTHS = {"true": True, "yes": True, "false": False, "no": False}


def settings_of(option: str, texts: list[str]) -> dict[str, Any]:
    """NAME=VALUE as a rule takes it: an integer, a number, true or false (yes, no), else text. Raises RuleError."""
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise RuleError(f"{option}: got {text!r}, expected NAME=VALUE such as m=3")
        if name in found:
            raise RuleError(f"{option}: {name} is given twice, expected one value; leave out the other")
        if (word := value.lower()) in _TRUTHS:
            found[name] = _TRUTHS[word]
            continue
        try:
            # a number as JSON writes it; null, lists and quotes are no settings of a rule
            plain = json.loads(value)
            found[name] = plain if isinstance(plain, (int, float)) else value
        except ValueError:
            found[name] = value
    return found


def stage_of(text: str) -> dict[str, Any]:
    """RULE:NAME=VALUE,... of --before as the table of a configuration."""
    rule, _, rest = text.partition(":")
    return settings_of(f"--before {rule}", rest.split(",") if rest else []) | {"rule": rule}


def weights_of(text: str, directories: list[Path]) -> dict[str, float] | None:
    """Weight of each directory, or None to weigh by the example counts that the adapters carry."""
    if text == "counts":
        return None
    if text == "equal":
        return {str(path): 1.0 for path in directories}
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        raise WeightError(f"--weights: got {text!r}, expected 'counts', 'equal' or numbers such as 1,2,3") from None
    if len(values) != len(directories):
        raise WeightError(f"--weights: got {len(values)} numbers for {len(directories)} directories; give one for each")
    return {str(path): value for path, value in zip(directories, values, strict=True)}


def check_each_once(directories: list[Path]) -> None:
    """Raise LayoutError where two of the paths lead to one directory."""
    found: dict[str, Path] = {}
    for path in directories:
        first = found.setdefault(os.path.realpath(path), path)
        if first is not path:
            also = "" if str(first) == str(path) else f" ({first} and {path} are one directory)"
            raise LayoutError(f"{first} is given twice{also}; give each adapter once")


def check_one_of(option: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise typer.BadParameter(f"got {value!r}, expected one of {', '.join(choices)}", param_hint=option)
