"""Triton keystream: ChaCha20, a block a lane."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fedcore.kernels import chacha20
from fedcore.kernels.chacha20 import BLOCK_BYTES, LANES, WORDS
from fedcore.kernels.rows import check_device, on_device

OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}


@triton.jit(do_not_specialize=("counter", "blocks"))
def _keystream_kernel(
    key,  # (8,) int32
    nonce,  # (3,) int32
    out,  # (16 * blocks,) int32
    counter,  # int64: of the first block
    blocks,  # int64
    LANES: tl.constexpr,
):
    lane = tl.program_id(0).to(tl.int64) * LANES + tl.arange(0, LANES)
    made = chacha20.rows(chacha20.block(key, nonce, (counter + lane).to(tl.uint32)))
    at = lane[:, None] * WORDS + tl.arange(0, WORDS)[None, :]
    tl.store(out + at, made, mask=lane[:, None] < blocks)


def keystream(
    out: torch.Tensor, key: bytes, nonce: bytes, counter: int, stream: str = "chacha20", threads: int = 1
) -> None:
    """As fedcore.reference.keystream, into `out` (size,) uint8; `threads` has no meaning here.

    Raises BackendError if `out` lies where the kernel cannot run.
    """
    check_device("keystream", _keystream_kernel, out.device)
    blocks = triton.cdiv(out.numel(), BLOCK_BYTES)
    if not blocks:
        return
    with on_device(out.device):
        made = torch.empty(blocks * 16, dtype=torch.int32, device=out.device)
        _keystream_kernel[(triton.cdiv(blocks, LANES),)](
            chacha20.words(key, out.device), chacha20.words(nonce, out.device), made, counter, blocks,
            LANES=LANES, **OPTIONS,
        )  # fmt: skip
        out.copy_(made.view(torch.uint8)[: out.numel()])
