"""In what a configuration differs from the one that a run began with, by key and in words for an error."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedcore.federation.config import Config
from fedcore.federation.config_file import PATHS
from fedcore.federation.sealing import KEYS
from fedcore.numbers import shown

#: what changes nothing of a result: where it goes, and how many train at a time, which memory may make fewer and
#: which like another machine changes results in their rounding alone
_FREE = ("run.output", "run.workers")
#: where a private run's budget and sealing key lie: compared whole, as a copy of a budget is another, and never shown
_HIDDEN = tuple(f"privacy.{key}" for key in KEYS)
#: files that may have moved, so that their names alone count: what is in them has a digest or is read anew
_FILES = tuple(key for table, name in PATHS if (key := f"{table}.{name}") not in (*_FREE, *_HIDDEN))
_ABSENT = object()


def change(began: Config, now: Config, place: str) -> str:
    """The first key that differs with both its values, and the names of the others; "" where nothing that counts does.

    place: where the configuration that the run began with is kept, for the error
    """
    before, after = dict(_flat(began.model_dump(exclude_none=True))), dict(_flat(now.model_dump(exclude_none=True)))
    differ = [key for key in {**after, **before} if key not in _FREE and _counts(key, before) != _counts(key, after)]
    if not differ:
        return ""
    first, *others = differ
    if first in _HIDDEN:
        said = f"{first}: differs from what this run began with ({place})"
    else:
        got = f"got {shown(after[first])}" if first in after else "missing"
        expected = f"with {shown(before[first])}" if first in before else "without it"
        said = f"{first}: {got}, this run began {expected} ({place})"
    if not others:
        return said
    return f"{said}, and {', '.join(others)} {'differs' if len(others) == 1 else 'differ'}"


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """(key as errors write it, value) of all that is in tables and lists of tables."""
    if isinstance(value, dict) and (value or not key):  # one without keys is a value: `parameters = {}` is not left out
        for name, inner in value.items():
            yield from _flat(inner, f"{key}.{name}" if key else name)
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for index, inner in enumerate(value):
            yield from _flat(inner, f"{key}[{index}]")
    else:
        yield key, value


def _counts(key: str, values: dict[str, Any]) -> Any:
    """What of a value is compared."""
    value = values.get(key, _ABSENT)
    if not isinstance(value, str) or not key.endswith(_FILES):
        return value
    path = Path(value)
    return path.name if path.is_absolute() else value
