"""lora_truncate of tensors on a GPU: the cores of all modules of one size in batched passes, where the factors lie.

The Gram core of lora_cores.py with torch.linalg in place of NumPy's, all of it in fp64, a leading axis of modules in
front; modules of fewer terms are filled up with zeros. What comes back to the host of a pass is a flag a module, which
says whether its Grams hide a direction, so that QR decides for it, and in the end its norms. There is no block
iteration here: a Gram core is exact, and its R × R eigenproblems are what a GPU is quick at.

The same steps and bounds as on the host: results are within 4e-6 ‖Δ‖ of the definition
(fedcore/reference/lora_truncate.py) at worst. Their order of additions is the device's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fedcore.ops.lora_cores import PART, RANGE, TOLERANCE, projection_noise
from fedcore.ops.lora_stack import Parts, Truncated, fresh_rows

#: bytes of stacked fp64 factors that one pass takes, unless a single module needs more
PASS = 4 << 30
#: the unit roundoff of fp64
UNIT = 2.0**-53


class Triplets(NamedTuple):
    """Leading triplets of m modules, as `Leading` has them of one: tensors with an axis of modules in front."""

    left: Any
    values: Any
    right: Any
    norm: Any
    lost: Any
    slack: Any
    noise: Any
    core: str


def passes(modules: Sequence[Parts]) -> list[list[int]]:
    """Which modules go together: of one size on one device, as many as PASS holds."""
    alike: dict[Any, list[int]] = {}
    for m, parts in enumerate(modules):
        alike.setdefault((parts.d_out, parts.d_in, parts.device), []).append(m)
    found = []
    for (d_out, d_in, _), index in alike.items():
        terms = most_terms([modules[m] for m in index])
        step = max(PASS // (8 * terms * (d_out + d_in)), 1)
        found += [index[start : start + step] for start in range(0, len(index), step)]
    return found


def most_terms(modules: Sequence[Parts]) -> int:
    """R, to which modules of fewer terms are filled up: at least 1, where no client has a rank."""
    return max(1, *(len(parts.share) for parts in modules))


def stacked(modules: Sequence[Parts]) -> tuple[Any, Any, Any]:
    """(b (m, d_out, R), a (m, R, d_in), share (m, R)) in fp64 on the modules' device; missing terms are 0."""
    import torch

    d_out, d_in, terms = modules[0].d_out, modules[0].d_in, most_terms(modules)
    options = {"dtype": torch.float64, "device": modules[0].device}
    b = torch.zeros((len(modules), d_out, terms), **options)
    a = torch.zeros((len(modules), terms, d_in), **options)
    share = np.zeros((len(modules), terms))
    for m, parts in enumerate(modules):
        count = len(parts.share)
        b[m, :, :count].copy_(torch.cat(list(parts.b), 1))
        a[m, :count].copy_(torch.cat(list(parts.a), 0))
        share[m, :count] = parts.share
    return b, a, torch.from_numpy(share).to(modules[0].device)


def truncate_pass(
    modules: Sequence[Parts], ranks: Sequence[int], scale: float, core: str
) -> list[dict[int, Truncated]]:
    """The answers for modules of one size; core: 'qr' for all of them, else Gram cores where those hide nothing.

    Raises NonFiniteError naming module and row.
    """
    b, a, share = stacked(modules)
    q = min(max(ranks), b.shape[1], *a.shape[1:])
    left, found = np.arange(len(modules)), []
    if core != "qr":
        triplets, sure = gram_cores(b, a, share, q)
        found.append((np.flatnonzero(sure), triplets))
        left = np.flatnonzero(~sure)
    if left.size:
        for m in left.tolist():
            modules[m].refuse(finite_terms(b[m], a[m]))
        chosen = slice(None) if len(left) == len(modules) else left.tolist()
        found.append((left, qr_cores(b[chosen], a[chosen], share[chosen], q)))
    answers: list[dict[int, Truncated]] = [{} for _ in modules]
    for index, triplets in found:
        for rank in ranks if index.size else ():
            out_a, out_b, figures = balanced_batch(triplets, rank, scale)
            for k, m in enumerate(index.tolist()):
                norm, residual, most, least = figures[k].tolist()
                answers[m][rank] = Truncated(out_a[k], out_b[k], norm, residual, most, least, triplets.core)
    return answers


