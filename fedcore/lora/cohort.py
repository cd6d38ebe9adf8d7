"""The factors of one module over a cohort, as methods see them: ranks, scales and modules may differ by client.

A client that did not train a module left it as it was: its Δ there is that of the reference adapter, or 0 without one.
Weights are not renormalised for it, so the target stays Σ p_i Δ_i, the mean of the models that clients hold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from fedcore import ops
from fedcore.errors import LayoutError
from fedcore.lora.stacks import read_plain
from fedcore.updates import Cohort, LoraPair, Update
from fedcore.updates.bases import check_same_base
from fedcore.updates.layout import shown


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
    """

    cohort: Cohort
    names: tuple[str, ...]
    coefficients: np.ndarray

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
        """module -> the pair of the first client that has it, sorted by module."""
        found: dict[str, LoraPair] = {}
        for update in self.cohort:
            for module, pair in update.modules.items():
                found.setdefault(module, pair)
        return dict(sorted(found.items()))

    def dtype(self, module: str) -> str:
        """The dtype of a module's factors."""
        pair = self.modules[module]
        update = next(update for update in self.cohort if module in update.modules)
        return update.layout.dtypes[update.layout.index[pair.a]]

    def part(self, row: int, module: str) -> Part | None:
        """One client's factors, or None where it did not train the module. Raises NonFiniteError naming both."""
        return read_part(self.cohort[row], module, row, self.names[row])

    def mean(self, names: Sequence[str], rows: Sequence[int], dtype: str) -> np.ndarray:
        """Σ c_i x_i / Σ c_i of one tensor of some clients, `names[i]` being what row i calls it: rounded once.

        fp64 sums in row order (see fedcore.ops.weighted_sum).
        """
        tensors = [self.cohort[row].tensors[name] for row, name in zip(rows, names, strict=True)]
        weights = self.coefficients[list(rows)]
        divisor = float(np.cumsum(weights, dtype=np.float64)[-1])
        found = ops.weighted_sum(
            [np.ascontiguousarray(t).reshape(-1) for t in tensors], weights, divisor, out_dtype=dtype
        )
        return np.asarray(found).reshape(tensors[0].shape)


def read_part(update: Update, module: str, row: int, who: str) -> Part | None:
    """The factors of a module in an update, or None where it has none."""
    if module not in update.modules:
        return None
    return Part(*read_plain(update, module, row, who), update.modules[module].scale)


def check_sizes(updates: Sequence[tuple[str, Update]], clients: int) -> None:
    """Raise LayoutError where two of (who, update) belong to two bases or disagree on a module or dense tensor.

    Ranks, scales and modules may differ. The first `clients` of them also agree on dtypes and dense tensors, and have
    no rank above min(d_out, d_in), which no Δ needs and which tells of factors that lie transposed.
    """
    check_same_base(updates)
    seen: dict[str, tuple[str, LoraPair, str]] = {}
    first_name, first = updates[0]
    for row, (who, update) in enumerate(updates):
        for module, pair in update.modules.items():
            if row < clients and pair.rank > min(pair.d_out, pair.d_in):
                raise LayoutError(
                    f"{who}: module {shown(module)} has rank {pair.rank} for a Δ of {pair.d_out} × {pair.d_in}, "
                    "expected at most the smaller side; train a lower rank, or check that A is (rank, d_in) and B "
                    "(d_out, rank)"
                )
            before, known, dtype = seen.setdefault(module, (who, pair, _dtype(update, pair.a)))
            if (pair.d_out, pair.d_in) != (known.d_out, known.d_in):
                raise LayoutError(
                    f"{who}: module {shown(module)} is {pair.d_out} × {pair.d_in}, expected {known.d_out} × "
                    f"{known.d_in} as in {before}; the updates belong to different base models"
                )
            for factor in (pair.a, pair.b) if row < clients else ():
                if _dtype(update, factor) != dtype:
                    raise LayoutError(
                        f"{who}: tensor {shown(factor)} is {_dtype(update, factor)}, expected {dtype} as in {before}; "
                        "convert it"
                    )
        if row < clients and (dense := set(update.dense)) != set(first.dense):
            name = min(dense ^ set(first.dense))
            raise LayoutError(
                f"{who}: tensor {shown(name)} is {'extra' if name in dense else 'missing'}, compared with "
                f"{first_name}; send the same adapter"
            )


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


def by_row(parts: Sequence[Part | None]) -> Mapping[int, Part]:
    """row -> its part, of those that have one."""
    return {row: part for row, part in enumerate(parts) if part is not None}


def _dtype(update: Update, name: str) -> str:
    return update.layout.dtypes[update.layout.index[name]]


def stacked(terms: Sequence[tuple[float, Part]], d_out: int, d_in: int) -> tuple[np.ndarray, np.ndarray]:
    """Factors (b (d_out, R), a (R, d_in)) of Σ c · scale · b · a; terms with c = 0 are left out."""
    kept = [(c * part.scale * part.b, part.a) for c, part in terms if c]
    if not kept:
        return np.zeros((d_out, 1)), np.zeros((1, d_in))
    return np.concatenate([b for b, _ in kept], axis=1), np.concatenate([a for _, a in kept])
