"""Triton lora_gram: the blocks of fedcore/kernels/lora_blocks.py, contracted by a product with the clients' scales."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from fedcore.kernels.lora_blocks import blocks


def lora_gram(
    factors: tuple[Sequence[torch.Tensor], Sequence[torch.Tensor]],
    scales: np.ndarray,
    total: np.ndarray,
    threads: int = 1,
) -> None:
    """Add ⟨s_i B_i A_i, s_j B_j A_j⟩ of one module to `total` (n, n) fp64; threads has no meaning here.

    The bound is that of fedcore/reference/lora_gram.py. Raises BackendError if the factors lie where the kernels cannot
    run.
    """
    gram_b, gram_a = blocks(factors)
    ranks = torch.tensor([len(x) for x in factors[1]], device=gram_b.device)
    owner = torch.arange(len(ranks), device=ranks.device).repeat_interleave(ranks)
    # rows first, then columns: index_add on a GPU would add atomically, in any order
    share = torch.zeros((len(ranks), len(owner)), dtype=torch.float64, device=gram_b.device)
    share[owner, torch.arange(len(owner), device=ranks.device)] = 1.0
    found = (share @ (gram_b * gram_a) @ share.T).cpu().numpy()
    found = np.tril(found) + np.tril(found, -1).T
    total += (scales[:, None] * scales[None, :]) * found