def gram_cores(b: Any, a: Any, share: Any, q: int) -> tuple[Triplets, np.ndarray]:
    """(triplets of those modules whose Grams hide nothing, which those are (m,)), as `gram_core`."""
    import torch

    (gram_b, slack_b), (gram_a, slack_a) = _grams(b), _grams(a.mT)
    usable = _in_range(gram_b, b) & _in_range(gram_a, a.mT)
    one = torch.eye(gram_b.shape[-1], dtype=b.dtype, device=b.device)
    gram_b, gram_a = (torch.where(usable[:, None, None], gram, one) for gram in (gram_b, gram_a))
    to_b, sizes = _balance(gram_b, gram_a, share)
    squares, axes = torch.linalg.eigh(gram_a)
    half = axes * squares.clamp_min(0).sqrt()[:, None]
    squares, axes = torch.linalg.eigh(half.mT @ (gram_b @ half))
    squares, axes = squares.flip(-1).clamp_min(0), axes.flip(-1)
    largest_b, largest_a = (gram.abs().sum(-1).amax(-1) for gram in (gram_b, gram_a))
    total = sizes.square().sum(-1)
    hidden = total * (slack_b * largest_a + slack_a * largest_b)
    sure = usable & (hidden <= TOLERANCE**2 * squares.sum(-1))
    kept = sure.cpu().numpy()
    if not kept.all():
        b, a, share, to_b, half, axes, squares, hidden, total = (
            x[sure] for x in (b, a, share, to_b, half, axes, squares, hidden, total)
        )
    left, values, right = _project(b @ (to_b[..., None] * (half @ axes[..., :q])), b, a, share)
    lost = squares[:, q:].sum(-1)
    norm = (values.square().sum(-1) + lost).sqrt()
    return Triplets(left, values, right, norm, lost.sqrt(), hidden, projection_noise(b, a, q, total), "gram"), kept


def qr_cores(b: Any, a: Any, share: Any, q: int) -> Triplets:
    """As fedcore/reference/lora_truncate.py has it."""
    import torch

    q_b, r_b = torch.linalg.qr(b * share[:, None])
    q_a, r_a = torch.linalg.qr(a.mT)
    u, values, vt = torch.linalg.svd(r_b @ r_a.mT, full_matrices=False)
    lost = torch.linalg.vector_norm(values[:, q:], dim=-1)
    norm = torch.linalg.vector_norm(values, dim=-1)
    left, right = q_b @ u[..., :q], vt[:, :q] @ q_a.mT
    (d_out, terms), d_in = b.shape[1:], a.shape[2]
    noise = (d_out + d_in + terms * min(terms, max(d_out, d_in))) * UNIT * (_lengths(r_b) * _lengths(r_a)).sum(-1)
    return Triplets(left, values[:, :q], right, norm, lost, torch.zeros_like(lost), noise, "qr")


