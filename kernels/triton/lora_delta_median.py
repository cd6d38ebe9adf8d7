"""Triton lora_delta_median: all clients' products of some rows in one launch, then the median of those rows in another.

The products of PRODUCTS bytes of rows, n a row, lie in a buffer that the next rows overwrite: nothing dense per client.
Products are those of fedcore/kernels/lora_delta_sum.py, within its bound; their median has the bits of the definition.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from fedcore.kernels.lora_delta_sum import HIGH, launch
from fedcore.kernels.median import median

#: limit of the buffer of products, bytes, unless HIGH rows need more
PRODUCTS = 256 << 20


def lora_delta_median(
    factors: tuple[Sequence[torch.Tensor], Sequence[torch.Tensor]],
    coefficients: np.ndarray,
    out: torch.Tensor,
    threads: int = 1,
) -> bool:
    """Write the median of c_i B_i A_i into `out` (d_out, d_in); True if any product or output is not finite.

    factors, coefficients  as in fedcore/kernels/lora_delta_sum.py
    threads                has no meaning here

    Raises BackendError if the factors lie where the kernels cannot run.
    """
    return by_rows(factors, coefficients, out, median)


def by_rows(
    factors: tuple[Sequence[torch.Tensor], Sequence[torch.Tensor]],
    coefficients: np.ndarray,
    out: torch.Tensor,
    statistic: Callable[[list[torch.Tensor], torch.Tensor], bool],
) -> bool:
    """Write `statistic` (rows, out) -> suspect of the clients' products into `out`, some rows of it at a time."""
    b, a = factors
    n, (d_out, d_in) = len(b), out.shape
    # a client whose coefficient is 0 is not read: it has no terms
    a = [x if c else x[:0] for x, c in zip(a, coefficients, strict=True)]
    rows = min(max(PRODUCTS // (4 * n * max(d_in, 1) * HIGH), 1) * HIGH, max(d_out, 1))
    buffer = torch.empty((n, rows, d_in), dtype=torch.float32, device=out.device)
    suspect = False
    for start in range(0, d_out, rows):
        part = out[start : start + rows]
        products = buffer.view(-1)[: n * part.numel()].view(n, *part.shape)
        left = [x[start : start + rows] if c else x[:0, :0] for x, c in zip(b, coefficients, strict=True)]
        suspect |= launch(left, a, coefficients, np.arange(n + 1), None, products)
        suspect |= statistic(list(products.view(n, -1)), part.view(-1))
    return suspect
