"""The public lora_truncate: the best approximations of given ranks to Σ c_j b_j a_j, without forming it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from fedcore.errors import ShapeError, WeightError
from fedcore.numbers import shown
from fedcore.ops.host_numbers import host_number
from fedcore.ops.lora_batches import passes, truncate_pass
from fedcore.ops.lora_cores import Grams, block_core, gram_core, term_grams
from fedcore.ops.lora_stack import Parts, Truncated, checked_parts, checked_ranks, fresh_rows
from fedcore.ops.tensors import tensor_of
from fedcore.reference.lora_truncate import Leading
from fedcore.reference.lora_truncate import lora_truncate as qr_core

#: terms from which the block iteration is taken, and how many times the wanted rank they must be: see `core_for`
MANY, TIMES = 512, 8
#: how many times as long LAPACK's QR takes for a product as BLAS
SLOWER = 4
#: elements of both factors below which QR is as quick as anything
FEW = 1 << 16


def lora_truncate(
    b: Any, a: Any, coefficients: npt.ArrayLike, ranks: int | Iterable[int], *, scale: float = 1.0
) -> dict[int, Truncated]:
    """The closest products of each rank to Δ = Σ c_i B_i A_i in the Frobenius norm: rank -> its factors.

    b, a           sequences of n matrices, (d_out, r_i) and (r_i, d_in), ranks as they like, also 0; or both stacked,
                   (d_out, R) and (R, d_in); fp32, fp16, bf16 or fp64
    coefficients   (n,) what each client counts, its own scale included; (R,) where the factors are stacked
    ranks          one, or any number of them, from 1 on
    scale          of the result, Δ ≈ scale · b · a

    Factors are balanced: both carry the root of a singular value. The sign of each direction makes the largest entry of
    its column of scale · b positive. A direction in which Δ is 0, also one above min(R, d_out, d_in), has a unit row in
    a and zeros in b, like a fresh adapter: with zeros in both, no training would ever bring it back. Δ counts as 0 up
    to what rounding makes of terms that cancel, (d_in + d_out + R min(R, d)) 2⁻⁵³ Σ |c_j|‖b_j‖‖a_j‖ with d the larger
    side. Rows of a are orthogonal, so at a rank above d_in those beyond the first d_in are zeros in a, too: the others
    span all inputs. Results do not depend on the gauge of the factors, but for what counts as 0.

    Definition: fedcore/reference/lora_truncate.py; how it is found: fedcore/ops/lora_cores.py, chosen by `core_for`
    from sizes alone. NumPy's BLAS and LAPACK do the work: the same bits on one machine and number of their threads, and
    equal to the definition within 4e-6 ‖Δ‖ at worst elsewhere ('gram'), or between `least` and `most` ('block').
    Tensors on a GPU stay there, as `lora_truncate_modules` has it. NumPy in gives NumPy out, torch in gives torch out
    on the same device.

    Raises ShapeError, DTypeError, WeightError for a coefficient or scale that is not finite, and NonFiniteError with
    the row of a client (or term) whose factors hold NaN or Inf.
    """
    (wanted, size), parts = _checked(ranks, scale), checked_parts(b, a, coefficients)
    return _on_device([parts], wanted, size)[0] if parts.on_gpu else _on_host(parts, wanted, size)


def lora_truncate_modules(
    modules: Iterable[tuple[Any, Any, npt.ArrayLike]], ranks: int | Iterable[int], *, scale: float = 1.0
) -> list[dict[int, Truncated]]:
    """`lora_truncate` of many modules, each (b, a, coefficients) as it takes them: one answer for each, in order.

    Of tensors on a GPU all modules of one size go through their Gram cores in one batched pass on the device, in fp64
    (fedcore/ops/lora_batches.py): 4 GB of stacked factors at a time, and no factor is copied to the host. Others are
    taken one after the other, so that a generator can read them from files.

    Raises as `lora_truncate`, naming the module, and ShapeError for no module at all.
    """
    wanted, size = _checked(ranks, scale)
    found: dict[int, dict[int, Truncated]] = {}
    waiting: dict[int, Parts] = {}
    for m, module in enumerate(modules):
        parts = checked_parts(*module, f"lora_truncate_modules: module {m}")
        if parts.on_gpu:
            waiting[m] = parts
        else:
            found[m] = _on_host(parts, wanted, size)
    found |= zip(waiting, _on_device(list(waiting.values()), wanted, size), strict=True)
    if not found:
        raise ShapeError("lora_truncate_modules: got no module, expected at least one (b, a, coefficients)")
    return [found[m] for m in sorted(found)]


def _on_host(parts: Parts, ranks: list[int], scale: float) -> dict[int, Truncated]:
    """One module's answer by NumPy; as tensors where its factors are."""
    b, a = parts.arrays()
    parts.refuse(np.isfinite(b).all(0) & np.isfinite(a).all(1))
    triplets = leading(b, a, parts.share, max(ranks))
    found = {rank: balanced(triplets, rank, scale) for rank in ranks}
    if parts.device is None:
        return found
    return {rank: one._replace(a=tensor_of(one.a), b=tensor_of(one.b)) for rank, one in found.items()}


