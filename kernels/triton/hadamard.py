"""Triton hadamard: a program takes a tile through several stages in registers and shared memory.

One kernel for all passes: a tile is TILE / WIDTH rows of WIDTH contiguous elements, `stride` apart. The first pass
takes contiguous tiles through their stages; each later one rows that are a power of two apart through up to four more.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fedcore.kernels.rows import check_device, on_device

TILE = 4096
ROWS = 16
OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}


@triton.jit
def _stage(x, TILE: tl.constexpr, H: tl.constexpr):
    """Pairs of elements H apart become their sums and differences."""
    pairs = tl.permute(tl.reshape(x, [TILE // (2 * H), 2, H]), (0, 2, 1))
    a, b = tl.split(pairs)
    return tl.reshape(tl.permute(tl.join(a + b, a - b), (0, 2, 1)), [TILE])


@triton.jit(do_not_specialize=("d", "stride"))
def _hadamard_kernel(
    x,  # (d,) fp32, in place
    scale,  # (1,) fp32, or None where this pass is not the last
    suspect,  # (1,) int32: set to 1 if an output is not finite
    d,
    stride,  # of rows: a multiple of WIDTH
    TILE: tl.constexpr,
    WIDTH: tl.constexpr,
    FIRST: tl.constexpr,  # the first stage, in elements of the tile
    STAGES: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    parts = stride // WIDTH
    start = program // parts * (TILE // WIDTH) * stride + program % parts * WIDTH
    element = tl.arange(0, TILE)
    columns = start + (element // WIDTH).to(tl.int64) * stride + element % WIDTH
    mask = columns < d
    value = tl.load(x + columns, mask=mask, other=0.0)
    for s in tl.static_range(STAGES):
        value = _stage(value, TILE, FIRST << s)
    if scale is not None:
        value *= tl.load(scale)
        finite = tl.abs(value) < float("inf")
        # every program that writes here writes the same 1
        tl.store(suspect, 1, mask=tl.max((finite == 0).to(tl.int32), axis=0) != 0)
    tl.store(x + columns, value, mask=mask)


def hadamard(x: torch.Tensor, block: int, threads: int = 1) -> bool:
    """Transform `x` (d,) fp32 in place, d a multiple of `block`, a power of two; True if any output is not finite.

    The bits are those of fedcore/reference/hadamard.py; `threads` has no meaning here. Raises BackendError if `x` lies
    where the kernel cannot run.
    """
    device, d = x.device, x.numel()
    check_device("hadamard", _hadamard_kernel, device)
    with on_device(device):
        suspect = torch.zeros(1, dtype=torch.int32, device=device)
        scale = torch.tensor([1 / block], dtype=torch.float64).sqrt().to(torch.float32).to(device)

        def run(stride: int, width: int, first: int, done: int, until: int) -> None:
            _hadamard_kernel[(triton.cdiv(d, TILE),)](
                x, scale if until == block else None, suspect, d, stride,
                TILE=TILE, WIDTH=width, FIRST=first, STAGES=(until // done).bit_length() - 1, **OPTIONS,
            )  # fmt: skip

        if d:
            done = min(block, TILE)
            run(TILE, TILE, 1, 1, done)
            while done < block:
                rows = min(ROWS, block // done)
                run(done, TILE // rows, TILE // rows, done, done * rows)
                done *= rows
    return bool(suspect.item())
