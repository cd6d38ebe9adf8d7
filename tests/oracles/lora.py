"""The formulas of LoRA aggregation papers on dense fp64 matrices, one module at a time.

parts: a list of (s, B (d, r), A (r, k)), one a client; p: shares that sum to 1.
"""

from __future__ import annotations

import numpy as np

from tests.oracles.delta import truncated


def product(part):
    s, b, a = part
    return s * b @ a


def target(parts, p):
    """Σ p_i s_i B_i A_i."""
    return sum(share * product(part) for share, part in zip(p, parts, strict=True))


def fedit(parts, p):
    s = parts[0][0]
    return (
        s
        * sum(w * b for w, (_, b, _) in zip(p, parts, strict=True))
        @ sum(w * a for w, (_, _, a) in zip(p, parts, strict=True))
    )


def padded(matrix, rank, axis):
    shape = list(matrix.shape)
    shape[axis] = rank - shape[axis]
    return np.concatenate((matrix, np.zeros(shape)), axis)


def hetlora(parts):
    """Zero-padded means with weights ‖ΔW_k‖ / Z; the scale lies in B."""
    norms = np.array([np.linalg.norm(product(part)) for part in parts])
    w, rank = norms / norms.sum(), max(len(a) for _, _, a in parts)
    b = sum(x * padded(s * b, rank, 1) for x, (s, b, _) in zip(w, parts, strict=True))
    return b, sum(x * padded(a, rank, 0) for x, (_, _, a) in zip(w, parts, strict=True))


def fair(parts, p, lam):
    """B̄ + argmin over X of ‖Σ p BA − (B̄ + X) Ā‖² + λ‖X‖², by least squares of the stacked system."""
    s = parts[0][0]
    b = sum(w * b for w, (_, b, _) in zip(p, parts, strict=True))
    a = sum(w * a for w, (_, _, a) in zip(p, parts, strict=True))
    missed = target(parts, p) / s - b @ a
    rows = np.vstack((a.T, np.sqrt(lam) * np.eye(len(a))))
    x = np.linalg.lstsq(rows, np.vstack((missed.T, np.zeros((len(a), len(b))))), rcond=None)[0].T
    return s * (b + x) @ a


def rank_partition(parts, p, rank):
    """Each rank-one term on its own: weighted by the share of the client among those that have that many ranks."""
    bounds = sorted({len(a) for _, _, a in parts})
    total = 0.0
    for j in range(bounds[-1]):
        stop = next(bound for bound in bounds if bound > j)
        have = [i for i, (_, _, a) in enumerate(parts) if len(a) >= stop]
        for i in have:
            s, b, a = parts[i]
            total = total + p[i] / sum(p[h] for h in have) * s * np.outer(b[:, j], a[j])
    return truncated(total, rank)


def sketched(delta, omega, psi, rank):
    """One pass: Q (ΨQ)⁺ ΨΔ with Q of ΔΩ; psi None for two: Q QᵀΔ."""
    u, _, _ = np.linalg.svd(delta @ omega, full_matrices=False)
    middle = u.T @ delta if psi is None else np.linalg.pinv(psi @ u) @ (psi @ delta)
    return truncated(u @ middle, rank)
