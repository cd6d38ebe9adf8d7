"""The Grams of stacked factors and what follows from them: the Gram core, and the block iteration where R ≫ rank.

Of Δ = B diag(c) A with B (d_out, R), A (R, d_in), c (R,):

**Gram core.** G_B = BᵀB and G_A = AAᵀ in fp64, and G_A = H Hᵀ by its eigenvectors: Hᵀ G_B H has the squares of Δ's
singular values for eigenvalues. With W its leading eigenvectors, B H W spans the leading left singular vectors: no root
is inverted. Squares keep half the digits, so that product is only made orthonormal, Q, and the triplets are those of
its projection Qᵀ Δ, taken from the factors
themselves. A direction that the Grams' rounding hides is no larger than `hidden`, where ‖δG‖ ≤ γ Σ ‖column‖²
(Higham 2002, Accuracy and Stability of Numerical Algorithms, §3.5); where that is above TOLERANCE ‖Δ‖ there is no
result, and QR decides.

**Block iteration.** Two eigendecompositions and an SVD of R × R are the whole cost where R is large and few triplets
are wanted. Block Krylov iteration (Musco and Musco 2015, "Randomized block Krylov methods for stronger and faster
approximate singular value decomposition", algorithm 2) with G_B G_A finds them from products of R × R with a thin
block, from a fixed start, until a block adds less than GAIN of what is left. The triplets again are those of Qᵀ Δ from
the factors. What is certain afterwards: ‖Δ − QQᵀΔ‖² = ‖Δ‖² − ‖QᵀΔ‖², with ‖Δ‖² = Σ G_A ∘ G_B; and Σ σ⁴ = tr (G_A G_B)²,
which bounds what any other triplets could have kept (`_more_kept` in lora_truncate.py).

Factors that fp32 holds are worked on in fp32, where every bf16 product is exact. `slack` is then the rounding of ‖Δ‖²
at the worst, Σ_ij γ |a_i||a_j||G_B,ij| and the like; some 10⁶ times what it is in practice. Where it leaves the
residual open by more than OPEN the Grams are made again in fp64, and where that leaves it open too, QR decides.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fedcore.reference.lora_truncate import Leading

#: the largest direction, against ‖Δ‖, that the Gram core may miss
TOLERANCE = 2.0**-18
#: inner products of a Gram longer than this are summed in parts, which bounds their rounding
PART = {np.dtype("f4"): 4096, np.dtype("f8"): 1024}
#: vectors of a block beside those that are wanted
OVERSAMPLING = 8
#: blocks at most, and the share of ‖Δ − QQᵀΔ‖² that one must add for another one to follow
BLOCKS, GAIN = 6, 2.0**-8
#: how far above the residual that is reported the true one may be, before fp64 decides
OPEN = 2.0**-4
#: eigenvalues of a block's Gram below this share of the largest are rounding
NOISE = {np.dtype("f4"): 1e-6, np.dtype("f8"): 1e-13}
#: squared norms of terms between which a Gram in that dtype neither overflows nor loses what is small
RANGE = {np.dtype("f4"): (1e-22, 1e30), np.dtype("f8"): (1e-280, 1e280)}
#: what a block is multiplied with
Product = Callable[[np.ndarray], np.ndarray]
#: rows of a Gram that are looked at together, so that they stay in the cache
ROWS = 64
#: bytes of a factor that are in fp64 at a time
PIECE = 1 << 22


class Grams(NamedTuple):
    """Inner products of rank-one terms: `b` and `a` (R, R), each entry off by slack times its two norms at most."""

    b: np.ndarray
    a: np.ndarray
    slack_b: float
    slack_a: float

    def in_range(self, b: np.ndarray, a: np.ndarray) -> bool:
        """Whether no squared norm is NaN, Inf or so small that its dtype loses it."""
        low, high = RANGE[self.b.dtype]
        for found, columns in ((self.b.diagonal(), b), (self.a.diagonal(), a.T)):
            small = np.flatnonzero(found < low)
            if not (found <= high).all() or columns[:, small].any():
                return False
        return True


def term_grams(b: np.ndarray, a: np.ndarray, dtype: npt.DTypeLike | None = None) -> Grams:
    """The Grams of the columns of b (d_out, R) and the rows of a (R, d_in), in `dtype` or theirs, fp32 or fp64."""
    wanted = b.dtype if dtype is None else np.dtype(dtype)
    with np.errstate(over="ignore", invalid="ignore"):  # found by `in_range`
        (gram_b, slack_b), (gram_a, slack_a) = _gram(b, wanted), _gram(a.T, wanted)
    return Grams(gram_b, gram_a, slack_b, slack_a)


def _gram(columns: np.ndarray, dtype: np.dtype) -> tuple[np.ndarray, float]:
    d, part = len(columns), PART[dtype]
    first = columns[:part].astype(dtype, copy=False)
    found = first.T @ first
    for start in range(part, d, part):
        rows = columns[start : start + part].astype(dtype, copy=False)
        found += rows.T @ rows
    return found, (min(d, part) + d // part + 8) * _unit(dtype)


def _unit(dtype: np.dtype) -> float:
    return float(np.finfo(dtype).eps) / 2


def _balance(grams: Grams, share: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scale both Grams, in place, so that each term has norms of one size in b diag(share) and a.

    Returns what columns of b are to be multiplied by, and the norms (R,) that both have then.
    """
    norm_b, norm_a = (np.sqrt(gram.diagonal().astype(np.float64)) for gram in (grams.b, grams.a))
    alive = (share != 0) & (norm_b > 0) & (norm_a > 0)
    size = np.where(alive, norm_b * np.abs(share), 1.0)
    to_a = np.where(alive, np.sqrt(size / np.where(alive, norm_a, 1.0)), 0.0)
    to_b = np.where(alive, share / np.where(alive, to_a, 1.0), 0.0)
    for gram, scale in ((grams.b, to_b), (grams.a, to_a)):
        factor = scale.astype(gram.dtype)
        gram *= factor[:, None]
        gram *= factor
    return to_b, norm_a * to_a


