"""The covariance-bound agnostic filter: clients lose weight along the direction in which the cohort spreads most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedcore.numbers import keep
from fedcore.rules.geometry import SAME_ROW, Geometry
from fedcore.rules.parameters import check_count, check_minority
from fedcore.rules.rule import Coefficients, Rule

#: rows up to which all eigenvectors are taken; above, a block of BLOCK is iterated, and given up after MOST_STEPS: once
#: what stood out has been filtered no eigenvalue does, and some thousand steps would cost more than all eigenvectors
DENSE = 1000
BLOCK, MOST_STEPS = 8, 20


@dataclass(frozen=True)
class SpectralFilter(Rule):
    """Weights c_i = 1 at first; while Σ c_i > n − 2f, c_i ← c_i (1 − τ_i / max τ), and the best mean on the way counts.

    τ_i = ⟨v, x_i − μ⟩² with μ = Σ c_i x_i / Σ c_i and v the first eigenvector of the covariance of the rows weighted by
    c. The result is the μ whose covariance had the smallest first eigenvalue. No bound on the covariance is assumed.
    Eigenvectors come from the Gram matrix, converged, where ByzFL's CAF takes one step of the power method from a
    random start. The clients' own weights are ignored.

    Breakdown point: f of n; needs 2f < n. Cost: the Gram matrix and one sum; an eigenproblem in n-space for each filter
    step, of which there are at most n, since each takes all weight of one client. Allouah, Guerraoui and Stephan 2025,
    "Towards Trustworthy Federated Learning with Untrusted Participants", ICML, Algorithm 2 (CAF); Diakonikolas et al.
    2017, "Being Robust (in High Dimensions) Can Be Practical", ICML, for the filter.
    """

    f: int
    needs: ClassVar[frozenset[str]] = frozenset({"gram"})

    def __post_init__(self) -> None:
        keep(self, f=check_count("SpectralFilter", "f", self.f, 0))

    def check(self, clients: int) -> None:
        """Raise RuleError, with the largest f for this n, if a majority could be Byzantine."""
        check_minority("SpectralFilter", self.f, clients)

    def decide(self, geometry: Geometry, weights: np.ndarray | None) -> Coefficients:
        """The weights c of the best mean; `weights` do not count."""
        self.check(geometry.clients)
        n = geometry.clients
        inner = geometry.inner_products()[:n, :n]
        kept = best = np.ones(n)
        least, steps, basis = np.inf, 0, None
        # a sum that is n − 2f but for the Gram's rounding counts as that
        enough = (n - 2 * self.f) * (1 + n * SAME_ROW)
        while True:
            share = kept / kept.sum()
            toward = inner @ share
            centered = inner - toward[:, None] - toward[None, :] + share @ toward
            root = np.sqrt(share)
            value, vector, basis = _first_eigenvector(root[:, None] * centered * root, basis)
            if value < least:
                least, best = value, kept
            # who has no weight left has no say in how far the others come
            reach = np.where(kept > 0, np.square(centered @ (root * vector)), 0.0)
            settled = value <= SAME_ROW * max(float((share * inner.diagonal()).max()), 0.0) or not reach.any()
            if settled or kept.sum() <= enough:  # the sum of all: f = 0 takes no step
                break
            steps += 1
            kept = kept * (1 - reach / reach.max())
            if kept.sum() <= enough:
                break
        values = np.zeros(n + geometry.references)
        values[:n] = best
        reasons = {
            int(i): "filtered out: it lay farthest along the first eigenvector" for i in np.flatnonzero(best == 0)
        }
        details = {"filter_steps": steps, "first_eigenvalue": float(least)}
        return Coefficients(values, reasons, details=details, per_client={"weights_kept": best})


def _first_eigenvector(matrix: np.ndarray, basis: np.ndarray | None) -> tuple[float, np.ndarray, np.ndarray | None]:
    """(largest eigenvalue, its vector, a basis to start the next search from) of a symmetric matrix (n, n), n ≥ 1.

    Large ones by block iteration with Rayleigh–Ritz from `basis`: the filter changes the matrix a little at a time.
    """
    if len(matrix) <= DENSE:
        values, vectors = np.linalg.eigh(matrix)
        return float(values[-1]), vectors[:, -1], None
    if basis is None:
        # columns that hold the most: deterministic, and never orthogonal to what is sought
        basis = matrix[:, np.argsort(-matrix.diagonal(), kind="stable")[:BLOCK]]
    for _ in range(MOST_STEPS):
        frame, _ = np.linalg.qr(basis)
        image = matrix @ frame
        values, vectors = np.linalg.eigh(frame.T @ image)
        vector, basis = frame @ vectors[:, -1], image
        if np.linalg.norm(image @ vectors[:, -1] - values[-1] * vector) <= 1e-10 * abs(values[-1]):
            return float(values[-1]), vector, basis
    values, vectors = np.linalg.eigh(matrix)
    return float(values[-1]), vectors[:, -1], basis
