"""The best approximation of one rank to a product of stacked factors in fp64; see fedcore/ops/lora_truncate.py."""

from __future__ import annotations

import numpy as np

from fedcore.ops.lora_truncate import Truncated, balanced, leading


def truncate(b: np.ndarray, a: np.ndarray, rank: int, scale: float) -> Truncated:
    """Factors of rank `rank`, Δ ≈ scale · b · a, of Δ = b (d_out, R) · a (R, d_in), both finite and fp64.

    Balanced, signed and kept alive as `fedcore.ops.lora_truncate` says.
    """
    return balanced(leading(b, a, np.ones(len(a)), rank), rank, scale)
