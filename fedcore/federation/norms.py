"""How far each client moved: for the report alone, no decision looks at it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from fedcore import ops
from fedcore.federation.start import Start
from fedcore.updates import Cohort, Update
from fedcore.updates.directory import map_file


def change_norms(updates: Iterable[Update], start: Start) -> dict[str, float]:
    """Euclidean norm of each client's parameters minus those that it started from, in the order of the updates."""
    centers: dict[int, list[np.ndarray]] = {}
    norms: dict[str, float] = {}
    for update in updates:
        own = start.of(update.client_id)
        if id(own) not in centers:
            centers[id(own)] = [table.columns(0, 0, table.d) for _, table in Cohort([own]).tables()]
        square = 0.0
        for (_, row), center in zip(Cohort([_mapped(update)]).tables(), centers[id(own)], strict=True):
            square += float(ops.squared_norms(row, center=center)[0])
        norms[update.client_id] = math.sqrt(square)
    return norms


def _mapped(update: Update) -> Update:
    """The update where ops read it. One in a file is mapped while it is looked at: most maps keep their file open."""
    if update.mapped or update.file is None:
        return update
    return replace(update, buffer=map_file(Path(update.file.path)))
