"""Order statistics of true updates: the median of Δ is no combination of factors, so Δ is formed, tile by tile.

A tile is a few rows of one module's Δ: each client's product, formed in fp64 and rounded to fp32 once, side by side for
the order statistic. Nothing dense is held per client. The result is a dense matrix, which is truncated to the clients'
rank by its SVD or kept as it is.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fedcore.dtypes import name_of, to_float64
from fedcore.lora.delta import Combined, FactorPasses, ModuleReport
from fedcore.lora.singular import balanced
from fedcore.lora.stacks import rounded
from fedcore.rules.order_statistic import OrderStatistic, column_statistic

#: bytes of fp32 products that exist at a time
TILE_BYTES = 1 << 25


def order_statistic(
    passes: FactorPasses, decided: OrderStatistic, present: np.ndarray, rows: int, dense: bool, **options: Any
) -> Combined:
    """The statistic of each module's Δ.

    present   which of the `rows` rows (clients, then references) have factors; the others are 0
    dense     keep Δ as <module>.weight, (d_out, d_in) fp32; else truncate it to the clients' highest rank
    options   backend and threads of the ops
    """
    result = Combined({}, {}, {})
    for module, found in passes.each_factors("combination"):
        pair = passes.updates[0].modules[module]
        factors = dict(zip(present.tolist(), found, strict=True))
        delta = _module(decided, factors, rows, passes.clients, (pair.d_out, pair.d_in), options)
        rank = max(update.modules[module].rank for update in passes.updates[: passes.clients])
        if dense:
            result.tensors[f"{module}.weight"] = delta
            result.modules[module] = ModuleReport(min(delta.shape), float(np.linalg.norm(to_float64(delta))), 0.0)
            continue
        u, values, vt = np.linalg.svd(to_float64(delta), full_matrices=False)
        (kept,) = balanced(u, values, vt, [(rank, pair.scale)])
        for name, part in ((pair.a, kept.a), (pair.b, kept.b)):
            result.tensors[name] = rounded(part, name_of(passes.updates[0].tensors[name].dtype), name)
        result.scaling[module] = pair.scale
        result.modules[module] = ModuleReport(rank, kept.norm, kept.residual)
    return result


def _module(
    decided: OrderStatistic,
    factors: dict[int, tuple[np.ndarray, np.ndarray]],
    rows: int,
    clients: int,
    shape: tuple[int, int],
    options: Any,
) -> np.ndarray:
    """(d_out, d_in) fp32 of one module."""
    mixed = decided.rounded()
    used = list(decided.rows or range(clients)) if mixed is None else np.flatnonzero(mixed[0].any(0)).tolist()
    chosen = None if mixed is None else (mixed[0][:, used], mixed[1])
    centered = decided.statistic == "sign_majority" and clients in factors
    result, step = np.empty(shape, np.float32), max(1, TILE_BYTES // (4 * shape[1] * max(rows, 1)))
    for start in range(0, shape[0], step):
        stop = min(start + step, shape[0])
        size = (stop - start) * shape[1]

        def product(row: int, start: int = start, stop: int = stop, size: int = size) -> np.ndarray:
            if row not in factors:
                return np.zeros(size, np.float32)
            b, a = factors[row]
            with np.errstate(over="ignore"):
                return (b[start:stop] @ a).astype(np.float32).reshape(size)

        tile = [product(row) for row in used]
        center = product(clients) if centered else None
        found = column_statistic(decided, tile, chosen, center, out_dtype="float32", **options)
        result[start:stop] = np.asarray(found).reshape(stop - start, shape[1])
    return result
