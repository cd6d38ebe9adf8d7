"""The executor over true updates: factors in fp64, dense tensors as rows. Rules are the same as over rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fedcore.lora.delta import Combined, FactorPasses
from fedcore.rules.geometry import Gram
from fedcore.rules.rows import RowExecutor
from fedcore.updates import Cohort, Update


class DeltaExecutor:
    """Passes over true updates: factors by `FactorPasses`, dense tensors (modules_to_save) by `RowExecutor`."""

    def __init__(self, factors: FactorPasses | None, dense: RowExecutor | None, names: Sequence[str], references: int):
        self.factors, self.dense = factors, dense
        self.names, self.clients, self.references = tuple(names), len(names), references

    @classmethod
    def from_cohort(
        cls,
        cohort: Cohort,
        reference: Update | None,
        names: Sequence[str],
        *,
        with_reference: bool,
        backend: str | None,
        threads: int | None,
    ) -> DeltaExecutor:
        """Rows are s · B · A of each module, and the dense tensors; ranks and scales may differ from row to row.

        Without a reference adapter a rule that wants one sees zero. Raises LayoutError naming the client and module.
        """
        updates = list(cohort) if reference is None else [*cohort, reference]
        factors = FactorPasses(updates, [*names, "reference"][: len(updates)], len(cohort))
        dense = None
        if tensors := cohort[0].dense:
            passes: dict[str, Any] = {"with_reference": with_reference, "backend": backend, "threads": threads}
            dense = RowExecutor.from_cohort(cohort, reference, names, tensors, **passes)
        return cls(factors if factors.modules else None, dense, names, int(with_reference))

    def squared_norms(self) -> tuple[np.ndarray, np.ndarray]:
        """(clients,) fp64 squared distances to the reference, and bounds of their errors."""
        total, error = np.zeros(self.clients), np.zeros(self.clients)
        for part in (self.factors, self.dense):
            if part is not None:
                value, bound = part.squared_norms()
                total, error = total + value, error + bound
        return total, error

    def redone_on(self, mixed: bool) -> str:
        """What forms distances again: QR of LAPACK for factors, and what dense tensors are redone on."""
        parts = [] if self.factors is None else ["lapack"]
        return " + ".join(parts + ([] if self.dense is None else [self.dense.redone_on(mixed)]))

    def gram(self) -> Gram:
        """The Gram of all rows: that of the factors, not centred, plus that of the dense tensors."""
        rows = self.clients + self.references
        found = Gram(np.zeros((rows, rows)), np.zeros(rows), 0.0, 0.0) if self.dense is None else self.dense.gram()
        if self.factors is not None:
            matrix, error = self.factors.gram()
            # a zero reference has no factors: its row stays zero
            present = len(matrix)
            found.matrix[:present, :present] += matrix
            found.error[:present] += error
        return found

    def exact(self, pairs: np.ndarray, mix: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Squared distances by QR of the stacked factors, plus those of the dense tensors, and their error bounds."""
        total, error = np.zeros(len(pairs)), np.zeros(len(pairs))
        if self.dense is not None:
            total, error = self.dense.exact(pairs, mix)
        if self.factors is not None:
            rows = np.eye(self.clients + self.references) if mix is None else mix
            differences = (rows[pairs[:, 0]] - rows[pairs[:, 1]])[:, : len(self.factors.updates)]
            value, bound = self.factors.distances(differences)
            total, error = total + value, error + bound
        return total, error

    def weighted_sum(self, coefficients: np.ndarray, divisor: float) -> tuple[Combined, list[np.ndarray]]:
        """The combined factors, truncated, and the sums of the dense tensors."""
        combined = Combined({}, {}, {})
        if self.factors is not None:
            combined = self.factors.combine(coefficients[: len(self.factors.updates)], divisor)
        return combined, [] if self.dense is None else self.dense.weighted_sum(coefficients, divisor)
