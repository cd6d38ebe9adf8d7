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

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np

from fedcore.dtypes import name_of, round_from_float64, to_float64
from fedcore.errors import RangeError
from fedcore.lora.measure import RATIO, Measure, measure, product_norm, product_size, rebuild, rounding_of
from fedcore.lora.stacks import Stack, check_pairs, read_factors, read_stack
from fedcore.lora.truncation import truncate
from fedcore.rules.statistics import UNIT
from fedcore.updates import Update


class ModuleReport(NamedTuple):
    """What became of one module: the rank of the result, ‖Δ‖ before truncation, and ‖Δ − result‖ / ‖Δ‖."""

    rank: int
    norm: float
    residual: float


class Combined(NamedTuple):
    """The LoRA part of a result: tensors by name, scales and reports by module."""

    tensors: dict[str, np.ndarray]
    scaling: dict[str, float]
    modules: dict[str, ModuleReport]


class FactorPasses:
    """Passes over the factors of a cohort: inner products, direct distances, and truncated sums.

    updates      clients, then the references that are given; all adapt the same modules, at any rank
    names        what messages call each of them
    clients      how many of them are clients
    zero_first   the first reference is zero, which is no update

    progress     called as progress(work, done, total): modules of one pass

    A zero reference adds nothing to a sum.
    """

    def __init__(
        self,
        updates: Sequence[Update],
        names: Sequence[str],
        clients: int,
        *,
        zero_first: bool = False,
        progress: Callable[[str, int, int], object] | None = None,
    ):
        check_pairs(updates, names, clients)
        self.progress = progress
        self.updates, self.names, self.clients = list(updates), list(names), clients
        self.zero_first = zero_first
        self.modules = tuple(updates[0].modules)

    @cached_property
    def sizes(self) -> Measure:
        """What every row's factors measure: made once, before anything else is made of them. Raises NonFiniteError."""
        return measure(self.updates, self.modules, self.names, self.clients, self._told("factors"))

    def _told(self, work: str) -> Iterator[str]:
        """The modules, one after the other; progress is told of each that is done."""
        for done, module in enumerate(self.modules, 1):
            yield module
            if self.progress is not None:
                self.progress(work, done, len(self.modules))

    def _factors(self, update: Update, module: str, row: int, who: str) -> tuple[np.ndarray, np.ndarray]:
        """(b, a) of one row, rebuilt where those that were sent hide their product."""
        b, a = read_factors(update, module, row, who)
        return rebuild(b, a) if self.sizes.rebuilt[self.modules.index(module), row] else (b, a)

    def each_factors(self, work: str) -> Iterator[tuple[str, list[tuple[np.ndarray, np.ndarray]]]]:
        """Each module with every row's (b with the scale in it, a), once all rows are known to be defined."""
        assert self.sizes is not None
        for module in self._told(work):
            yield module, [self._factors(u, module, row, self.names[row]) for row, u in enumerate(self.updates)]

    def _stacks(self, work: str, rows: np.ndarray | None = None) -> Iterator[tuple[str, Stack]]:
        """Each module's stack, over all rows or some of them."""
        index = range(len(self.updates)) if rows is None else [int(row) for row in rows]
        for module in self._told(work):
            yield module, read_stack(self.updates, module, index, self.names, self._factors)

    def gram(self) -> tuple[np.ndarray, np.ndarray]:
        """(matrix (rows, rows), error (rows,)): inner products of the updates, and e with |D̂_ij − D_ij| ≤ e_i + e_j."""
        rows = len(self.updates)
        matrix, error = np.zeros((rows, rows)), np.zeros(rows)
        for _, stack in self._stacks("gram"):
            gram_a, gram_b = stack.a @ stack.a.T, stack.b.T @ stack.b
            matrix += np.add.reduceat(np.add.reduceat(gram_a * gram_b, stack.starts, 0), stack.starts, 1)
            size = np.add.reduceat(np.sqrt(gram_a.diagonal() * gram_b.diagonal()), stack.starts)
            rank = np.bincount(stack.owner).max()
            gamma = (stack.a.shape[1] + stack.b.shape[0] + rank**2 + 8 + len(self.modules)) * UNIT
            error += 2 * gamma * np.square(size)
        return matrix, error

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
                    norm, bound = _change(self._factors(self.updates[i], module, i, self.names[i]), reference)
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
        """Σ c_k Δ_k / divisor, each module truncated to the highest rank among the clients that count.

        coefficients (rows,) fp32. Where one client alone counts its factors are returned as they are, bit for bit.
        Otherwise factors are rounded once to the clients' dtype and the scale is the first client's.
        """
        counted = np.flatnonzero(coefficients)
        clients = [int(i) for i in counted if i < self.clients]
        index = [int(i) for i in counted] or [0]
        alone = len(counted) == 1 and len(clients) == 1 and float(coefficients[counted[0]]) == divisor
        sizes, result = self.sizes, Combined({}, {}, {})
        for m, module in enumerate(self._told("combination")):
            pair = self.updates[clients[0] if alone else 0].modules[module]
            if alone:
                norm = float(np.sqrt(sizes.square[m, clients[0]]))
                result.tensors.update({name: self.updates[clients[0]].tensors[name] for name in (pair.a, pair.b)})
                result.modules[module] = ModuleReport(pair.rank, norm, 0.0)
            else:
                # clips to almost nothing can leave the reference alone, or no row at all: the zero update
                ranks = [self.updates[i].modules[module].rank for i in clients or range(self.clients)]
                stack = read_stack(self.updates, module, index, self.names, self._factors)
                share = coefficients[index].astype(np.float64) / divisor
                b, a = stack.combine(share) if counted.size else (0 * stack.b, stack.a)
                truncated = truncate(b, a, max(ranks), pair.scale)
                for name, values in ((pair.a, truncated.a), (pair.b, truncated.b)):
                    result.tensors[name] = _rounded(values, name_of(self.updates[0].tensors[name].dtype), name)
                result.modules[module] = ModuleReport(max(ranks), truncated.norm, truncated.residual)
            result.scaling[module] = pair.scale
        return result


