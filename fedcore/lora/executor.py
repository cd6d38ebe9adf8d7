"""The executor over true updates: factors in fp64, dense tensors as rows. Rules are the same as over rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from fedcore.backends import requested
from fedcore.errors import BackendError
from fedcore.lora.delta import FactorPasses, Rank
from fedcore.lora.order import TILE_BYTES, order_statistic
from fedcore.lora.reading import WORKERS
from fedcore.lora.result import Combined
from fedcore.ops.lora_gram import gram_bytes
from fedcore.ops.rows import thread_count
from fedcore.rules.budget import MATRICES
from fedcore.rules.files import FileExecutor, budget_for
from fedcore.rules.order_statistic import OrderStatistic
from fedcore.rules.rows import RowExecutor
from fedcore.rules.statistics import Gram
from fedcore.updates import Cohort, Update


class DeltaExecutor:
    """Passes over true updates: factors by `FactorPasses`, dense tensors (modules_to_save) by `RowExecutor`."""

    def __init__(
        self,
        factors: FactorPasses | None,
        dense: RowExecutor | None,
        names: Sequence[str],
        references: Mapping[str, Update | None],
        **options: Any,
    ):
        self.factors, self.dense, self.options = factors, dense, options
        self.names, self.clients, self.references = tuple(names), len(names), len(references)
        given = [self.clients + k for k, update in enumerate(references.values()) if update is not None]
        #: the rows that have factors: a zero reference has none
        self.present = np.array([*range(self.clients), *given])

    @classmethod
    def from_cohort(
        cls,
        cohort: Cohort,
        references: Mapping[str, Update | None],
        names: Sequence[str],
        *,
        start: Update | None = None,
        order: bool = False,
        dense: bool = False,
        matrices: int = MATRICES,
        rank: Rank = None,
        **passes: Any,
    ) -> DeltaExecutor:
        """Rows are s · B · A of each module, and the dense tensors; ranks and scales may differ from row to row.

        References are by name; None is zero. `start` is the adapter that the round started from: what a row without a
        module has there (fedcore/lora/factor_rows.py). `passes` is what `RowExecutor.from_cohort` takes beside the
        rows, or, where `memory` is among it, `FileExecutor.from_files`: factors then are read from their files module
        by module, dense tensors in tiles. `order`: an order statistic is to come, which needs room for a dense Δ, and
        `dense` for those of all modules; `matrices` as in `FileExecutor.from_files`.
        `rank` of results is as `FactorPasses` has it. Raises LayoutError naming the client and module, BudgetError with
        the least that works, BackendError where Triton was asked for and would have nothing to do.
        """
        given = {name: update for name, update in references.items() if update is not None}
        zero_first = bool(references) and next(iter(references.values())) is None
        if passes.get("memory") is not None:
            memory, threads = passes["memory"], passes["threads"]
            _check_budget(cohort, references.values(), start, memory, threads, matrices, order, dense)
        told = {name: passes.get(name) for name in ("progress", "backend", "threads")}
        rows, who = [*cohort, *given.values()], [*names, *given]
        factors = FactorPasses(rows, who, len(cohort), start=start, zero_first=zero_first, rank=rank, **told)
        plain: RowExecutor | None = None
        if tensors := cohort[0].dense:
            if "memory" in passes:
                plain = FileExecutor.from_files(cohort, references, names, tensors, matrices=matrices, **passes)
            else:
                plain = RowExecutor.from_cohort(cohort, references, names, tensors, **passes)
        if plain is None and not (order or matrices) and requested(passes["backend"]) == "triton":
            raise BackendError(
                "backend: got 'triton' for a rule that asks no kernel of factors in space='delta', whose norms and "
                "sums are LAPACK's; leave the backend out, or take space='parameters'"
            )
        options = {name: passes[name] for name in ("backend", "threads")}
        return cls(factors if factors.modules else None, plain, names, references, **options)

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

    def gram(self, origin: int | None = None) -> Gram:
        """The Gram of all rows: that of the factors in fp64, not centred, plus that of the dense tensors."""
        rows = self.clients + self.references
        found = (
            Gram(np.zeros((rows, rows)), np.zeros(rows), 0.0, 0.0) if self.dense is None else self.dense.gram(origin)
        )
        if self.factors is not None:
            matrix, error = self.factors.gram()
            found.matrix[np.ix_(self.present, self.present)] += matrix
            found.error[self.present] += error
        return found

    def exact(self, pairs: np.ndarray, mix: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Squared distances by QR of the stacked factors, plus those of the dense tensors, and their error bounds."""
        total, error = np.zeros(len(pairs)), np.zeros(len(pairs))
        if self.dense is not None:
            total, error = self.dense.exact(pairs, mix)
        if self.factors is not None:
            rows = np.eye(self.clients + self.references) if mix is None else mix
            for start in range(0, len(pairs), len(rows)):  # their differences take no more than a Gram at a time
                block = slice(start, start + len(rows))
                differences = rows[pairs[block, 0]]
                differences -= rows[pairs[block, 1]]
                value, bound = self.factors.distances(differences[:, self.present])
                total[block] += value
                error[block] += bound
        return total, error

    def weighted_sum(self, coefficients: np.ndarray, divisor: float) -> tuple[Combined, list[np.ndarray]]:
        """The combined factors, truncated, and the sums of the dense tensors."""
        combined = Combined({}, {}, {})
        if self.factors is not None:
            combined = self.factors.combine(coefficients[self.present], divisor)
        return combined, [] if self.dense is None else self.dense.weighted_sum(coefficients, divisor)

    def order_statistic(self, decided: OrderStatistic, dense: bool) -> tuple[Combined, list[np.ndarray]]:
        """The statistic of each Δ, truncated or dense, and of the dense tensors."""
        combined = Combined({}, {}, {})
        if self.factors is not None:
            rows = self.clients + self.references
            combined = order_statistic(self.factors, decided, self.present, rows, dense, **self.options)
        return combined, [] if self.dense is None else self.dense.order_statistic(decided)


