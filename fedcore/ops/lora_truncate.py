"""The public lora_truncate: the best approximations of given ranks to Σ c_j b_j a_j, without forming it."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fedcore.dtypes import name_of, to_float64
from fedcore.errors import NonFiniteError, ShapeError, WeightError
from fedcore.ops.lora_cores import Grams, block_core, gram_core, term_grams
from fedcore.reference.lora_truncate import Leading
from fedcore.reference.lora_truncate import lora_truncate as qr_core

#: terms from which the block iteration is taken, and how many times the wanted rank they must be: see `core_for`
MANY, TIMES = 512, 8
#: elements of both factors below which QR is as quick as anything
FEW = 1 << 16


class Truncated(NamedTuple):
    """Factors of one rank, Δ ≈ scale · b · a, in fp64.

    a, b       (rank, d_in) and (d_out, rank)
    norm       ‖Δ‖ (Frobenius)
    residual   ‖Δ − scale · b · a‖ / ‖Δ‖, 0 if Δ is 0
    most       what the residual is at most, whatever was rounded
    least      no product of this rank has a residual below it
    core       how they were found: 'qr', 'gram' or 'block'
    """

    a: np.ndarray
    b: np.ndarray
    norm: float
    residual: float
    most: float
    least: float
    core: str


def lora_truncate(
    b: Any, a: Any, coefficients: npt.ArrayLike, ranks: int | Iterable[int], *, scale: float = 1.0
) -> dict[int, Truncated]:
    """The closest products of each rank to Δ = Σ c_i B_i A_i in the Frobenius norm: rank -> its factors.

    b, a           sequences of n matrices, (d_out, r_i) and (r_i, d_in), ranks as they like; or both stacked,
                   (d_out, R) and (R, d_in); fp32, fp16, bf16 or fp64
    coefficients   (n,) what each client counts, its own scale included; (R,) where the factors are stacked
    ranks          one, or any number of them, from 1 on; above min(R, d_out, d_in) the rest is padding
    scale          of the result, Δ ≈ scale · b · a

    Factors are balanced: both carry the root of a singular value. The sign of each direction makes the largest entry of
    its column of scale · b positive. A direction in which Δ is 0 keeps a unit row in a and zeros in b, like a fresh
    adapter: with zeros in both, no training would ever bring it back. Results do not depend on the gauge of the
    factors.

    Definition: fedcore/reference/lora_truncate.py; how it is found: fedcore/ops/lora_cores.py, chosen by `core_for`
    from sizes alone. NumPy's BLAS and LAPACK do the work: the same bits on one machine and number of their threads, and
    equal to the definition within 4e-6 ‖Δ‖ at worst elsewhere ('gram'), or between `least` and `most` ('block').

    Raises ShapeError, WeightError for a coefficient or scale that is not finite, and NonFiniteError with the row of a
    client (or term) whose factors hold NaN or Inf.
    """
    wanted = _checked_ranks(ranks)
    if not (np.isfinite(scale) and scale != 0):
        raise WeightError(f"lora_truncate: got scale {scale}, expected a finite number other than 0; correct it")
    stacked_b, stacked_a, share, owner = _stacked(b, a, coefficients)
    for factor, axis in ((stacked_b, 0), (stacked_a, 1)):
        if not np.isfinite(factor).all():
            row = int(owner[np.flatnonzero(~np.isfinite(factor).all(axis))[0]])
            raise NonFiniteError(f"lora_truncate: row {row}: its factors hold NaN or Inf; leave that client out", row)
    found = leading(stacked_b, stacked_a, share, max(wanted))
    return {rank: balanced(found, rank, scale) for rank in wanted}


def _checked_ranks(ranks: int | Iterable[int]) -> list[int]:
    try:
        wanted = [operator.index(rank) for rank in (ranks if isinstance(ranks, Iterable) else [ranks])]
    except TypeError:
        wanted = []
    if not wanted or min(wanted) < 1:
        raise ShapeError(f"lora_truncate: got ranks {ranks!r}, expected whole numbers of at least 1; correct them")
    return wanted


def _stacked(b: Any, a: Any, coefficients: npt.ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(b (d_out, R), a (R, d_in), share (R,), owner (R,)): fp32 where that holds every factor, else fp64."""
    together = getattr(b, "ndim", 0) == 2 and getattr(a, "ndim", 0) == 2
    parts_b, parts_a = ([_matrix(part) for part in ([x] if together else list(x))] for x in (b, a))
    share = np.array(coefficients, np.float64)
    ranks = [len(part) for part in parts_a]
    if not parts_b or len(parts_b) != len(parts_a):
        raise ShapeError(f"lora_truncate: got {len(parts_b)} b and {len(parts_a)} a, expected as many, at least one")
    if share.shape != (sum(ranks) if together else len(ranks),):
        raise ShapeError(
            f"lora_truncate: got coefficients {share.shape}, expected ({sum(ranks) if together else len(ranks)},)"
        )
    for i, (part_b, part_a) in enumerate(zip(parts_b, parts_a, strict=True)):
        expected = (len(parts_b[0]), ranks[i]), (ranks[i], parts_a[0].shape[1])
        if (part_b.shape, part_a.shape) != expected or 0 in part_b.shape + part_a.shape:
            raise ShapeError(
                f"lora_truncate: row {i}: got b {part_b.shape} and a {part_a.shape}, expected b (d_out, r) and a "
                f"(r, d_in) with the sizes of row 0, {len(parts_b[0])} and {parts_a[0].shape[1]}, none of them 0"
            )
    if not np.isfinite(share).all():
        row = int(np.flatnonzero(~np.isfinite(share))[0])
        raise WeightError(f"lora_truncate: coefficient {row} is {share[row]}, expected a finite number; correct it")
    dtype = np.float64 if any(part.dtype == np.float64 for part in (*parts_b, *parts_a)) else np.float32
    owner = np.arange(sum(ranks)) if together else np.repeat(np.arange(len(ranks)), ranks)
    if together:
        return parts_b[0].astype(dtype, copy=False), parts_a[0].astype(dtype, copy=False), share, owner
    return np.concatenate(parts_b, 1, dtype=dtype), np.concatenate(parts_a, 0, dtype=dtype), share[owner], owner