def gram_core(b: np.ndarray, a: np.ndarray, share: np.ndarray, q: int) -> Leading | None:
    """The q leading triplets of b (d_out, R) · diag(share) · a (R, d_in), fp32 or fp64, in fp64; None: see above."""
    grams = term_grams(b, a, np.float64)
    if not grams.in_range(b, a):
        return None
    to_b, sizes = _balance(grams, share)
    squares, axes = np.linalg.eigh(grams.a)
    half = axes * np.sqrt(np.maximum(squares, 0))
    squares, axes = np.linalg.eigh(half.T @ (grams.b @ half))
    squares = np.maximum(squares[::-1], 0)
    square, total = float(squares.sum()), float(sizes @ sizes)
    largest_b, largest_a = (float(np.abs(gram).sum(1).max()) for gram in (grams.b, grams.a))
    hidden = total * (grams.slack_b * largest_a + grams.slack_a * largest_b)
    if not hidden <= TOLERANCE**2 * square:
        return None
    near = wide_product((to_b[:, None] * (half @ axes[:, ::-1][:, :q])).T, b.T).T
    left, values, right = _project(near, b, a, share)
    lost = float(squares[q:].sum())
    norm, fourth = np.sqrt(float(values @ values) + lost), float((values**4).sum() + np.square(squares[q:]).sum())
    noise = projection_noise(b, a, q, total)
    return Leading(left, right, values, float(norm), float(np.sqrt(lost)), hidden, noise, fourth, len(a), "gram")


def projection_noise(b: Any, a: Any, q: int, total: float) -> float:
    """What rounding makes of 0 at most in `_project` of q vectors: as in the definition, with q² for the core's R².

    total   Σ ‖b_j‖|c_j|‖a_j‖ over the rank-one terms
    """
    (d_out, terms), d_in = b.shape[-2:], a.shape[-1]
    return (d_out + d_in + terms + q**2) * _unit(np.dtype("f8")) * total