def _check_budget(
    cohort: Cohort,
    references: Iterable[Update | None],
    start: Update | None,
    memory: Any,
    threads: int | None,
    matrices: int,
    order: bool,
    dense: bool,
) -> None:
    """Raise BudgetError unless there is room for the factors of the largest module of all updates, in fp64.

    Factors exist four times for a moment: as they are read, stacked, and in the QR of the stack. Beside them lie two
    Grams and their product for each module that is worked on, or what `lora_gram` takes, for a rule that needs a Gram.
    An order statistic needs the tiles of products, and Δ with its SVD, some six matrices of its size; kept dense, all
    of them exist twice, as results and in an update. A decision over a Gram holds `matrices` of (n, n). The least that
    the error names is enough for the dense tensors, too, which have their tiles when no factors are there.
    """
    rows, sizes, kept = [*cohort, *references], [0], 0
    updates = [update for update in rows if update is not None]
    modules = {module: pair for update in updates for module, pair in update.modules.items()}
    lacking = {} if start is None else start.modules
    for module, first in modules.items():
        ranks = sum(update.modules.get(module, lacking.get(module, first)).rank for update in updates)
        formed = 6 * 8 * first.d_in * first.d_out + 4 * TILE_BYTES if order else 0
        kept += 2 * 4 * first.d_in * first.d_out if dense else 0
        grams = 3 * WORKERS * 8 * ranks**2
        if matrices:
            grams = max(grams, gram_bytes(ranks, first.d_out, first.d_in, thread_count(threads)))
        sizes.append(4 * 8 * ranks * (first.d_in + first.d_out) + grams + formed)
    largest = max((update.layout for update in updates), key=lambda layout: int(layout.decoded().nbytes.sum()))
    budget = budget_for(largest, updates, memory, matrices, threads)
    budget.least = budget.held + kept + max(sizes)
    if tensors := cohort[0].dense:
        beside = budget_for(cohort.layout_of(tensors), rows, memory, matrices, threads)
        budget.least = max(budget.least, beside.least)
    budget.check(f"the LoRA factors of {len(updates)} updates, module by module")
