"""Norm clipping: a bound on how far any one client moves the result."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fedcore.errors import RuleError
from fedcore.rules.geometry import Geometry
from fedcore.rules.rule import Coefficients, Mixing, PreAggregation


@dataclass(frozen=True)
class NormClipping(PreAggregation):
    """Each client pulled back towards the reference r to a distance of at most C = max_norm, then the weighted mean.

    y_i = r + λ_i (x_i − r) with λ_i = min(1, C / ‖x_i − r‖), so λ_i counts for the client and 1 − λ_i for the
    reference. r is the point that the clients moved from; where none is given it is the zero row, and rows are clipped
    as they are. ‖x_i − r‖ is taken with the bound of its error added and λ_i is rounded down to fp32 (to 0 below the
    normal range), so no clipped row is longer than C by more than the last bits of its weight in fp32. As a
    pre-aggregation it hands the clipped rows on: `NormClipping(1.0).then(Krum(f=2))`.

    Breakdown point 0, but with equal weights f clients move the result by at most 2fC/n. Needs n ≥ 1 and max_norm > 0,
    in the units of the rows. Cost: one pass for the norms and one for the sum. Sun et al. 2019, "Can You Really
    Backdoor Federated Learning?", arXiv:1911.07963, section 4.
    """

    max_norm: float
    needs: ClassVar[frozenset[str]] = frozenset({"norms"})
    uses_reference: ClassVar[bool] = True
    uses_weights: ClassVar[bool] = True

    def __post_init__(self) -> None:
        number = isinstance(self.max_norm, (int, float)) and not isinstance(self.max_norm, bool)
        if not (number and math.isfinite(self.max_norm) and self.max_norm > 0):
            raise RuleError(f"NormClipping: got max_norm={self.max_norm!r}, expected a finite number above 0")

    def _factors(self, geometry: Geometry) -> tuple[np.ndarray, dict[str, Any], dict[str, np.ndarray]]:
        """λ (clients,) as fp32 numbers in fp64, rounded down; what to report of the cohort and of each client."""
        square, error = geometry.squared_distances_to_reference()
        factors = self.max_norm / np.maximum(np.sqrt(square + error), self.max_norm)
        rounded = factors.astype(np.float32)
        above = rounded.astype(np.float64) > factors
        rounded[above] = np.nextafter(rounded[above], np.float32(0))
        used = rounded.astype(np.float64)
        return used, {"clipped": int((used < 1).sum())}, {"norms": np.sqrt(square)}

    def coefficients(self, geometry: Geometry, weights: np.ndarray | None) -> Coefficients:
        """w_i λ_i for client i and Σ w_i (1 − λ_i) for the reference."""
        factors, details, per_client = self._factors(geometry)
        share = np.ones(geometry.clients) if weights is None else weights
        values = np.zeros(geometry.clients + geometry.references)
        values[: geometry.clients] = share * factors
        values[geometry.clients] = np.cumsum(share * (1 - factors))[-1]
        return Coefficients(values, details=details, per_client=per_client)

    def mixing(self, geometry: Geometry, weights: np.ndarray | None) -> Mixing:
        """Row i is λ_i of client i and 1 − λ_i of the reference; weights stay with their clients."""
        factors, details, per_client = self._factors(geometry)
        n = geometry.clients
        matrix = np.zeros((n, n + geometry.references))
        matrix[np.arange(n), np.arange(n)] = factors
        matrix[:, n] = 1 - factors
        return Mixing(matrix, weights, details, per_client)
