"""The first eigenvector of a symmetric matrix: found by Lanczos, certified by Cholesky, the same bits each time."""

from __future__ import annotations

import numpy as np

#: rows up to which all eigenvectors are taken, which costs no more there
DENSE = 150
#: steps after which a search is given up: they cost less than all eigenvectors, and some tens are the rule
MOST_STEPS = 300
#: steps before the first look at what was found; each look waits for a fifth more of them
FIRST_LOOK = 8
#: of the eigenvalue: the residual at which a vector counts as its eigenvector, and how far below the first it may lie
CONVERGED, ROOM = 1e-10, 2.0**-30


def first_eigenvector(matrix: np.ndarray) -> tuple[float, np.ndarray]:
    """(largest eigenvalue, an eigenvector of it of length 1) of a symmetric matrix (n, n), n ≥ 1, finite.

    A small residual shows that a value is an eigenvalue, never that it is the first: whoever makes the rows can make
    any start of a search orthogonal to the first eigenvector, or nearly. So what a search finds counts once
    `_none_above` has shown that no eigenvalue exceeds it by more than 2⁻³⁰ of it and rounding; else all eigenvectors
    are taken.
    """
    found = _search(matrix) if len(matrix) > DENSE else None
    if found is not None and _none_above(matrix, found[0] + ROOM * abs(found[0])):
        return found
    values, vectors = np.linalg.eigh(matrix)
    return float(values[-1]), vectors[:, -1]


def _search(matrix: np.ndarray) -> tuple[float, np.ndarray] | None:
    """An eigenvalue and its vector by Lanczos with full reorthogonalisation; None where none converges.

    It is the first one unless the start hardly holds its vector. The start is dense, so that no few rows decide on it.
    """
    n, size = len(matrix), float(np.abs(matrix).max())
    if not size:
        return None
    # lengths are taken by squares, which must neither overflow nor vanish; a power of two rounds nothing
    exponent = max(int(np.frexp(size)[1]), -1022)  # 2¹⁰²³ is the last power
    matrix = matrix * np.ldexp(1.0, -exponent)
    start = matrix @ np.cos(np.arange(n) * (np.arange(n) + 1.0))
    length, most = np.linalg.norm(start), min(MOST_STEPS, n)
    # an orthonormal basis of start, M start, M² start ... in rows; in it the matrix is tridiagonal
    basis, main, beside = np.empty((most, n)), np.zeros(most), np.zeros(most)
    look = FIRST_LOOK
    for step in range(most):
        if not length > 0:
            return None
        basis[step] = start / length
        known = basis[: step + 1]
        start = matrix @ basis[step]
        main[step] = start @ basis[step]
        for _ in range(2):  # once leaves what rounding brings back
            start -= (known @ start) @ known
        length = beside[step] = np.linalg.norm(start)
        if step + 1 < look and step + 1 < most and length > 0:
            continue
        look = max(step + 1 + FIRST_LOOK, 6 * (step + 1) // 5)
        inner = np.diag(main[: step + 1]) + np.diag(beside[:step], 1) + np.diag(beside[:step], -1)
        values, vectors = np.linalg.eigh(inner)
        if length * abs(vectors[-1, -1]) <= CONVERGED * abs(values[-1]):
            return float(np.ldexp(values[-1], exponent)), vectors[:, -1] @ known
    return None


def _none_above(matrix: np.ndarray, bound: float) -> bool:
    """Whether no eigenvalue exceeds `bound`, but for n² 2⁻⁵³ of it.

    Cholesky of S = bound I − matrix ends only where S + E has no negative eigenvalue for some ‖E‖ ≤ (n + 1) 2⁻⁵³ tr S
    (Higham 2002, "Accuracy and Stability of Numerical Algorithms", theorem 10.3), and a covariance has no negative
    diagonal, so that tr S ≤ n bound.
    """
    shifted = -matrix
    shifted[np.diag_indices_from(shifted)] += bound
    try:
        np.linalg.cholesky(shifted)
    except np.linalg.LinAlgError:
        return False
    return True
