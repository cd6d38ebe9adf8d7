"""Triton lora_delta_trimmed_mean: as fedcore/kernels/lora_delta_median.py, with the trimmed mean."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from fedcore.kernels.lora_delta_median import by_rows
from fedcore.kernels.trimmed_mean import trimmed_mean


def lora_delta_trimmed_mean(
    factors: tuple[Sequence[torch.Tensor], Sequence[torch.Tensor]],
    coefficients: np.ndarray,
    f: int,
    out: torch.Tensor,
    threads: int = 1,
) -> bool:
    """Write the trimmed mean of c_i B_i A_i into `out`; arguments and answer as `lora_delta_median`, 0 ≤ 2f < n."""
    return by_rows(factors, coefficients, out, lambda rows, part: trimmed_mean(rows, f, part))
