"""Order statistics of true updates: the median of Δ is no combination of factors, so Δ is formed, tile by tile.

Median and trimmed mean are the kernels that hold nothing dense per client. For the other statistics a tile is a few
rows of one module's Δ: each client's product by `lora_delta_sum`, in fp32, side by side. Either way it is the statistic
of those fp32 products. The result is a dense matrix, which is truncated to the clients' rank or kept as it is.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fedcore import ops
from fedcore.lora.delta import FactorPasses
from fedcore.lora.result import Combined, ModuleReport
from fedcore.ops.lora_dense import dense_core
from fedcore.ops.lora_truncate import Truncated, balanced, core_for, leading
from fedcore.rules.order_statistic import OrderStatistic, column_statistic

#: bytes of fp32 products that exist at a time
TILE_BYTES = 1 << 25


class _Factors(NamedTuple):
    """row -> its factors of one module and what their product is multiplied by."""

    b: dict[int, np.ndarray]
    a: dict[int, np.ndarray]
    scale: dict[int, float]


def order_statistic(
    passes: FactorPasses, decided: OrderStatistic, present: np.ndarray, rows: int, dense: bool, **options: Any
) -> Combined:
    """The statistic of each module's Δ; modules that none of the rows it is taken of has are left out.

    present   which of the `rows` rows (clients, then references) have factors; the others are 0
    dense     keep Δ as <module>.weight, (d_out, d_in) fp32; else truncate it to the clients' highest rank
    options   backend and threads of the ops
    """
    result, used = Combined({}, {}, {}), set(_used(decided, passes.clients))
    held = passes.held([k for k, row in enumerate(present.tolist()) if row in used or row >= passes.clients])
    for module, sent in passes.as_sent("combination"):
        if module not in held:
            continue
        like = passes.like[module]
        pair = like.modules[module]
        factors = _Factors(*(dict(zip(present.tolist(), part, strict=True)) for part in _in_float32(*sent)))
        delta = _statistic(decided, factors, rows, passes.clients, (pair.d_out, pair.d_in), options)
        if dense:
            result.tensors[f"{module}.weight"] = delta
            norm = float(np.linalg.norm(delta.astype(np.float64)))
            result.modules[module] = ModuleReport(min(delta.shape), norm, 0.0, 0.0, 0.0, "kept")
            continue
        rank = passes.rank_of(module, range(passes.clients))
        result.keep(module, like, _truncated(delta, rank, pair.scale))
    return result


def _in_float32(b: list[np.ndarray], a: list[np.ndarray], scales: list[float]) -> tuple[list[Any], ...]:
    """The same, rebuilt factors rounded to what the kernels read; their terms are orthogonal, so that is harmless."""
    narrow = [[x.astype(np.float32) if x.dtype == np.float64 else x for x in side] for side in (b, a)]
    return (*narrow, scales)


def _statistic(
    decided: OrderStatistic, factors: _Factors, rows: int, clients: int, shape: tuple[int, int], options: Any
) -> np.ndarray:
    """(d_out, d_in) fp32 of one module."""
    mixed = decided.rounded()
    used = _used(decided, clients)
    if mixed is None and decided.statistic in ("median", "trimmed_mean"):
        b, a, scale = ([side[row] for row in used] for side in factors)
        if decided.statistic == "median":
            return ops.lora_delta_median(b, a, scale, **options)
        return ops.lora_delta_trimmed_mean(b, a, decided.f, scale, **options)
    chosen = None if mixed is None else (mixed[0][:, used], mixed[1])
    centered = decided.statistic == "sign_majority" and clients in factors.b
    result, step = np.empty(shape, np.float32), max(1, TILE_BYTES // (4 * shape[1] * max(rows, 1)))
    for start in range(0, shape[0], step):
        stop = min(start + step, shape[0])
        tile = [_product(factors, row, start, stop, shape[1], options) for row in used]
        center = _product(factors, clients, start, stop, shape[1], options) if centered else None
        found = column_statistic(decided, tile, chosen, center, out_dtype="float32", **options)
        result[start:stop] = np.asarray(found).reshape(stop - start, shape[1])
    return result


def _used(decided: OrderStatistic, clients: int) -> list[int]:
    """The rows that the statistic, or a mixture, is taken of."""
    mixed = decided.rounded()
    return list(decided.rows or range(clients)) if mixed is None else np.flatnonzero(mixed[0].any(0)).tolist()


def _product(factors: _Factors, row: int, start: int, stop: int, d_in: int, options: Any) -> np.ndarray:
    """Some rows of one row's Δ in fp32, flat; 0 for a reference without factors."""
    if row not in factors.b:
        return np.zeros((stop - start) * d_in, np.float32)
    b = [factors.b[row][start:stop]]
    return ops.lora_delta_sum(b, [factors.a[row]], [factors.scale[row]], **options).reshape(-1)


def _truncated(delta: np.ndarray, rank: int, scale: float) -> Truncated:
    """The closest factors of one rank to a dense matrix; where it is small, that matrix and an identity are factors."""
    d_out, d_in = delta.shape
    if core_for(min(d_out, d_in), d_out, d_in, rank) == "block":
        return balanced(dense_core(delta, rank), rank, scale)
    one = np.eye(min(d_out, d_in), dtype=np.float32)
    b, a = (delta, one) if d_in <= d_out else (one, delta)
    return balanced(leading(b, a, np.ones(len(a)), rank), rank, scale)
