"""How far each client moved: for the report alone, no decision looks at it."""

from __future__ import annotations

import numpy as np

from fedcore import ops
from fedcore.federation.start import Start
from fedcore.updates import Cohort


def change_norms(cohort: Cohort, start: Start) -> dict[str, float]:
    """Euclidean norm of each client's parameters minus those that it started from, in the cohort's order."""
    alike: dict[int, list[str]] = {}
    for client in cohort.client_ids:
        alike.setdefault(id(start.of(client)), []).append(client)
    by_id = dict(zip(cohort.client_ids, cohort, strict=True))
    norms: dict[str, float] = {}
    for clients in alike.values():
        group, reference = Cohort([by_id[client] for client in clients]), Cohort([start.of(clients[0])])
        squares = np.zeros(len(group))
        for (_, rows), (_, center) in zip(group.tables(), reference.tables(), strict=True):
            squares += ops.squared_norms(rows, center=center.columns(0, 0, center.d))
        norms |= dict(zip(group.client_ids, np.sqrt(squares).tolist(), strict=True))
    return {client: norms[client] for client in cohort.client_ids}
