"""Clipping: a bound on how far any one client moves the result, fixed (norm clipping) or set by the cohort (ARC)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fedcore.numbers import keep
from fedcore.rules.composition import Mixing, PreAggregation
from fedcore.rules.geometry import Geometry
from fedcore.rules.parameters import check_bool, check_count, check_minority, check_positive
from fedcore.rules.rule import Coefficients


@dataclass(frozen=True)
class _Clipping(PreAggregation):
    """Each client pulled back towards the reference r to a distance of at most `bound`, then the mean."""

    needs: ClassVar[frozenset[str]] = frozenset({"norms"})
    uses: ClassVar[tuple[str, ...]] = ("reference",)

    def bound(self, distances: np.ndarray) -> float:
        """The largest distance to the reference that is left as it is, given the clients' (n,)."""
        raise TypeError(f"{type(self).__name__}: a clipping rule defines `bound`")

    def _factors(self, geometry: Geometry) -> tuple[np.ndarray, dict[str, Any], dict[str, np.ndarray]]:
        """λ (clients,) as fp32 numbers in fp64, rounded down; what to report of the cohort and of each client."""
        square, error = geometry.squared_distances_to_reference()
        upper = np.sqrt(square + error)
        bound = self.bound(upper)
        factors = np.divide(bound, upper, out=np.ones(len(upper)), where=upper > bound)
        rounded = factors.astype(np.float32)
        above = rounded.astype(np.float64) > factors
        rounded[above] = np.nextafter(rounded[above], np.float32(0))
        used = rounded.astype(np.float64)
        details: dict[str, Any] = {"clipped": int((used < 1).sum())}
        if not self.streams:  # a bound that the rule does not show already
            details["bound"] = bound
        return used, details, {"norms": np.sqrt(square)}

    def decide(self, geometry: Geometry, weights: np.ndarray | None) -> Coefficients:
        """w_i λ_i for client i and Σ w_i (1 − λ_i) for the reference."""
        self.check(geometry.clients)
        factors, details, per_client = self._factors(geometry)
        share = np.ones(geometry.clients) if weights is None else weights
        values = np.zeros(geometry.clients + geometry.references)
        values[: geometry.clients] = share * factors
        values[geometry.clients] = np.cumsum(share * (1 - factors))[-1]
        return Coefficients(values, details=details, per_client=per_client)

    def mixing(self, geometry: Geometry, weights: np.ndarray | None) -> Mixing:
        """Row i is λ_i of client i and 1 − λ_i of the reference; weights stay with their clients."""
        self.check(geometry.clients)
        factors, details, per_client = self._factors(geometry)
        n = geometry.clients
        matrix = np.zeros((n, n + geometry.references))
        matrix[np.arange(n), np.arange(n)] = factors
        matrix[:, n] = 1 - factors
        return Mixing(matrix, weights, details, per_client)


@dataclass(frozen=True)
class NormClipping(_Clipping):
    """Each client pulled back towards the reference r to a distance of at most C = max_norm, then the weighted mean.

    y_i = r + λ_i (x_i − r) with λ_i = min(1, C / ‖x_i − r‖), so λ_i counts for the client and 1 − λ_i for the
    reference. r is the point that the clients moved from; where none is given it is the zero row, and rows are clipped
    as they are. ‖x_i − r‖ is taken with the bound of its error added and λ_i is rounded down to fp32 (to 0 below the
    normal range), so no clipped row is longer than C by more than the last bits of its weight in fp32. As a
    pre-aggregation it hands the clipped rows on: `NormClipping(1.0).then(Krum(f=2))`. Alone it is federated averaging
    with a clip, weighted by the examples that clients report like `Mean`; pass equal weights where they may lie.

    Breakdown point 0, but with equal weights f clients move the result by at most 2fC/n. Needs n ≥ 1 and max_norm > 0,
    in the units of the rows. Cost: one pass for the norms and one for the sum. Sun et al. 2019, "Can You Really
    Backdoor Federated Learning?", arXiv:1911.07963, section 4.
    """

    max_norm: float
    uses_weights: ClassVar[bool] = True
    streams: ClassVar[bool] = True

    def __post_init__(self) -> None:
        keep(self, max_norm=check_positive("NormClipping", "max_norm", self.max_norm))

    def bound(self, distances: np.ndarray) -> float:
        """max_norm, whatever the cohort."""
        return self.max_norm


@dataclass(frozen=True)
class ARC(_Clipping):
    """Adaptive robust clipping: the k = ⌊2(f/n)(n − f)⌋ longest changes are clipped to the length of the next one.

    y_i = r + λ_i (x_i − r) with λ_i = min(1, C / ‖x_i − r‖) and C the (k + 1)-th largest ‖x_i − r‖, so at least as many
    honest clients as Byzantine ones stay within C. r and rounding are as for `NormClipping`. Made to go before a robust
    rule: `ARC(f=2).then(Krum(f=2))`; alone it is the mean of the clipped rows. `weighted` asks for the mean weighted by
    the clients' weights, and then a client moves the result by what it claims; without it weights are ignored.

    Breakdown point: that of the rule which follows; alone f of n in the sense that no client moves the result by more
    than an honest one can. Needs 2f < n. Cost: one pass for the norms. Allouah, Guerraoui, Gupta, Jellouli, Rizk and
    Stephan 2025, "Adaptive Gradient Clipping for Robust Federated Learning", ICLR, Algorithm 2.
    """

    f: int
    weighted: bool = False

    def __post_init__(self) -> None:
        keep(self, f=check_count("ARC", "f", self.f, 0))
        keep(self, weighted=check_bool("ARC", "weighted", self.weighted))

    @property
    def uses_weights(self) -> bool:  # type: ignore[override]
        """Only where they were asked for."""
        return self.weighted

    def check(self, clients: int) -> None:
        """Raise RuleError, with the largest f for this n, if a majority could be Byzantine."""
        check_minority("ARC", self.f, clients)

    def bound(self, distances: np.ndarray) -> float:
        """The (k + 1)-th largest of the distances."""
        n = len(distances)
        clipped = 2 * self.f * (n - self.f) // n
        return float(np.sort(distances)[n - 1 - clipped])
