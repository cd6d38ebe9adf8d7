"""Triton discrete_gaussian: a lane makes a ChaCha20 block of each draw's stream and of the shared one: 8 samples.

Every entry of the table is compared with every draw: no branch or address depends on what was drawn. A lane's 8 samples
at σ = 4 take some 2 · 960 operations for the streams and 8 · 47 · 8 for the table. Speed on a GPU is unmeasured so far.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fedcore.gaussian_table import MOST_TERMS, GaussianTable, nonce_of
from fedcore.kernels import chacha20
from fedcore.kernels.rows import check_device, on_device

LANES = 64
WORDS, SIGNS = tl.constexpr(8), tl.constexpr(MOST_TERMS)
OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}


@triton.jit
def _words(key, nonce, blocks):
    """The 8 words of 64 bits of each block: (lanes, 8) uint64."""
    halves = chacha20.rows(chacha20.block(key, nonce, blocks))
    low, high = tl.split(halves.reshape([blocks.shape[0], 8, 2]))
    low, high = low.to(tl.uint32, bitcast=True).to(tl.uint64), high.to(tl.uint32, bitcast=True).to(tl.uint64)
    return low | (high << 32)


@triton.jit(do_not_specialize=("entries", "draws", "block", "at", "size"))
def _discrete_gaussian_kernel(
    key,  # (8,) int32
    nonces,  # (draws + 1, 3) int32: the last one is that of the words that draws share
    table,  # (2, entries) int64: first and second words
    strides,  # (draws,) int64
    out,  # (size,) int64
    entries,
    draws,
    block,  # int64: the first block, below 2^32
    at,  # int64: where in `out` its first word goes; words before 0 and from `size` on go nowhere
    size,  # int64
    LANES: tl.constexpr,
):
    lane = tl.program_id(0).to(tl.int64) * LANES + tl.arange(0, LANES)
    blocks = (block + lane).to(tl.uint32)
    w = _words(key, nonces + draws * 3, blocks)
    total, times = tl.zeros([LANES, WORDS], tl.int64), tl.zeros([LANES, WORDS], tl.int64)
    tied = tl.zeros([LANES, WORDS], tl.uint64)
    for i in tl.range(0, draws):
        v = _words(key, nonces + i * 3, blocks)
        count, ties = tl.zeros([LANES, WORDS], tl.int64), tl.zeros([LANES, WORDS], tl.int64)
        for k in tl.range(0, entries):
            first = tl.load(table + k).to(tl.uint64, bitcast=True)
            count += (v < first).to(tl.int64)
            ties |= (v == first).to(tl.int64)
        minus = (w << i >> 63).to(tl.int64)
        signed = (tl.load(strides + i) ^ -minus) + minus
        total += count * signed
        tied, times = tl.where(ties != 0, v, tied), tl.where(ties != 0, signed, times)
    low, more = w << SIGNS, tl.zeros([LANES, WORDS], tl.int64)
    for k in tl.range(0, entries):
        first = tl.load(table + k).to(tl.uint64, bitcast=True)
        second = tl.load(table + entries + k).to(tl.uint64, bitcast=True)
        more += (tied == first).to(tl.int64) & (low < second).to(tl.int64)
    total += more * times
    to = at + lane[:, None] * WORDS + tl.arange(0, WORDS)[None, :]
    tl.store(out + to, total, mask=(to >= 0) & (to < size))


def discrete_gaussian(
    out: torch.Tensor, table: GaussianTable, key: bytes, counter: int, stream: str = "chacha20", threads: int = 1
) -> None:
    """As fedcore.reference.discrete_gaussian, into `out` (size,) int64; `threads` has no meaning here.

    Raises BackendError if `out` lies where the kernel cannot run.
    """
    device, size, words = out.device, out.numel(), WORDS.value
    check_device("discrete_gaussian", _discrete_gaussian_kernel, device)
    if not size:
        return
    entries = torch.tensor([table.first.view("int64").tolist(), table.second.view("int64").tolist()], device=device)
    strides = torch.tensor(table.strides.tolist(), device=device)
    first, last = counter // words, (counter + size - 1) // words
    with on_device(device):
        while first <= last:
            high, low = divmod(first, 1 << 32)  # a launch for each value of the nonces
            blocks = min(last - first + 1, (1 << 32) - low)
            nonces = b"".join(nonce_of(i, 0, high) for i in range(len(table.strides))) + nonce_of(0, 1, high)
            _discrete_gaussian_kernel[(triton.cdiv(blocks, LANES),)](
                chacha20.words(key, device), chacha20.words(nonces, device), entries, strides, out,
                len(table.first), len(table.strides), low, first * words - counter,
                min(size, (first + blocks) * words - counter), LANES=LANES, **OPTIONS,
            )  # fmt: skip
            first += blocks
