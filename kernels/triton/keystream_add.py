"""Triton keystream_add: words stay in registers until all keys have been added."""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl

from fedcore.kernels import chacha20
from fedcore.kernels.chacha20 import LANES, WORDS
from fedcore.kernels.rows import check_device, load, on_device, pieces, store

OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}


@triton.jit(do_not_specialize=("length", "counter", "n", "first"))
def _keystream_add_kernel(
    values,  # (length,) int32, changed
    keys,  # (n, 8) int32
    nonce,  # (3,) int32
    signs,  # (n,) int32: 1 or -1
    length,
    counter,  # int64: of the first block
    n,
    first,  # first tile of this launch
    LANES: tl.constexpr,
    FULL: tl.constexpr,
):
    lane = (first + tl.program_id(0)).to(tl.int64) * LANES + tl.arange(0, LANES)
    blocks = (counter + lane).to(tl.uint32)
    at = lane[:, None] * WORDS + tl.arange(0, WORDS)[None, :]
    total = load(values + at, at < length, FULL)
    for i in tl.range(0, n):
        total += chacha20.rows(chacha20.block(keys + i * 8, nonce, blocks)) * tl.load(signs + i)
    store(values + at, total, at < length, FULL)


def keystream_add(
    values: torch.Tensor,
    keys: np.ndarray,
    nonce: bytes,
    counter: int,
    signs: np.ndarray,
    stream: str = "chacha20",
    threads: int = 1,
) -> None:
    """As fedcore.reference.keystream_add, on `values` (length,) int32; `threads` has no meaning here.

    Raises BackendError if `values` lies where the kernel cannot run.
    """
    device, length = values.device, values.numel()
    check_device("keystream_add", _keystream_add_kernel, device)
    with on_device(device):
        words, once = chacha20.words(keys.tobytes(), device), chacha20.words(nonce, device)
        plus_or_minus = torch.from_numpy(signs.astype(np.int32)).to(device)
        for first, tiles, full in pieces(length, LANES * WORDS.value):
            _keystream_add_kernel[(tiles,)](
                values, words, once, plus_or_minus, length, counter, len(keys), first, LANES=LANES, FULL=full, **OPTIONS
            )