def _on_device(modules: list[Parts], ranks: list[int], scale: float) -> list[dict[int, Truncated]]:
    """The answers of modules on GPUs, in order."""
    found: dict[int, dict[int, Truncated]] = {}
    for index in passes(modules):
        together = [modules[m] for m in index]
        terms, first = max(len(parts.share) for parts in together), together[0]
        core = core_for(terms, first.d_out, first.d_in, max(ranks))
        found |= zip(index, truncate_pass(together, ranks, scale, core), strict=True)
    return [found[m] for m in range(len(modules))]


def _checked(ranks: int | Iterable[int], scale: float) -> tuple[list[int], float]:
    wanted, size = checked_ranks(ranks), host_number("lora_truncate: scale", scale)
    if size is None or not np.isfinite(size) or size == 0:
        raise WeightError(f"lora_truncate: got scale {shown(scale)}, expected a finite number other than 0; correct it")
    return wanted, size


def core_for(terms: int, d_out: int, d_in: int, rank: int) -> str:
    """'qr', 'gram' or 'block', from sizes alone: the quickest that is exact, or the block iteration where that is slow.

    QR is quickest where factors are small, and gives all triplets where nearly all are wanted. The Gram core's passes
    over the factors cost R² (d_in + d_out) and its LAPACK some 100 R³, which is as much from R = 500 on at 4096 × 4096;
    there the block iteration, which stops short of the optimum by an amount that it states, is 3 times as quick, and 10
    times at R = 1,600 (benchmarks/bench_lora_truncate.py). Its Grams take R² numbers and R² (d_in + d_out) products,
    where QR takes R (d_in² + d_out²), four times as slowly: 1.7 s each at R = 4,096 on 1024 × 1024.
    """
    narrow, few = min(d_out, d_in), terms * (d_out + d_in) <= SLOWER * (d_out**2 + d_in**2)
    if terms >= max(MANY, TIMES * rank) and narrow >= TIMES * rank and few:
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
    alive = values > found.noise
    root = np.sqrt(values / abs(scale))
    out_a, out_b = np.zeros((rank, right.shape[1])), np.zeros((len(left), rank))
    out_a[:kept] = right * np.where(alive, root, 1.0)[:, None]
    fresh = fresh_rows(rank, kept, right.shape[1])
    if len(fresh):
        basis, signs = np.linalg.qr(np.hstack((right.T, fresh.T)))
        out_a[kept : kept + len(fresh)] = (basis * np.where(signs.diagonal() < 0, -1.0, 1.0)).T[kept:]
    out_b[:, :kept] = left * (np.where(alive, root, 0.0) * np.sign(scale))
    lost = float(np.linalg.norm(np.concatenate((values[~alive], found.values[kept:], [found.lost]))))
    if found.norm <= found.noise:  # no value is alive
        return Truncated(out_a, out_b, 0.0, 0.0, 0.0, 0.0, found.core)
    most = np.sqrt(lost**2 + found.slack) + found.noise
    least = np.sqrt(max(lost**2 - found.slack - _more_kept(found, kept), 0.0)) - found.noise
    most, least = most / (found.norm - found.noise), max(least, 0.0) / (found.norm + found.noise)
    return Truncated(out_a, out_b, found.norm, lost / found.norm, float(most), float(least), found.core)


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
