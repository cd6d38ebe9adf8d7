"""The executor over true updates: what rules ask of Δ_i = s_i B_i A_i, answered from the factors.

    ⟨Δ_i, Δ_j⟩ = s_i s_j ⟨B_iᵀ B_j, A_i A_jᵀ⟩,   summed over modules, plus the dense tensors (modules_to_save) as rows

so distances, norms and coefficients do not change with the gauge (B M, M⁻¹ A), and Δ is never formed. The reference
adapter is one more row, so distances and clips are of Δ_i − Δ_ref. All in fp64.

Error of the Gram, with u = 2⁻⁵³ and P_i = s_i Σ_a ‖b_a‖‖a_a‖ over the rank-one terms of a module (P_i ≥ ‖Δ_i‖, and
larger when terms cancel): each block is off by at most γ P_i P_j with γ = (d_in + d_out + r² + 8) u (Higham 2002,
Accuracy and Stability of Numerical Algorithms, §3.5), so |D̂_ij − D_ij| ≤ Σ γ (P_i + P_j)² ≤ Σ 2 γ (P_i² + P_j²) over
modules. A redo takes thin QRs of the stacked difference, ‖Σ v_k Δ_k‖ = ‖R_B R_Aᵀ‖, whose error grows with P and not
with its square: at most (d_in + d_out + R) u Σ |v_k| P_k, far above Householder's √(d R) u in practice. Rows equal
within that are a tie.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fedcore.dtypes import name_of, round_from_float64, to_float64
from fedcore.errors import RangeError
from fedcore.lora.stacks import Stack, check_pairs, read_stack
from fedcore.lora.truncation import truncate
from fedcore.updates import Update

#: the unit roundoff of fp64
UNIT = 2.0**-53


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

    updates   clients, then the reference if one is given; all adapt the same modules, at any rank
    names     what messages call each of them
    clients   how many of them are clients

    A zero reference is no update: it counts as a row of coefficient vectors and adds nothing.
    """

    def __init__(self, updates: Sequence[Update], names: Sequence[str], clients: int):
        check_pairs(updates, names, clients)
        self.updates, self.names, self.clients = list(updates), list(names), clients
        self.modules = tuple(updates[0].modules)

    def _stacks(self, rows: np.ndarray | None = None) -> Iterator[tuple[str, Stack]]:
        """Each module's stack, over all rows or some of them."""
        index = range(len(self.updates)) if rows is None else [int(row) for row in rows]
        for module in self.modules:
            yield module, read_stack(self.updates, module, index, self.names)

    def gram(self) -> tuple[np.ndarray, np.ndarray]:
        """(matrix (rows, rows), error (rows,)): inner products of the updates, and e with |D̂_ij − D_ij| ≤ e_i + e_j."""
        rows = len(self.updates)
        matrix, error = np.zeros((rows, rows)), np.zeros(rows)
        for _, stack in self._stacks():
            gram_a, gram_b = stack.a @ stack.a.T, stack.b.T @ stack.b
            matrix += np.add.reduceat(np.add.reduceat(gram_a * gram_b, stack.starts, 0), stack.starts, 1)
            size = np.add.reduceat(np.sqrt(gram_a.diagonal() * gram_b.diagonal()), stack.starts)
            rank = np.bincount(stack.owner).max()
            gamma = (stack.a.shape[1] + stack.b.shape[0] + rank**2 + 8 + len(self.modules)) * UNIT
            error += 2 * gamma * np.square(size)
        return matrix, error

    def squared_norms(self) -> np.ndarray:
        """(clients,) ‖Δ_i − Δ_ref‖², or ‖Δ_i‖² where the reference is zero."""
        total = np.zeros(self.clients)
        coefficients = np.eye(self.clients, len(self.updates))
        coefficients[:, self.clients :] = -1.0
        for _, stack in self._stacks():
            for i, row in enumerate(coefficients):
                b, a = stack.combine(row)
                total[i] += ((b.T @ b) * (a @ a.T)).sum()
        return np.maximum(total, 0.0)

    def distances(self, differences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """‖Σ_k v_k Δ_k‖² for each row v of `differences` (m, rows): values (m,) and bounds of their errors (m,)."""
        total, error = np.zeros(len(differences)), np.zeros(len(differences))
        used = np.flatnonzero(differences.any(0))
        if not used.size:
            return total, error
        for _, stack in self._stacks(used):
            for p, v in enumerate(differences[:, used]):
                b, a = stack.combine(v)
                r_b, r_a = np.linalg.qr(b).R, np.linalg.qr(a.T).R
                norm = float(np.linalg.norm(r_b @ r_a.T))
                terms = float(np.linalg.norm(b, axis=0) @ np.linalg.norm(a, axis=1))
                slack = (b.shape[0] + a.shape[1] + a.shape[0]) * UNIT * terms
                total[p] += norm**2
                error[p] += 2 * norm * slack + slack**2
        return total, error

    def combine(self, coefficients: np.ndarray, divisor: float) -> Combined:
        """Σ c_k Δ_k / divisor, each module truncated to the highest rank among the clients that count.

        coefficients (rows,) fp32. Where one client alone counts its factors are returned as they are, bit for bit.
        Otherwise factors are rounded once to the clients' dtype and the scale is the first client's.
        """
        counted = np.flatnonzero(coefficients)
        if not counted.size:
            counted = np.array([0])
        clients = [int(i) for i in counted if i < self.clients] or [0]
        alone = len(counted) == 1 and counted[0] < self.clients and float(coefficients[counted[0]]) == divisor
        result = Combined({}, {}, {})
        for module, stack in self._stacks(counted):
            pair = self.updates[clients[0] if alone else 0].modules[module]
            if alone:
                norm = float(np.sqrt(max(((stack.b.T @ stack.b) * (stack.a @ stack.a.T)).sum(), 0.0)))
                result.tensors.update({name: self.updates[clients[0]].tensors[name] for name in (pair.a, pair.b)})
                result.modules[module] = ModuleReport(pair.rank, norm, 0.0)
            else:
                rank = max(self.updates[i].modules[module].rank for i in clients)
                share = coefficients[counted].astype(np.float64) / divisor
                truncated = truncate(*stack.combine(share), rank, pair.scale)
                for name, values in ((pair.a, truncated.a), (pair.b, truncated.b)):
                    result.tensors[name] = _rounded(values, name_of(self.updates[0].tensors[name].dtype), name)
                result.modules[module] = ModuleReport(rank, truncated.norm, truncated.residual)
            result.scaling[module] = pair.scale
        return result


def _rounded(values: np.ndarray, dtype: str, name: str) -> np.ndarray:
    result = round_from_float64(values, dtype)
    if not np.isfinite(to_float64(result)).all():
        raise RangeError(f"tensor {name!r}: the result does not fit {dtype}; send wider factors")
    return result


def report_of(modules: Mapping[str, ModuleReport]) -> dict[str, dict[str, float]]:
    """The reports as JSON-able dictionaries by module."""
    return {module: report._asdict() for module, report in modules.items()}
