"""The executor over true updates: what rules ask of Δ_i = s_i B_i A_i, answered from the factors.

    ⟨Δ_i, Δ_j⟩ = s_i s_j ⟨B_iᵀ B_j, A_i A_jᵀ⟩,   summed over modules, plus the dense tensors (modules_to_save) as rows

so distances, norms and coefficients do not change with the gauge (B M, M⁻¹ A), and Δ is never formed. The reference
adapter is one more row, so distances and clips are of Δ_i − Δ_ref. All in fp64.

With u = 2⁻⁵³, all errors grow with P_i = s_i Σ_a ‖b_a‖‖a_a‖ over the rank-one terms of a module. A client could make
that as large as it likes; fedcore/lora/measure.py sees to it that P_i ≤ 32 ‖Δ_i‖, so an error bound is wide only where
the update itself is large. Each block of the Gram is off by at most γ P_i P_j with γ = (d_in + d_out + r² + 8) u
(Higham 2002, Accuracy and Stability of Numerical Algorithms, §3.5), so |D̂_ij − D_ij| ≤ Σ γ (P_i + P_j)² ≤
Σ 2 γ (P_i² + P_j²) over modules. A redo takes thin QRs of the stacked difference, ‖Σ v_k Δ_k‖ = ‖R_B R_Aᵀ‖, whose error
grows with P and not with its square: at most (d_in + d_out + R²) u Σ |v_k| P_k, far above Householder's √(d R) u in
practice. Rows equal within that are a tie.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np

from fedcore.dtypes import name_of
from fedcore.lora.factor_rows import FactorRows, Row
from fedcore.lora.measure import RATIO, Measure, change_norm, product_norm, rebuild_rows, refuse_cancelling
from fedcore.lora.reading import Terms, each_module
from fedcore.lora.result import Combined, ModuleReport, whole
from fedcore.lora.stacks import check_fits, dtype_of, read_factors
from fedcore.ops import lora_gram
from fedcore.ops.lora_cores import Grams, term_grams
from fedcore.ops.lora_truncate import Leading, balanced, core_for, leading
from fedcore.rules.statistics import UNIT
from fedcore.updates import Update

#: of a result: a rank, or one for each module: the highest of the clients that count (None), or "full"
Rank = int | Literal["full"] | None


class FactorPasses(FactorRows):
    """Passes over the factors of a cohort: inner products, direct distances, and truncated sums.

    updates      clients, then the references that are given; modules, ranks and scales may differ
    names        what messages call each of them
    clients      how many of them are clients
    start        the adapter that the round started from: what a row without a module has there. None is zero
    zero_first   the first reference is zero, which is no update

    progress     called as progress(work, done, total): modules of one pass
    backend      of the ops, as they take it; norms, sums and distances that are formed again are LAPACK's on any
    threads      of compiled passes; None: as the ops choose
    rank         of what sums are truncated to; None: the highest of the clients that count; "full": not at all

    A zero reference adds nothing to a sum. Raises as `FactorRows`, and LayoutError for a rank that no Δ of a module's
    size has.
    """

    def __init__(
        self,
        updates: Sequence[Update],
        names: Sequence[str],
        clients: int,
        *,
        start: Update | None = None,
        zero_first: bool = False,
        progress: Callable[[str, int, int], object] | None = None,
        backend: str | None = None,
        threads: int | None = None,
        rank: Rank = None,
    ):
        super().__init__(updates, names, clients, start, progress)
        for module in self.modules if isinstance(rank, int) else ():
            assert isinstance(rank, int)
            pair = self.like[module].modules[module]
            check_fits(rank, module, pair.d_out, pair.d_in)
        self.rank, self.zero_first = rank, zero_first
        self.backend, self.threads = backend, threads

    def gram(self) -> tuple[np.ndarray, np.ndarray]:
        """(matrix (rows, rows), error (rows,)): inner products of the updates, and e with |D̂_ij − D_ij| ≤ e_i + e_j."""
        error = np.zeros(len(self.updates))
        for m, module in enumerate(self.modules):
            pairs = [update.modules[module] for update in self.updates]
            ranks, sizes = np.array([pair.rank for pair in pairs]), pairs[0].d_in + pairs[0].d_out
            # P: orthogonal terms of a rebuilt row have Σ σ ≤ √r ‖Δ‖; the others' was measured, as part of `rounding`
            rebuilt = np.sqrt(ranks * self.sizes.square[m])
            size = np.where(self.sizes.rebuilt[m], rebuilt, self.sizes.rounding[m] / ((sizes + ranks**2) * UNIT))
            error += 2 * (sizes + ranks.max() ** 2 + 8 + len(self.modules)) * UNIT * np.square(size)
        sent = (factors for _, factors in self.as_sent("gram"))
        return lora_gram(sent, names=self.modules, backend=self.backend, threads=self.threads), error

    def squared_norms(self) -> tuple[np.ndarray, np.ndarray]:
        """‖Δ_i − Δ_ref‖², or ‖Δ_i‖² where the reference is zero: values (clients,) and bounds of their errors.

        The bounds hold for the exact products of the factors that were sent, rebuilt or not.
        """
        total, error = np.zeros(self.clients), np.zeros(self.clients)
        for m, module in enumerate(self._told("norms")):
            reference = None
            if len(self.updates) > self.clients and not self.zero_first:
                reference = self._factors(self.updates[self.clients], module, self.clients, self.names[self.clients])
            for i in range(self.clients):
                slack = float(self.sizes.rounding[m, i])
                if reference is None:
                    norm = float(np.sqrt(self.sizes.square[m, i]))
                    # a Gram's norm is off by RATIO times what a product by QR is
                    slack *= 1 if self.sizes.rebuilt[m, i] else RATIO
                else:
                    norm, bound = change_norm(self._factors(self.updates[i], module, i, self.names[i]), reference)
                    slack += bound + float(self.sizes.rounding[m, self.clients])
                total[i] += norm**2
                error[i] += 2 * norm * slack + slack**2
        return total, error

    def distances(self, differences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """‖Σ_k v_k Δ_k‖² for each row v of `differences` (m, rows): values (m,) and bounds of their errors (m,)."""
        total, error = np.zeros(len(differences)), np.zeros(len(differences))
        used = np.flatnonzero(differences.any(0))
        if not used.size:
            return total, error
        for _, stack in self._stacks("pairs", used):
            for p, v in enumerate(differences[:, used]):
                b, a = stack.combine(v)
                norm, slack = product_norm(b, a)
                total[p] += norm**2
                error[p] += 2 * norm * slack + slack**2
        return total, error

    def combine(self, coefficients: np.ndarray, divisor: float) -> Combined:
        """Σ c_k Δ_k / divisor, each module truncated to `rank`.

        coefficients (rows,) fp32. Where one client alone counts its factors are returned as they are, bit for bit, and
        so are the start's in modules that it lacks, where they have the dtype of the clients that have these. Otherwise
        factors are rounded once to the clients' dtype and the scale is the first client's. Modules that no row which
        counts has are left out: a client that is not chosen adds none.
        """
        counted = np.flatnonzero(coefficients)
        clients = [int(i) for i in counted if i < self.clients]
        index = [int(i) for i in counted] or [0]
        alone = len(counted) == 1 and len(clients) == 1 and float(coefficients[counted[0]]) == divisor
        held, result = self.held(counted.tolist()), Combined({}, {}, {})
        share = coefficients.astype(np.float64) / divisor
        if alone and self._is_result(self.updates[clients[0]]):
            for m, module in enumerate(self._told("combination")):
                if module in self.updates[clients[0]].zero:
                    continue
                pair, like = (update := self.updates[clients[0]]).modules[module], self.like[module]
                if any(name_of(update.tensors[name].dtype) != dtype_of(like, name) for name in (pair.a, pair.b)):
                    factors = self._factors(update, module, clients[0], self.names[clients[0]])
                    result.keep(module, like, whole(*factors, like.modules[module].scale))
                    continue
                norm = float(np.sqrt(self.sizes.square[m, clients[0]]))
                result.tensors.update({name: update.tensors[name] for name in (pair.a, pair.b)})
                result.modules[module] = ModuleReport(pair.rank, norm, 0.0, 0.0, 0.0, "kept")
                result.scaling[module] = pair.scale
            return result
        if self.rank == "full":
            for module, stack in self._stacks("combination", np.array(index)):
                if module not in held:
                    continue
                like = self.like[module]
                result.keep(module, like, whole(*stack.combine(share[index]), like.modules[module].scale))
            return result
        for module, found in self._leading(index, share, clients):
            if module not in held:
                continue
            like = self.like[module]
            result.keep(module, like, balanced(found, self.rank_of(module, clients), like.modules[module].scale))
        return result

    def _is_result(self, row: Row) -> bool:
        """Whether the factors that one row has are a result as they are."""
        has = (pair for module, pair in row.modules.items() if module not in row.zero)
        return not isinstance(self.rank, int) or all(pair.rank == self.rank for pair in has)

    def rank_of(self, module: str, clients: Sequence[int]) -> int:
        """What a sum over these clients is truncated to."""
        if isinstance(self.rank, int):
            return self.rank
        # clips to almost nothing can leave the reference alone, or no row at all: the zero update
        having = [[i for i in rows if module not in self.updates[i].zero] for rows in (clients, range(self.clients))]
        ranks = [self.updates[i].modules[module].rank for i in having[0] or having[1]]
        return max(ranks, default=self.like[module].modules[module].rank)

    def _leading(
        self, index: Sequence[int], share: np.ndarray, clients: Sequence[int]
    ) -> Iterator[tuple[str, Leading]]:
        """Each module's leading triplets of Σ share_k Δ_k over the rows in `index`.

        Where nothing has asked for `sizes` yet, every row is measured on the way, so that files are read once.
        """
        known = "sizes" in self.__dict__
        sizes = self.sizes if known else Measure.empty(len(self.modules), len(self.updates))
        rows = np.array(index if known else range(len(self.updates)), np.intp)

        def work(m: int, terms: Terms) -> Leading:
            rank = self.rank_of(self.modules[m], clients)
            grams = None
            if core_for(len(terms.a), len(terms.b), terms.a.shape[1], rank) == "block":
                grams = term_grams(terms.b, terms.a)
            self._check_finite(self.modules[m], rows, terms, grams)
            if not known:
                sizes.take_terms(m, terms, grams)
            if sizes.rebuilt[m, rows].any():
                terms, grams = rebuild_rows(terms, sizes.rebuilt[m, rows]), None
            weights = share[rows[terms.owner]] * terms.scale
            # rows that do not count are left out, where their Grams are not made already
            used = slice(None) if grams is not None or not weights.any() else np.flatnonzero(weights)
            return leading(terms.b[:, used], terms.a[used], weights[used], rank, grams)

        results = each_module([self.updates[row] for row in rows], self.modules, work)
        yield from zip(self._told("combination"), results, strict=True)
        if not known:
            refuse_cancelling(sizes, self.modules, self.names, self.clients)
            self.sizes = sizes

    def _check_finite(self, module: str, rows: np.ndarray, terms: Terms, grams: Grams | None) -> None:
        """Raise NonFiniteError naming the client and the tensor that holds NaN or Inf."""
        if grams is None:
            finite = np.isfinite(terms.b).all(0) & np.isfinite(terms.a).all(1)
        else:  # a squared norm that overflows is looked at, too
            finite = np.isfinite(grams.b.diagonal()) & np.isfinite(grams.a.diagonal())
        for row in np.unique(rows[terms.owner[~finite]]).tolist():
            read_factors(self.updates[row], module, row if row < self.clients else -1, self.names[row])
