"""Triton discrete_gaussian: a program makes the samples of a block that share words for ties, a lane 16 of them, from a
ChaCha20 block of each draw's stream.

Every first word of the table is compared with every draw, and places of ties with all places: no branch or address
depends on what was drawn. A lane's 16 samples at σ = 4 take some 960 operations for the stream and 16 · 26 · 4 for the
table. Ties are noted draw by draw and put in order afterwards, so that a block with more than TIES of them, which a
table's distance counts, may settle others than the definition does.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fedcore import gaussian_table
from fedcore.gaussian_table import GaussianTable, nonce_of
from fedcore.kernels import chacha20
from fedcore.kernels.rows import check_device, on_device

WORDS = tl.constexpr(16)
BLOCK, TIES = tl.constexpr(gaussian_table.BLOCK), tl.constexpr(gaussian_table.TIES)
LANES = tl.constexpr(gaussian_table.BLOCK // 16)
#: a record's bit 30: there is one
HELD = tl.constexpr(1 << 30)
OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}


@triton.jit
def _noted(ties, held, tie, record):
    """(ties, held) with the records of a draw where `tie` is 1 behind the `held` ones that are there."""
    here = tl.sum(tie, axis=1)
    rank = held + (tl.cumsum(here) - here)[:, None] + tl.cumsum(tie, axis=1) - tie
    slot = tl.arange(0, TIES)
    for t in tl.static_range(TIES):
        found = tl.sum(tl.sum(tl.where((tie != 0) & (rank == t), record, 0), axis=1))
        ties |= tl.where(slot == t, found, 0)
    return ties, held + tl.sum(here)


@triton.jit
def _added(ties, key, nonce, entries, rests, first_of, draws, strides, block):
    """What each tie adds, its words by its rank among them: (TIES,) int64."""
    slot = tl.arange(0, TIES)
    order = tl.where(ties != 0, ties & 0x7FFF, 0x8000 + slot)
    rank = tl.sum((order[None, :] < order[:, None]).to(tl.int32), axis=1)
    two = (block * 2 + tl.arange(0, 2)).to(tl.uint32)
    words = chacha20.rows(chacha20.block(key, nonce, two)).reshape([TIES, 4])
    words = words.to(tl.uint32, bitcast=True).to(tl.uint64)[None, :, :]
    words = tl.sum(tl.where((rank[:, None] == slot[None, :])[:, :, None], words, 0), axis=1)  # (TIES, 4) of each tie
    part = tl.arange(0, 4)[None, :]
    shifted = words << (32 * (part % 2)).to(tl.uint64)
    high, low = tl.sum(tl.where(part < 2, shifted, 0), axis=1), tl.sum(tl.where(part < 2, 0, shifted), axis=1)
    count, more = (ties >> 16) & 127, tl.zeros([TIES], tl.int64)
    for k in tl.range(0, entries):
        h = tl.load(rests + 2 * k).to(tl.uint64, bitcast=True)
        l = tl.load(rests + 2 * k + 1).to(tl.uint64, bitcast=True)  # noqa: E741
        more += ((count == tl.load(first_of + k)) & ((high < h) | ((high == h) & (low < l)))).to(tl.int64)
    draw, stride = ties & 15, tl.zeros([TIES], tl.int64)
    for i in tl.range(0, draws):
        stride += tl.where(draw == i, tl.load(strides + i), 0)
    return tl.where(ties != 0, tl.where(((ties >> 15) & 1) != 0, -stride, stride) * more, 0)


@triton.jit(do_not_specialize=("entries", "firsts", "draws", "block", "at", "size"))
def _discrete_gaussian_kernel(
    key,  # (8,) int32
    nonces,  # (draws + 1, 3) int32: the last one is that of the words for ties
    table,  # (entries,) int32: first words
    rests,  # (entries, 2) int64
    first_of,  # (entries,) int64: the first entry of this first word
    strides,  # (draws,) int64
    out,  # (size,) int64
    entries,
    firsts,  # entries up to the first that begins with 0
    draws,
    block,  # int64: the first block of samples
    at,  # int64: where in `out` its first sample goes; samples before 0 and from `size` on go nowhere
    size,  # int64
):
    lane, word = tl.arange(0, LANES)[:, None], tl.arange(0, WORDS)[None, :]
    number = tl.program_id(0).to(tl.int64)
    blocks = ((block + number) * LANES + tl.arange(0, LANES)).to(tl.uint32)
    n = lane * WORDS + word
    place = n << 4 | HELD
    total, ties, held = tl.zeros([LANES, WORDS], tl.int64), tl.zeros([TIES], tl.int32), 0
    for i in tl.range(0, draws):
        x = chacha20.rows(chacha20.block(key, nonces + i * 3, blocks)).to(tl.uint32, bitcast=True)
        sign, v = (x & 1).to(tl.int32), x & 0xFFFFFFFE
        count, tie = tl.zeros([LANES, WORDS], tl.int32), tl.zeros([LANES, WORDS], tl.int32)
        for k in tl.range(0, firsts):
            first = tl.load(table + k).to(tl.uint32, bitcast=True)
            count += (v < first).to(tl.int32)
            tie |= (v == first).to(tl.int32)
        total += count.to(tl.int64) * tl.where(sign != 0, -tl.load(strides + i), tl.load(strides + i))
        ties, held = _noted(ties, held, tie, place | i | (sign << 15) | (count << 16))
    added = _added(ties, key, nonces + draws * 3, entries, rests, first_of, draws, strides, block + number)
    sample = (ties >> 4) & (BLOCK - 1)
    slot = tl.arange(0, TIES)
    for t in tl.static_range(TIES):
        mine = tl.sum(tl.where(slot == t, sample, 0))
        total += tl.where(n == mine, tl.sum(tl.where(slot == t, added, 0)), 0)
    to = at + number * BLOCK + n
    tl.store(out + to, total, mask=(to >= 0) & (to < size))


def discrete_gaussian(
    out: torch.Tensor, table: GaussianTable, key: bytes, counter: int, stream: str = "chacha20", threads: int = 1
) -> None:
    """As fedcore.reference.discrete_gaussian, into `out` (size,) int64; `threads` has no meaning here.

    Raises BackendError if `out` lies where the kernel cannot run.
    """
    device, size, samples = out.device, out.numel(), BLOCK.value
    check_device("discrete_gaussian", _discrete_gaussian_kernel, device)
    if not size:
        return
    words = table.first.tolist()
    first_of = [words.index(word) for word in words]
    numbers = [table.rest.view("int64").tolist(), first_of, table.strides.tolist()]
    tensors = [torch.tensor(each, dtype=torch.int64, device=device) for each in numbers]
    firsts = torch.tensor(table.first.view("int32").tolist(), dtype=torch.int32, device=device)
    first, last = counter // samples, (counter + size - 1) // samples
    with on_device(device):
        while first <= last:
            # a launch for each value of the nonces: cipher blocks of draws pass 2³² more often than those of ties
            many = (1 << 32) // LANES.value
            count = min(last + 1, (first // many + 1) * many) - first
            each, tie = first * LANES.value >> 32, first * 2 >> 32
            nonces = b"".join(nonce_of(i, 0, each) for i in range(len(table.strides))) + nonce_of(0, 1, tie)
            _discrete_gaussian_kernel[(count,)](
                chacha20.words(key, device), chacha20.words(nonces, device), firsts, *tensors, out, len(words),
                words.index(0) + 1, len(table.strides), first, first * samples - counter,
                min(size, (first + count) * samples - counter), **OPTIONS,
            )  # fmt: skip
            first += count
