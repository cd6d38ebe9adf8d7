"""A Gram that grows as rows arrive, in files, and is at hand when the last of them is there."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from fedcore import ops
from fedcore.numbers import shown
from fedcore.rules.files import FileExecutor, budget_for
from fedcore.rules.given_rows import row_of
from fedcore.rules.statistics import UNIT, Gram
from fedcore.updates import Update
from fedcore.updates.filepieces import file_rows

#: rows that wait before the Gram grows by them: at least so many, and a quarter of those that it has
BATCH, SHARE = 16, 4
#: how much farther from the centre than from each other clients may lie before the Gram is made again about another
FAR = 16.0


class GrowingGram:
    """The Gram of the references and of the clients in the order of their arrival, part by part, as rows arrive."""

    def __init__(self, references: dict[str, Update | None], passes: dict[str, Any], origin: str | None = None):
        self.references, self.passes, self.origin = references, passes, origin
        self.clients = 0
        given = [k for k, update in enumerate(references.values()) if update is not None]
        #: the row it is centred at: that of the rule's origin, or the first reference given, or else the first client
        self.center = given[0] if given else len(references)
        if origin is not None:
            self.center = list(references).index(origin)
        self.matrices: list[np.ndarray] = []
        self.square, self.columns = 0.0, 0

    @property
    def nbytes(self) -> int:
        """Bytes of the products."""
        return sum(matrix.nbytes for matrix in self.matrices)

    @property
    def batch(self) -> int:
        """Rows that wait before it grows."""
        return max(BATCH, self.clients // SHARE)

    def waiting(self, clients: int) -> int:
        """How many of so many clients it does not have yet."""
        return clients - self.clients

    def grow(self, updates: list[Update]) -> None:
        """Bring in the clients that it lacks. Raises NonFiniteError, BudgetError, and what reading files raises."""
        if not self.waiting(len(updates)):
            return
        before, rows = (len(self.references) + count for count in (self.clients, len(updates)))
        first = before if self.clients else 0
        executor = self._executor(updates)
        read, grown, square = range(rows), [], 0.0
        for k, part in enumerate(executor.parts):
            total = np.zeros((rows, rows))
            if first:
                total[:first, :first] = self.matrices[k]
            norm = np.zeros(1)
            with executor.tiles(part, read, "gram") as tiles:
                for tile in tiles:
                    center = row_of(tile.rows, self.center)
                    gram = partial(ops.gram, first=first) if first else ops.gram
                    total = executor.statistic(part, tile, read, gram, tile.rows, center, total)
                    if not first:
                        norm = executor.statistic(part, tile, read, ops.squared_norms, center, None, norm)
            grown.append(total)
            square += float(norm[0])
        square, columns = self.square if first else square, sum(part.d for part in executor.parts)
        # after the last call, so that no interruption comes in between
        self.matrices, self.clients, self.square, self.columns = grown, rows - len(self.references), square, columns

    def _executor(self, updates: list[Update]) -> FileExecutor:
        """One over the references and then the clients, all of them plain rows."""
        layout = updates[0].layout
        who = [*(f"the {name}" for name in self.references), *(f"client {shown(u.client_id)}" for u in updates)]
        rows = [*self.references.values(), *updates]
        options = dict(self.passes)
        budget = budget_for(layout, rows, options.pop("memory"), 1, options["threads"])
        budget.check(f"the Gram of {len(who)} rows")
        progress = options.pop("progress")
        return FileExecutor(file_rows(rows, layout, who), who, {}, budget, progress, **options)

    def gram(self, order: list[int]) -> Gram | None:
        """What rules see, clients in this order and then references; None where the centre lies far from the clients.

        Errors grow with the distance from the centre, and doubtful pairs are read again: one pass about a better centre
        is cheaper than that, and a client that comes first must not be able to ask for it of every pair. A rule that
        asks for its origin as the centre gets that, however far clients lie.
        """
        rows = [*(len(self.references) + k for k in order), *range(len(self.references))]
        matrix = np.add.reduce(self.matrices)[np.ix_(rows, rows)]
        n, square = len(order), matrix.diagonal()
        if n > 2 and self.origin is None:
            apart = square[:n, None] + square[None, :n] - 2 * matrix[:n, :n]
            if np.median(square[:n]) > FAR * np.median(apart, axis=1).min():
                return None
        rounding = (self.columns + 4) * UNIT
        return Gram(matrix, ops.gram_epsilon(self.passes["backend"]) * square, float(np.sqrt(self.square)), rounding)