def _matrix(part: Any) -> np.ndarray:
    """One factor as fp32 where that holds it, else fp64. Raises DTypeError, ShapeError."""
    array = part.detach().cpu() if hasattr(part, "detach") else part
    if str(getattr(array, "dtype", "")) == "torch.bfloat16":
        array = array.float()
    array = np.asarray(array)
    if array.ndim != 2:
        raise ShapeError(f"lora_truncate: got a factor of shape {array.shape}, expected a matrix")
    name = name_of(array.dtype)
    return array if name in ("float32", "float64") else to_float64(array).astype(np.float32)


def core_for(terms: int, d_out: int, d_in: int, rank: int) -> str:
    """'qr', 'gram' or 'block', from sizes alone: the quickest that is exact, or the block iteration where that is slow.

    QR is quickest where factors are small, and gives all triplets where nearly all are wanted. The Gram core's passes
    over the factors cost R² (d_in + d_out) and its LAPACK some 100 R³, which is as much from R = 500 on at 4096 × 4096;
    there the block iteration, which stops short of the optimum by an amount that it states, is 3 times as quick, and 10
    times at R = 1,600 (benchmarks/bench_lora_truncate.py).
    """
    narrow = min(d_out, d_in)
    if terms >= max(MANY, TIMES * rank) and narrow >= TIMES * rank:
        return "block"
    return "qr" if rank >= terms or terms > narrow or terms * (d_out + d_in) < FEW else "gram"


