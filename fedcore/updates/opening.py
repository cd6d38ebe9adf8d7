"""Updates as a caller gives them: made already, or paths to open."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from fedcore.errors import LayoutError
from fedcore.numbers import shown
from fedcore.updates.cohort import Cohort
from fedcore.updates.update import Update


def opened(update: Any, name: str) -> Update:
    """An update, by `Update.open` where it is a path. Raises LayoutError naming the argument."""
    if isinstance(update, (str, os.PathLike)):
        return Update.open(update)
    if not isinstance(update, Update):
        raise LayoutError(f"{name}: got a {type(update).__name__}, expected an Update or the path of an adapter")
    return update


def opened_all(updates: Any) -> Cohort | list[Any]:
    """The updates of a round; a `Cohort` stays one. Raises LayoutError for what is no sequence of them."""
    if isinstance(updates, Cohort):
        return updates
    if not isinstance(updates, Iterable) or isinstance(updates, (str, bytes, os.PathLike, Update)):
        raise LayoutError(f"updates: got {shown(updates)}, expected a sequence of updates or paths; put one in a list")
    if isinstance(updates, Mapping):
        raise LayoutError(
            f"updates: got a {type(updates).__name__}, expected a sequence of updates or paths; pass its values()"
        )
    return [Update.open(update) if isinstance(update, (str, os.PathLike)) else update for update in updates]