def _project(
    near: np.ndarray, b: np.ndarray, a: np.ndarray, share: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(left, values, right) of QQᵀ · b diag(share) a in fp64, with Q an orthonormal basis of near (d_out, q)."""
    basis = np.linalg.qr(near.astype(np.float64))[0]
    core = wide_product(np.ascontiguousarray(basis.T), b) * share
    q_a, r_a = np.linalg.qr(wide_product(core, a).T)
    u, values, vt = np.linalg.svd(r_a.T)
    return basis @ u, values, vt @ q_a.T


def wide_product(thin: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """thin (q, m) fp64 · factor (m, n) in fp64, some rows of the factor at a time where they are fp32."""
    if factor.dtype == np.float64:
        return thin @ factor
    rows = max(PIECE // (8 * factor.shape[1]), 16)
    piece, found = np.empty((rows, factor.shape[1])), np.zeros((len(thin), factor.shape[1]))
    for start in range(0, len(factor), rows):
        part = factor[start : start + rows]
        piece[: len(part)] = part
        found += thin[:, start : start + rows] @ piece[: len(part)]
    return found


def block_core(b: np.ndarray, a: np.ndarray, share: np.ndarray, q: int, grams: Grams) -> Leading | None:
    """The q leading triplets of b (d_out, R) · diag(share) · a (R, d_in), both fp32 or fp64; the Grams are used up.

    None where the Grams are out of their dtype's range, or leave the residual open.
    """
    if not grams.in_range(b, a):
        return None
    to_b, sizes = _balance(grams, share)
    square, slack, fourth = _moments(grams, sizes)
    by_a, by_b = (lambda x: grams.a @ x), (lambda x: grams.b @ x)
    coefficients = iterate(by_a, by_b, len(a), b.dtype, q, square)
    left, values, right = _project(b @ (to_b[:, None] * coefficients).astype(b.dtype), b, a, share)
    lost = max(square - float(values @ values), 0.0)
    # terms that cancel can leave a sum of squares below 0
    if square < 0 or np.sqrt(lost + slack) - np.sqrt(lost) > OPEN * np.sqrt(square):
        return None
    norm, noise = float(np.sqrt(square)), projection_noise(b, a, q, float(sizes @ sizes))
    return Leading(left, right, values, norm, float(np.sqrt(lost)), slack, noise, fourth, len(a), "block")


def _moments(grams: Grams, sizes: np.ndarray) -> tuple[float, float, float]:
    """(‖Δ‖², how far that is off at most, Σ σ⁴ at most) from balanced Grams.

    Σ σ⁴ = tr (G_A G_B)²: with D what the computed product is off by, no more than tr + 2 ‖G_A G_B‖‖D‖ + ‖D‖².
    """
    product, dtype, rank, total = grams.a @ grams.b, grams.a.dtype, len(grams.a), float(sizes @ sizes)
    square = trace = size = 0.0
    over, largest, norm = np.zeros(2), np.zeros(2), np.zeros(2)
    for start in range(0, rank, ROWS):
        rows = slice(start, start + ROWS)
        square += float((grams.b[rows] * grams.a[rows]).sum(dtype=np.float64))
        trace += float((product[rows] * product[:, rows].T).sum(dtype=np.float64))
        size += float(np.square(product[rows]).sum(dtype=np.float64))
        for k, gram in enumerate((grams.b, grams.a)):
            part = np.abs(gram[rows])
            over[k] += sizes[rows] @ (part @ sizes.astype(dtype))
            largest[k] = max(largest[k], part.sum(1).max())
            norm[k] += float(np.square(part, out=part).sum(dtype=np.float64))
    slack = grams.slack_a * over[0] + grams.slack_b * (over[1] + grams.slack_a * total**2)
    off = total * (grams.slack_a * (largest[0] + grams.slack_b * total) + grams.slack_b * largest[1])
    off += (rank + 2) * _unit(dtype) * np.sqrt(norm.prod())
    return square, float(slack), float(trace + 2 * np.sqrt(size) * off + off**2)


def iterate(by_a: Product, by_b: Product, rank: int, dtype: np.dtype, q: int, total: float) -> np.ndarray:
    """(R, q) coefficients of b's columns: their combinations span nearly the q leading left vectors.

    by_a, by_b   products with both Grams (R, R), of a block (R, m)
    rank, dtype  R, and what blocks are in
    total        ‖Δ‖²
    """
    width = min(q + OVERSAMPLING, rank)
    block = np.random.default_rng(0).standard_normal((rank, width)).astype(dtype)
    basis, images, kept = np.empty((rank, 0)), np.empty((rank, 0)), 0.0
    inner, outer = np.empty((0, 0)), np.empty((0, 0))
    for _ in range(max(min(BLOCKS, rank // width), 1)):
        block = np.linalg.qr(block)[0]
        image = by_a(block)
        following = by_b(image)
        basis, images = np.hstack((basis, block)), np.hstack((images, image))
        # ⟨·, ·⟩ of the blocks' images under Aᵀ, and of those under B diag(c) A Aᵀ
        inner, outer = _bordered(inner, basis.T @ image), _bordered(outer, images.T @ following)
        values, vectors = _ritz(inner, outer, NOISE[dtype])
        gained, kept = float(values[:q].sum()) - kept, float(values[:q].sum())
        if gained <= GAIN * max(total - kept, 0.0):
            break
        # what is new in the next block: twice, as once leaves what rounding put back
        for _ in range(2):
            following = following - (basis @ (basis.T @ following)).astype(dtype)
        block = following
    found = np.zeros((rank, q))
    found[:, : vectors.shape[1]] = images @ vectors[:, :q]
    return found


def _bordered(matrix: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """A symmetric matrix with more columns, and their transpose for rows."""
    old, new = len(matrix), columns.shape[1]
    found = np.empty((old + new, old + new))
    found[:old, :old], found[:, old:] = matrix, columns
    found[old:, :old] = columns[:old].T
    found[old:, old:] = (columns[old:] + columns[old:].T) / 2
    return found


def _ritz(inner: np.ndarray, outer: np.ndarray, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """(values, vectors), largest first, of outer · x = value · inner · x; directions of no size are left out."""
    sizes, axes = np.linalg.eigh(inner)
    kept = sizes > noise * sizes[-1]
    half = axes[:, kept] / np.sqrt(sizes[kept])
    values, vectors = np.linalg.eigh(half.T @ outer @ half)
    return values[::-1], half @ vectors[:, ::-1]
