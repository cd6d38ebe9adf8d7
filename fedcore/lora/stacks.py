"""The LoRA factors of a cohort, stacked module by module.

For one module the factors of all rows (clients, and after them the reference adapter) lie side by side: A is (R, d_in)
and B is (d_out, R) with R the sum of the rows' ranks, so Δ_i = s_i B_i A_i is a product of slices. R is small against
d_in and d_out, so this is the one place where rows are stacked. Ranks and scales may differ from row to row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol, TypeVar

import numpy as np

from fedcore import dtypes
from fedcore.dtypes import to_float64
from fedcore.errors import LayoutError
from fedcore.numbers import shown
from fedcore.rules.given_rows import repair
from fedcore.rules.naming import RETRAIN, not_finite
from fedcore.updates import LoraPair, Update


class Adapter(Protocol):
    """What factors are read from: an `Update`, or what else has its modules and tensors."""

    @property
    def modules(self) -> Mapping[str, LoraPair]: ...

    @property
    def tensors(self) -> Mapping[str, np.ndarray]: ...


One = TypeVar("One", bound=Adapter)


class Stack(NamedTuple):
    """The factors of one module in fp64.

    a, b      (R, d_in) and (d_out, R); the scales are in b
    starts    (rows,) where each row's part begins; parts follow in row order
    owner     (R,) the row of each column of b and row of a
    """

    a: np.ndarray
    b: np.ndarray
    starts: np.ndarray
    owner: np.ndarray

    def combine(self, coefficients: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Factors (b, a) of Σ c_k Δ_k; rows with coefficient 0 are left out. `coefficients` has one for each row."""
        share = coefficients[self.owner]
        kept = np.flatnonzero(share)
        return self.b[:, kept] * share[kept], self.a[kept]


def check_factors(updates: Sequence[Update], names: Sequence[str], clients: int, *, dense: int) -> None:
    """Raise LayoutError unless the updates can be added up: every module of one size, with no rank above it.

    A rank above min(d_out, d_in), which no Δ needs, tells of factors that lie transposed. Ranks and scales may differ,
    and an update may lack modules. The first `clients` of the updates have factors of one dtype, the first `dense` the
    same dense tensors. `names` is what messages call each update.
    """
    first, seen = updates[0], _Seen({}, {})
    for row, (who, update) in enumerate(zip(names, updates, strict=True)):
        if row < dense:
            _check_same_dense(first.dense, update.dense, names[0], who)
        for module, pair in update.modules.items():
            seen.check_size(who, module, pair)
            for factor in (pair.a, pair.b) if row < clients else ():
                seen.check_dtype(who, factor, dtype_of(update, factor))


class _Seen(NamedTuple):
    """What the first update that has a module or factor says of it, and what that update is called."""

    sizes: dict[str, tuple[str, LoraPair]]
    dtypes: dict[str, tuple[str, str]]

    def check_size(self, who: str, module: str, pair: LoraPair) -> None:
        if pair.rank > min(pair.d_out, pair.d_in):
            raise LayoutError(
                f"{who}: module {shown(module)} has rank {pair.rank} for a Δ of {pair.d_out} × {pair.d_in}, expected "
                "at most the smaller side; train a lower rank, or check that A is (rank, d_in) and B (d_out, rank)"
            )
        before, known = self.sizes.setdefault(module, (who, pair))
        if (pair.d_out, pair.d_in) != (known.d_out, known.d_in):
            raise LayoutError(
                f"{who}: module {shown(module)} is {pair.d_out} × {pair.d_in}, expected {known.d_out} × {known.d_in} "
                f"as in {before}; the updates belong to different base models"
            )

    def check_dtype(self, who: str, factor: str, dtype: str) -> None:
        before, known = self.dtypes.setdefault(factor, (who, dtype))
        if dtype != known:
            raise LayoutError(f"{who}: tensor {shown(factor)} is {dtype}, expected {known} as in {before}; convert it")


def _check_same_dense(first: Iterable[str], update: Iterable[str], first_name: str, name: str) -> None:
    ours, theirs = set(first), set(update)
    for missing in sorted(ours - theirs):
        raise LayoutError(
            f"{name}: tensor {shown(missing)} is missing, expected as in {first_name}; send the same adapter"
        )
    for extra in sorted(theirs - ours):
        raise LayoutError(f"{name}: tensor {shown(extra)} is extra, {first_name} has none; send the same adapter")


def check_fits(rank: int, module: str, d_out: int, d_in: int) -> None:
    """Raise LayoutError for a wanted rank that no Δ of that size has."""
    if rank > min(d_out, d_in):
        raise LayoutError(
            f"module {shown(module)}: got rank {rank}, expected at most {min(d_out, d_in)}, the smaller side of its "
            "Δ; ask for a lower rank"
        )


def dtype_of(update: Update, name: str) -> str:
    """The dtype of one tensor."""
    return update.layout.dtypes[update.layout.index[name]]


def read_stack(
    updates: Sequence[One],
    module: str,
    rows: Sequence[int],
    names: Sequence[str],
    factors: Callable[[One, str, int, str], tuple[np.ndarray, np.ndarray]],
) -> Stack:
    """The stack of one module over some rows of checked updates; `owner` counts in the order of `rows`.

    `factors(update, module, row, name)` gives (b, a) of one row, as `read_factors` does.
    """
    found = [factors(updates[row], module, row, names[row]) for row in rows]
    ranks = [len(a) for _, a in found]
    return Stack(
        a=np.concatenate([a for _, a in found]),
        b=np.concatenate([b for b, _ in found], axis=1),
        starts=np.concatenate(([0], np.cumsum(ranks)[:-1])).astype(np.int64),
        owner=np.repeat(np.arange(len(ranks)), ranks),
    )


def read_factors(update: Adapter, module: str, row: int, who: str) -> tuple[np.ndarray, np.ndarray]:
    """(b, a) of one row in fp64 as they were sent, (d_out, r) with the scale in it and (r, d_in).

    row   of the client; -1 for what is no client's

    Raises NonFiniteError with the row, naming the client and the tensor, for a NaN or Inf.
    """
    b, a = read_plain(update, module, row, who)
    return b * update.modules[module].scale, a


def read_plain(update: Adapter, module: str, row: int, who: str) -> tuple[np.ndarray, np.ndarray]:
    """`read_factors` without the scale."""
    pair, found = update.modules[module], []
    for name in (pair.a, pair.b):
        values = to_float64(update.tensors[name])
        if not np.isfinite(values).all():
            element = int(np.flatnonzero(~np.isfinite(values))[0])
            raise not_finite(who, name, element, row, remedy(row, who))
        found.append(values)
    return found[1], found[0]


def remedy(row: int, who: str) -> str:
    """What to do about numbers of no use: a client can be left out, a reference or side adapter (row -1) cannot."""
    return RETRAIN if row >= 0 else repair(who)


def rounded(values: np.ndarray, dtype: str, name: str) -> np.ndarray:
    """fp64 values of tensor `name`, rounded once. Raises RangeError naming it where `dtype` cannot hold one."""
    return dtypes.rounded(values, dtype, f"tensor {name!r}: the result does not fit {dtype}; send wider factors")
