"""The public gram."""

from __future__ import annotations

from typing import Any

from fedcore.ops.rows import as_center, as_rows
from fedcore.ops.squared_norms import check_statistic, run_statistic
from fedcore.reference.gram import EPSILON

#: |D̂_ij − D_ij| ≤ GRAM_EPSILON · (G_ii + G_jj) for D_ij = G_ii + G_jj − 2 G_ij, on every backend
GRAM_EPSILON = EPSILON


def gram(rows: Any, center: Any = None, *, backend: str | None = None, threads: int | None = None) -> Any:
    """Inner products of centred rows, G_ij = ⟨x_i − center, x_j − center⟩: (n, n) fp64, symmetric, on the rows' device.

    rows     (n, d) array or tensor, a sequence of n 1-D arrays, or a RowTable; fp32, fp16 or bf16
    center   a (d,) row of any of those dtypes; None is zero. A centre close to the rows keeps the error small: a row
             of the cohort itself is the usual choice.

    Bound: |Ĝ_ij − G_ij| ≤ GRAM_EPSILON / 4 · (G_ii + G_jj) (derivation: fedcore/reference/gram.py). The same bits for
    every thread count and ISA of the C kernels. Memory: threads × n² × 8 bytes beside the result.
    Raises ShapeError, DTypeError, and NonFiniteError with the row and column of a NaN or Inf.
    """
    data = as_rows(rows)
    middle = as_center(center, data)
    result = run_statistic("gram", data, middle, backend, threads)
    check_statistic("gram", data, middle, result.diagonal())
    return result