def leading(b: np.ndarray, a: np.ndarray, share: np.ndarray, rank: int, grams: Grams | None = None) -> Leading:
    """The leading triplets of b (d_out, R) · diag(share) · a (R, d_in), both finite and fp32 or fp64.

    The largest entry of each column of `left` is positive.

    grams   their `term_grams`, where somebody has made them for the block iteration; they are used up
    """
    (d_out, terms), d_in = b.shape, a.shape[1]
    rank, core = min(rank, terms, d_out, d_in), core_for(terms, d_out, d_in, rank)
    found = None
    if core == "gram":
        found = gram_core(b, a, share, rank)
    elif core == "block":
        found = block_core(b, a, share, rank, term_grams(b, a) if grams is None else grams)
        if found is None and b.dtype == np.float32:
            b, a = b.astype(np.float64), a.astype(np.float64)
            found = block_core(b, a, share, rank, term_grams(b, a))
    if found is None:
        found = qr_core(b.astype(np.float64, copy=False) * share, a.astype(np.float64, copy=False), rank)
    largest = np.abs(found.left).argmax(0)
    sign = np.where(found.left[largest, np.arange(len(largest))] < 0, -1.0, 1.0)
    return found._replace(left=found.left * sign, right=found.right * sign[:, None])


def balanced(found: Leading, rank: int, scale: float) -> Truncated:
    """Factors of one rank from leading triplets, and what is certain of them."""
    kept = min(rank, len(found.values))
    values, left, right = found.values[:kept], found.left[:, :kept], found.right[:kept]
    alive = values > found.values[0] * found.terms * np.finfo(np.float64).eps
    root = np.sqrt(values / abs(scale))
    out_a, out_b = np.zeros((rank, right.shape[1])), np.zeros((len(left), rank))
    out_a[:kept] = right * np.where(alive, root, 1.0)[:, None]
    out_b[:, :kept] = left * (np.where(alive, root, 0.0) * np.sign(scale))
    lost = float(np.linalg.norm(np.concatenate((values[~alive], found.values[kept:], [found.lost]))))
    if not found.norm:
        return Truncated(out_a, out_b, 0.0, 0.0, 0.0, 0.0, found.core)
    most = np.sqrt(lost**2 + found.slack)
    least = np.sqrt(max(lost**2 - found.slack - _more_kept(found, kept), 0.0))
    return Truncated(
        out_a, out_b, found.norm, lost / found.norm, float(most / found.norm), float(least / found.norm), found.core
    )


def _more_kept(found: Leading, kept: int) -> float:
    """How much of ‖Δ‖² a product of this rank can keep beyond what ours does, at most.

    With t_j the squares of the values kept, σ_j² ≥ t_j (Cauchy interlacing). So it is the largest Σ_{j≤kept} s_j − t_j
    with s_j ≥ t_j and Σ s_j² no more than Σ σ⁴ less what the other singular values take of it, which is the
    least where they share evenly what is left of ‖Δ‖². That rest shrinks by what is gained: each round starts from
    the gain of the one before, which was too large.
    """
    if found.core != "block":
        return 0.0
    squares = found.values[:kept][::-1] ** 2
    left = float(found.norm**2 - squares.sum() - found.slack)
    others = min(found.terms, len(found.left), found.right.shape[1]) - kept
    gained = left
    for _ in range(8):
        rest = max(left - gained, 0.0) ** 2 / max(others, 1)
        gained = _raised(squares, found.fourth - float(squares @ squares) - rest)
    return gained


def _raised(squares: np.ndarray, spare: float) -> float:
    """The largest Σ e with e ≥ 0 and Σ (t + e)² − Σ t² ≤ spare, for t ascending: the smallest come to one level."""
    gained = 0.0
    for count in range(1, len(squares) + 1):
        part = squares[:count]
        level = np.sqrt((float(part @ part) + max(spare, 0.0)) / count)
        gained = float(level * count - part.sum())
        if count < len(squares) and level <= squares[count]:
            break
    return gained