def _change(client: tuple[np.ndarray, np.ndarray], reference: tuple[np.ndarray, np.ndarray]) -> tuple[float, float]:
    """(‖b a − b° a°‖, bound of its error) of a client's factors (b, a) and the reference's (b°, a°).

    At one rank it is tried as [b − b°, b°] · [a; a − a°], whose terms are as small as the change where a client moved
    a little; where those terms cancel too, and at other ranks, QR of the stacked factors decides.
    """
    (b, a), (b_ref, a_ref) = client, reference
    if len(a) == len(a_ref):
        step_b, step_a = b - b_ref, a - a_ref
        b_2, a_2 = np.hstack((step_b, b_ref)), np.vstack((a, step_a))
        square, terms = product_size(b_2, a_2)
        if terms <= RATIO * np.sqrt(max(square, 0.0)):
            # what is left out: b − b° and a − a° are rounded, by u ‖b‖‖a‖ and the like, which `rounding` holds
            return float(np.sqrt(square)), rounding_of(b_2, a_2) * RATIO * terms
    return product_norm(np.hstack((b, -b_ref)), np.vstack((a, a_ref)))


def _rounded(values: np.ndarray, dtype: str, name: str) -> np.ndarray:
    result = round_from_float64(values, dtype)
    if not np.isfinite(to_float64(result)).all():
        raise RangeError(f"tensor {name!r}: the result does not fit {dtype}; send wider factors")
    return result


def report_of(modules: Mapping[str, ModuleReport]) -> dict[str, dict[str, float]]:
    """The reports as JSON-able dictionaries by module."""
    return {module: report._asdict() for module, report in modules.items()}