def balanced_batch(found: Triplets, rank: int, scale: float) -> tuple[Any, Any, np.ndarray]:
    """As `balanced` of lora_truncate.py, of all modules at once: (a (m, rank, d_in), b (m, d_out, rank), figures).

    figures   (m, 4) on the host: ‖Δ‖, and in units of that the residual, its most and its least
    """
    import torch

    kept = min(rank, found.values.shape[1])
    largest = found.left.abs().argmax(1, keepdim=True)
    sign = torch.where(found.left.gather(1, largest) < 0, -1.0, 1.0).to(found.values.dtype)
    left, right = (found.left * sign)[..., :kept], (found.right * sign.mT)[:, :kept]
    values = found.values[:, :kept]
    alive = values > found.noise[:, None]
    root = (values / abs(scale)).sqrt()
    m, d_out, d_in = len(left), left.shape[1], right.shape[2]
    a, b = left.new_zeros((m, rank, d_in)), left.new_zeros((m, d_out, rank))
    a[:, :kept] = right * torch.where(alive, root, 1.0)[..., None]
    fresh = torch.from_numpy(fresh_rows(rank, kept, d_in)).to(a.device)
    if len(fresh):
        basis, signs = torch.linalg.qr(torch.cat((right, fresh.expand(m, -1, -1)), 1).mT)
        signs = torch.where(signs.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0)
        a[:, kept : kept + len(fresh)] = (basis.mT * signs[..., None])[:, kept:]
    b[..., :kept] = left * (torch.where(alive, root, 0.0) * float(np.sign(scale)))[:, None]
    dead = torch.where(alive, 0.0, values).square().sum(-1)
    lost = dead + found.values[:, kept:].square().sum(-1) + found.lost.square()
    most = (lost + found.slack).sqrt() + found.noise
    least = ((lost - found.slack).clamp_min(0).sqrt() - found.noise).clamp_min(0)
    bounds = [lost.sqrt() / found.norm, most / (found.norm - found.noise), least / (found.norm + found.noise)]
    figures = torch.stack([found.norm, *bounds], 1)
    return a, b, torch.where((found.norm <= found.noise)[:, None], 0.0, figures).cpu().numpy()


def finite_terms(b: Any, a: Any) -> np.ndarray:
    """(R,) whether each term of one module's stacked factors is finite."""
    import torch

    return (torch.isfinite(b).all(0) & torch.isfinite(a).all(1)).cpu().numpy()


def _lengths(columns: Any) -> Any:
    """(m, R) norms of the columns of (m, d, R), whose squares need not fit."""
    import torch

    largest = columns.abs().amax(1, keepdim=True)
    return torch.linalg.vector_norm(columns / torch.where(largest > 0, largest, 1.0), dim=1) * largest[:, 0]


def _grams(columns: Any) -> tuple[Any, float]:
    """(inner products (m, R, R) of the columns of (m, d, R), how far one is off in units of its two norms)."""
    d, part = columns.shape[1], PART[np.dtype("f8")]
    found = columns[:, :part].mT @ columns[:, :part]
    for start in range(part, d, part):
        rows = columns[:, start : start + part]
        found += rows.mT @ rows
    return found, (min(d, part) + d // part + 8) * UNIT


def _in_range(gram: Any, columns: Any) -> Any:
    """(m,) whether no squared norm is NaN, Inf or so small that fp64 loses it."""
    low, high = RANGE[np.dtype("f8")]
    squares = gram.diagonal(dim1=-2, dim2=-1)
    return ((squares <= high) & ((squares >= low) | ~columns.bool().any(1))).all(-1)


def _balance(gram_b: Any, gram_a: Any, share: Any) -> tuple[Any, Any]:
    """As `_balance` of lora_cores.py: both Grams scaled in place; (what columns of b are multiplied by, norms)."""
    import torch

    norm_b, norm_a = (gram.diagonal(dim1=-2, dim2=-1).sqrt() for gram in (gram_b, gram_a))
    alive = (share != 0) & (norm_b > 0) & (norm_a > 0)
    size = torch.where(alive, norm_b * share.abs(), 1.0)
    to_a = torch.where(alive, (size / torch.where(alive, norm_a, 1.0)).sqrt(), 0.0)
    to_b = torch.where(alive, share / torch.where(alive, to_a, 1.0), 0.0)
    for gram, scale in ((gram_b, to_b), (gram_a, to_a)):
        gram *= scale[..., None]
        gram *= scale[:, None]
    return to_b, norm_a * to_a


def _project(near: Any, b: Any, a: Any, share: Any) -> tuple[Any, Any, Any]:
    """(left, values, right) of QQᵀ · b diag(share) a with Q an orthonormal basis of near (m, d_out, q)."""
    import torch

    basis = torch.linalg.qr(near).Q
    core = (basis.mT @ b) * share[:, None]
    q_a, r_a = torch.linalg.qr((core @ a).mT)
    u, values, vt = torch.linalg.svd(r_a.mT)
    return basis @ u, values, vt @ q_a.mT
