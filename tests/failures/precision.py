"""Sums that are kept in the dtype of the wire."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

import fedcore as fc
from failures.finding import Finding
from fedcore.dtypes import round_from_float64, to_float64


def bf16_rows(n: int = 64, d: int = 20_000) -> np.ndarray:
    return round_from_float64(1 + 0.05 * np.random.default_rng(0).standard_normal((n, d)), "bfloat16")


def mean_error(found: np.ndarray, rows: np.ndarray, counts: list[int]) -> float:
    """Largest relative error of a weighted mean."""
    exact = np.average(to_float64(rows), axis=0, weights=counts)
    return float(np.abs(to_float64(np.asarray(found)) / exact - 1).max())


COUNTS = [40_000 + 1_000 * (i % 7) for i in range(64)]


def accumulated(rows: np.ndarray, counts: list[int], normalised: bool) -> np.ndarray:
    """Σ w x in the wire's dtype, each step rounded: with weights that sum to 1, or raw and divided at the end."""
    dtype = "bfloat16" if rows.dtype.itemsize == 2 and rows.dtype != np.float16 else "float16"

    def rounded(values: np.ndarray) -> np.ndarray:
        return to_float64(round_from_float64(values, dtype))

    total = np.zeros(rows.shape[1])
    with np.errstate(over="ignore", invalid="ignore"):
        for row, count in zip(rows, counts, strict=True):
            weight = count / sum(counts) if normalised else float(count)
            total = rounded(total + rounded(weight * to_float64(row)))
        return total if normalised else rounded(total / sum(counts))


def exactly_rounded(rows: np.ndarray, counts: list[int], dtype: str) -> Finding:
    found = fc.ops.weighted_sum(rows, counts, sum(counts), out_dtype=dtype)
    exact = round_from_float64(np.average(to_float64(rows), axis=0, weights=counts), dtype)
    wrong = int((to_float64(found) != to_float64(exact)).sum())
    return f"error {100 * mean_error(found, rows, counts):.2g} %, that of one rounding", wrong > 0


def bf16_there(mean: Callable[..., np.ndarray] = lambda r, c: accumulated(r, c, False)) -> Finding:
    error = mean_error(mean(bf16_rows(), COUNTS), bf16_rows(), COUNTS)
    return f"error {100 * error:.2g} %", error > 0.005


HALF = np.full((2, 4), 2.0, np.float16)


def overflow_there(mean: Callable[..., np.ndarray] = lambda r, c: accumulated(r, c, False)) -> Finding:
    found = to_float64(np.asarray(mean(HALF, [40_000, 40_000])))
    return f"mean of 2 and 2 is {found[0]:g}", not np.isfinite(found).all()


def overflow_here() -> Finding:
    found = fc.ops.weighted_sum(HALF, [40_000, 40_000], 80_000, out_dtype="float16")
    return f"mean of 2 and 2 is {found[0]:g}", bool((found != 2).any())


def fp16_rows() -> np.ndarray:
    return round_from_float64(1 + 0.05 * np.random.default_rng(1).standard_normal((64, 20_000)), "float16")


def fp16_there(mean: Callable[..., np.ndarray] = lambda r, c: accumulated(r, c, True)) -> Finding:
    error = mean_error(mean(fp16_rows(), COUNTS), fp16_rows(), COUNTS)
    return f"error {100 * error:.2g} %", error > 0.002


def bf16_refused() -> Finding:
    """What numpy() on a bf16 tensor says."""
    import torch

    try:
        torch.ones(3, dtype=torch.bfloat16).numpy()
    except TypeError as error:
        return f"TypeError: {error}", True
    return "taken", False


def bf16_here() -> Finding:
    import torch

    rows = torch.from_numpy(np.stack([np.full(3, 1.0), np.full(3, 2.0)])).to(torch.bfloat16)
    found = fc.ops.weighted_sum(rows, [1, 1], 2)
    return f"mean of 1 and 2 is {float(found[0]):g}", bool((found != 1.5).any())
