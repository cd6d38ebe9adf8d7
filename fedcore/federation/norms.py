"""How far each client moved: for the report alone, no decision looks at it."""

from __future__ import annotations

import numpy as np

from fedcore import ops
from fedcore.updates import Cohort, Update


def change_norms(cohort: Cohort, broadcast: Update) -> dict[str, float]:
    """Euclidean norm of each client's parameters minus the broadcast ones."""
    reference = Cohort([broadcast])
    squares = np.zeros(len(cohort))
    for (_, rows), (_, center) in zip(cohort.tables(), reference.tables(), strict=True):
        squares += ops.squared_norms(rows, center=center.columns(0, 0, center.d))
    return dict(zip(cohort.client_ids, np.sqrt(squares).tolist(), strict=True))
