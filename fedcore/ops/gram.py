"""The public gram."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedcore.backends import requested, selected_isa
from fedcore.errors import ShapeError
from fedcore.numbers import whole
from fedcore.ops.kinds import in_kind
from fedcore.ops.rows import as_center, as_rows, checked_total
from fedcore.ops.squared_norms import check_statistic, run_statistic
from fedcore.reference.gram import CHUNK, EPSILON, EPSILON_AMX

#: tiles of columns whose widths are multiples of this, their statistics added by total=, give the bits of one pass
GRAIN = CHUNK


@in_kind
def gram(
    rows: Any,
    center: Any = None,
    *,
    total: np.ndarray | None = None,
    first: int = 0,
    backend: str | None = None,
    threads: int | None = None,
) -> Any:
    """Inner products of centred rows, G_ij = ⟨x_i − center, x_j − center⟩: (n, n) fp64, symmetric, on the rows' device.

    rows     (n, d) array or tensor, a sequence of n 1-D arrays, or a RowTable; fp32, fp16 or bf16
    center   a (d,) row of any of those dtypes; None is zero. A centre close to the rows keeps the error small: a row
             of the cohort itself is the usual choice.
    total    (n, n) fp64 NumPy, contiguous and writable, of the columns before, to go on from: added to in place and
             returned; Triton returns the sum beside it. Tiles whose widths are multiples of 8192 columns give the bits
             of one pass.
    first    entries of two rows before this one are left as `total` has them: a Gram grows as rows arrive

    Bound: |Ĝ_ij − G_ij| ≤ gram_epsilon() / 4 · (G_ii + G_jj) (derivation: fedcore/reference/gram.py). The bits of an
    entry depend on its two rows and the centre alone, whatever the threads; they are the same on every ISA of the C
    kernels but AMX, which has bits of its own. Memory: threads × n² × 8 bytes beside the result.
    Raises ShapeError, DTypeError, and NonFiniteError with the row and column of a NaN or Inf.
    """
    data = as_rows(rows)
    middle = as_center(center, data)
    first = whole("first", first, 0, data.n, error=ShapeError)
    going_on = {"total": checked_total(total, (data.n, data.n))} | ({"first": first} if first else {})
    result = run_statistic("gram", data, middle, backend, threads, **going_on)
    check_statistic("gram", data, middle, result.diagonal())
    return result


def gram_epsilon(backend: str | None = None) -> float:
    """ε with |D̂_ij − D_ij| ≤ ε (G_ii + G_jj) for D_ij = G_ii + G_jj − 2 G_ij, of the Gram that `backend` makes here.

    Where the backend is left to the data, the largest of those that it may be. Raises BackendError if unknown.
    """
    if requested(backend) in (None, "c") and selected_isa() == "amx":
        return EPSILON_AMX
    return EPSILON
