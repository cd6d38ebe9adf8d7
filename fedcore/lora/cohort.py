"""The factors of one module over a cohort, as methods see them: ranks, scales and modules may differ by client.

A client that did not train a module left it as it was: its Δ there is that of the reference adapter, or 0 without one.
Weights are not renormalised for it, so the target stays Σ p_i Δ_i, the mean of the models that clients hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from fedcore import ops
from fedcore.dtypes import to_float64
from fedcore.errors import LayoutError, NonFiniteError
from fedcore.lora.stacks import dtype_of, read_plain, rounded
from fedcore.numbers import shown
from fedcore.ops.lora_truncate import Leading
from fedcore.rules.naming import not_finite
from fedcore.updates import Cohort, LoraPair, Update


class Part(NamedTuple):
    """One update's factors of one module in fp64: Δ = scale · b · a with b (d_out, r) and a (r, d_in)."""

    b: np.ndarray
    a: np.ndarray
    scale: float

    @property
    def rank(self) -> int:
        """The rank r."""
        return len(self.a)


@dataclass(frozen=True)
class Clients:
    """The clients of one round, checked to be of one base and of modules of one size, and their shares.

    cohort        the updates, ordered by client_id
    names         what messages call each
    coefficients  (n,) fp32 weights as used; their fp64 sum in row order is `divisor`
    reference     the adapter that they started from, if it was given
    """

    cohort: Cohort
    names: tuple[str, ...]
    coefficients: np.ndarray
    reference: Update | None = None

    @cached_property
    def divisor(self) -> float:
        """What weighted sums are divided by."""
        return float(np.cumsum(self.coefficients, dtype=np.float64)[-1])

    @cached_property
    def shares(self) -> np.ndarray:
        """(n,) fp64, summing to 1 within rounding: p_i."""
        return self.coefficients.astype(np.float64) / self.divisor

    @cached_property
    def modules(self) -> dict[str, LoraPair]:
        """module -> the pair of the first client that has it, or else of the reference, sorted by module."""
        return {module: update.modules[module] for module, update in sorted(self._owners.items())}

    @cached_property
    def _owners(self) -> dict[str, Update]:
        """module -> the first client that has it, or else the reference."""
        found: dict[str, Update] = {}
        for update in (*self.cohort, *([] if self.reference is None else [self.reference])):
            for module in update.modules:
                found.setdefault(module, update)
        return found

    def dtype(self, name: str) -> str:
        """The dtype of a factor (a tensor's name)."""
        return next(dtype_of(update, name) for update in self._owners.values() if name in update.layout.index)

    def as_sent(self, module: str, part: Part) -> Part:
        """The part with its factors rounded once to the clients' dtype."""
        pair = self.modules[module]
        b, a = (
            to_float64(rounded(values, self.dtype(name), name)) for values, name in ((part.b, pair.b), (part.a, pair.a))
        )
        return Part(b, a, part.scale)

    def part(self, row: int, module: str) -> Part | None:
        """One client's factors, or None where it did not train the module. Raises NonFiniteError naming both."""
        return read_part(self.cohort[row], module, row, self.names[row])

    def mean(self, names: Sequence[str], rows: Sequence[int], dtype: str) -> np.ndarray:
        """Σ c_i x_i / Σ c_i of one tensor of some clients, `names[i]` being what row i calls it: rounded once.

        fp64 sums in row order (see fedcore.ops.weighted_sum). Raises NonFiniteError naming the client and the tensor.
        """
        tensors = [self.cohort[row].tensors[name] for row, name in zip(rows, names, strict=True)]
        weights = self.coefficients[list(rows)]
        divisor = float(np.cumsum(weights, dtype=np.float64)[-1])
        flat = [np.ascontiguousarray(tensor).reshape(-1) for tensor in tensors]
        try:
            found = ops.weighted_sum(flat, weights, divisor, out_dtype=dtype)
        except NonFiniteError as error:
            row = rows[error.row]
            raise not_finite(self.names[row], names[error.row], error.column, row) from None
        return np.asarray(found).reshape(tensors[0].shape)


def read_part(update: Update, module: str, row: int, who: str) -> Part | None:
    """The factors of a module in an update, or None where it has none."""
    if module not in update.modules:
        return None
    return Part(*read_plain(update, module, row, who), update.modules[module].scale)


def check_alike(clients: Clients, method: str) -> None:
    """Raise LayoutError unless all clients have the same modules, ranks and scales, which `method` needs."""
    first = clients.cohort[0].modules
    for who, update in zip(clients.names, clients.cohort, strict=True):
        if difference := sorted(first.keys() ^ update.modules.keys()):
            raise LayoutError(
                f"{who}: module {shown(difference[0])} is {'missing' if difference[0] in first else 'extra'}, compared "
                f"with {clients.names[0]}; {method} takes no mixed modules, ranks or scales: use flexlora or flora"
            )
        for module, pair in update.modules.items():
            for what in ("rank", "scale"):
                got, expected = getattr(pair, what), getattr(first[module], what)
                if got != expected:
                    raise LayoutError(
                        f"{who}: module {shown(module)} has {what} {got:g}, expected {expected:g} like "
                        f"{clients.names[0]}; {method} takes no mixed ranks or scales: use flexlora or flora"
                    )


def stacked(terms: Sequence[tuple[float, Part]], d_out: int, d_in: int) -> tuple[np.ndarray, np.ndarray]:
    """Factors (b (d_out, R), a (R, d_in)) of Σ c · scale · b · a; terms with c = 0 are left out."""
    kept = [(c * part.scale * part.b, part.a) for c, part in terms if c]
    if not kept:
        return np.zeros((d_out, 1)), np.zeros((1, d_in))
    return np.concatenate([b for b, _ in kept], axis=1), np.concatenate([a for _, a in kept])


def from_triplets(found: Leading, kept: slice | np.ndarray = slice(None)) -> Part:
    """U Σ and Vᵀ of some singular triplets, scale 1."""
    return Part(found.left[:, kept] * found.values[kept], found.right[kept], 1.0)
