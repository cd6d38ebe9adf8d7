"""Who else is to be left out with the client whose NaN ended an attempt: all of them from one pass."""

from __future__ import annotations

from typing import Any

from fedcore.engine.combination import Space
from fedcore.errors import NonFiniteError
from fedcore.lora.factor_rows import FactorRows
from fedcore.rules.files import FileExecutor
from fedcore.rules.nonfinite import nonfinite_rows
from fedcore.rules.rows import RowExecutor
from fedcore.updates import Cohort, Update


def broken_clients(
    cohort: Cohort, space: Space, error: NonFiniteError, passes: dict[str, Any], start: Update | None
) -> dict[int, NonFiniteError]:
    """row -> the error that names what a client sent, of the one that `error` names and of all that would follow it.

    It looks where the attempt ended, so that each client is named for what would have ended one: at the rows that its
    pass read, or at the factors of all clients. In "delta" space an adapter with dense tensors beside its factors can
    end two attempts.

    passes   what executors take beside the rows
    start    what the clients moved from
    """
    names = [f"client {client!r}" for client in cohort.client_ids]
    if error.read:
        executor: RowExecutor
        tensors = cohort[0].dense if space == "delta" else None
        if "memory" in passes:
            executor = FileExecutor.from_files(cohort, {}, names, tensors, matrices=0, **passes)
        else:
            executor = RowExecutor.from_cohort(cohort, {}, names, tensors, **passes)
        found = nonfinite_rows(executor, [row for row in sorted(set(error.read)) if row < len(cohort)])
    else:
        found = FactorRows(list(cohort), names, len(cohort), start, passes.get("progress")).broken()
    return {error.row: error} | found
