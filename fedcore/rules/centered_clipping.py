"""Centred clipping: steps from a centre towards the clients, each client's pull bounded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedcore.numbers import keep
from fedcore.rules.coefficients import distances_to
from fedcore.rules.geometry import Geometry
from fedcore.rules.parameters import check_count, check_positive
from fedcore.rules.rule import Coefficients, Rule


@dataclass(frozen=True)
class CenteredClipping(Rule):
    """v ← v + (1/n) Σ_i (x_i − v) min(1, τ / ‖x_i − v‖), `iterations` times from the centre, with τ = radius.

    The centre is what is passed as `center=`: with state, the last round's result (of changes: the reference moved on
    by the last round's change), without it the reference, which is where nothing is passed. The iteration runs on
    coefficients, so the data are read twice however many steps are taken. A coefficient below the normal range of fp32
    is rounded to 0: a row so far away moves nothing. Weights are ignored.

    Breakdown point: with a centre at distance C of the honest mean the error is O(√(f/n) · spread) for f/n below about
    0.1 (the paper's Theorem IV); f clients move the centre by at most iterations · fτ/n. Needs n ≥ 1. Cost: the Gram
    matrix of n + 1 rows and one sum. Karimireddy, He and Jaggi 2021, "Learning from History for Byzantine Robust
    Optimization", ICML, Algorithm 2.
    """

    radius: float
    iterations: int = 1
    needs: ClassVar[frozenset[str]] = frozenset({"gram"})
    uses: ClassVar[tuple[str, ...]] = ("center",)
    origin: ClassVar[str | None] = "center"

    def __post_init__(self) -> None:
        keep(self, radius=check_positive("CenteredClipping", "radius", self.radius))
        keep(self, iterations=check_count("CenteredClipping", "iterations", self.iterations, 1))

    def decide(self, geometry: Geometry, weights: np.ndarray | None) -> Coefficients:
        """The coefficients of v after the last step; `weights` do not count."""
        n, total = geometry.clients, geometry.clients + geometry.references
        center = total - 1
        inner = geometry.inner_products_from(center)
        values = np.zeros(total)
        values[center] = 1.0
        factors = np.ones(n)
        for _ in range(self.iterations):
            factors = self.radius / np.maximum(distances_to(values, inner)[:n], self.radius)
            values *= 1 - np.cumsum(factors)[-1] / n
            values[:n] += factors / n
        clipped = int((factors < 1).sum())
        return Coefficients(values, details={"clipped": clipped}, per_client={"clipping_factors": factors})
