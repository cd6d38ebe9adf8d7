"""The covariance-bound agnostic filter: clients lose weight along the direction in which the cohort spreads most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedcore.numbers import keep
from fedcore.rules.first_eigenvector import first_eigenvector
from fedcore.rules.geometry import SAME_ROW, Geometry
from fedcore.rules.parameters import check_count, check_minority
from fedcore.rules.rule import Coefficients, Rule


@dataclass(frozen=True)
class SpectralFilter(Rule):
    """Weights c_i = 1 at first; while Σ c_i > n − 2f, c_i ← c_i (1 − τ_i / max τ), and the best mean on the way counts.

    τ_i = ⟨v, x_i − μ⟩² with μ = Σ c_i x_i / Σ c_i and v the first eigenvector of the covariance of the rows weighted by
    c. The result is the μ whose covariance had the smallest first eigenvalue. No bound on the covariance is assumed.
    Eigenvectors come from the Gram matrix, converged and certified to be the first whatever rows are sent, where
    ByzFL's CAF takes one step of the power method from a random start. The clients' own weights are ignored.

    Breakdown point: f of n; needs 2f < n. Cost: the Gram matrix and one sum; at most n filter steps, since each takes
    all weight of one client, of some tens of products of an (n, n) matrix with a vector and n³/3 for the certificate,
    or 9 n³ where that fails. Allouah, Guerraoui and Stephan 2025, "Towards Trustworthy Federated Learning with
    Untrusted Participants", ICML, Algorithm 2 (CAF); Diakonikolas et al. 2017, "Being Robust (in High Dimensions) Can
    Be Practical", ICML, for the filter.
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
        least, steps = np.inf, 0
        # a sum that is n − 2f but for the Gram's rounding counts as that
        enough = (n - 2 * self.f) * (1 + n * SAME_ROW)
        while True:
            share = kept / kept.sum()
            toward = inner @ share
            centered = inner - toward[:, None] - toward[None, :] + share @ toward
            root = np.sqrt(share)
            value, vector = first_eigenvector(root[:, None] * centered * root)
            if value < least:
                least, best = value, kept
            # who has no weight left has no say in how far the others come
            reach = np.where(kept > 0, np.abs(centered @ (root * vector)), 0.0)
            settled = value <= SAME_ROW * max(float((share * inner.diagonal()).max()), 0.0) or not reach.any()
            if settled or kept.sum() <= enough:  # the sum of all: f = 0 takes no step
                break
            steps += 1
            # divided first: the square of what rows in delta space can reach is no number
            kept = kept * (1 - np.square(reach / reach.max()))
            if kept.sum() <= enough:
                break
        values = np.zeros(n + geometry.references)
        values[:n] = best
        reasons = {
            int(i): "filtered out: it lay farthest along the first eigenvector" for i in np.flatnonzero(best == 0)
        }
        details = {"filter_steps": steps, "first_eigenvalue": float(least)}
        return Coefficients(values, reasons, details=details, per_client={"weights_kept": best})
