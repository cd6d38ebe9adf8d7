"""The geometric median: the point with the least sum of distances to the clients, found in coefficient space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from fedcore.errors import RuleError
from fedcore.numbers import got, keep, shown
from fedcore.rules.coefficients import distances_to, product
from fedcore.rules.geometry import Geometry
from fedcore.rules.median_client import TOLERANCE, start_of
from fedcore.rules.parameters import check_bool, check_count, check_positive
from fedcore.rules.rule import Coefficients, Rule

MOST_STEPS = 20_000
#: steps of Weiszfeld's before Newton's are tried, and the parts of one that are taken
PATIENCE, LENGTHS = 20, (1.0, 0.5, 0.25, 0.125)


@dataclass(frozen=True)
class GeometricMedian(Rule):
    """argmin_z Σ_i w_i ‖x_i − z‖; w_i = 1, or the clients' weights where `weighted` asks for them.

    z = Σ v_i x_i stays a mixture of clients, so the iteration (Weiszfeld's, started with the step of Vardi and Zhang
    from the client with the least sum, which is itself the answer where that step says so; Newton's where Weiszfeld's
    takes long, as between two clusters of equal size) runs on coefficients and the data are read twice in all, or three
    times, where it starts in a cluster so far from others that the Gram hardly tells its rows apart. It goes on until
    the gradient of the mean distance is at most 1e-9 long, or for 20,000 steps; the report says which, as `converged`,
    with the `gradient`. Away from clients that is the gradient by the Gram, which is summed in fp32: beside pairs of
    clients 1e-3 apart, say, the true one can be 2e-4 long.

    A client is the answer where its gradient is at most `noise` long, what rows in fp32 make of it, 2⁻²³ over the pull
    of the others: some 2⁻²³ n. Where several points are medians, of an even number of colinear rows say, it is the
    lowest row of those. Certified: a gradient and sums that the Gram leaves open are formed from the data, in up to
    four more passes over it. Clients so near a client that rounding leaves their direction from it in doubt, by more
    than 2⁻²³ n, count as lying there too: that moves no sum of distances by more than twice theirs.

    `smoothing` and `steps` together ask for the smoothed form instead, that many steps from the reference with
    distances below `smoothing` taken as it: GeometricMedian(smoothing=0.1, steps=3) is ByzFL's rule, which for rows
    shorter than 0.1 is the mean.

    Breakdown point: (n − 1)/2 of n, rounded down; with `weighted`, half of the weight, which clients report themselves.
    Needs n ≥ 1. Cost: the Gram matrix and one sum; n² a step in coefficient space, n³ a step of Newton's. Vardi and
    Zhang 2000, "The multivariate L1-median and associated data depth", PNAS 97; Pillutla, Kakade and Harchaoui 2022,
    "Robust Aggregation for Federated Learning", IEEE TSP 70, for the smoothed form.
    """

    weighted: bool = False
    smoothing: float | None = None
    steps: int | None = None
    needs: ClassVar[frozenset[str]] = frozenset({"gram"})

    def __post_init__(self) -> None:
        keep(self, weighted=check_bool("GeometricMedian", "weighted", self.weighted))
        if (self.smoothing is None) != (self.steps is None):
            raise RuleError(
                f"{got('smoothing', self.smoothing, 'GeometricMedian')} and steps={shown(self.steps)}, expected both "
                "for the smoothed form, or neither for the exact one"
            )
        if self.smoothing is not None:
            keep(self, smoothing=check_positive("GeometricMedian", "smoothing", self.smoothing))
            keep(self, steps=check_count("GeometricMedian", "steps", self.steps, 1))

    @property
    def uses(self) -> tuple[str, ...]:  # type: ignore[override]
        """The smoothed form starts from the reference."""
        return () if self.smoothing is None else ("reference",)

    @property
    def uses_weights(self) -> bool:  # type: ignore[override]
        """Only where they were asked for."""
        return self.weighted

    def decide(self, geometry: Geometry, weights: np.ndarray | None) -> Coefficients:
        """The coefficients of the median."""
        n = geometry.clients
        share = np.ones(n) if weights is None or not self.weighted else weights
        values = np.zeros(n + geometry.references)
        if self.smoothing is None:
            before = geometry.redone
            point, steps = _median(geometry, share / share.sum())
            values[:n] = point.values
            details = {"steps": steps, "gradient": point.gradient, "noise": point.noise, "converged": point.converged}
            return Coefficients(values, details=details | geometry.redo_report(geometry.redone - before))
        assert self.steps is not None
        values[n] = 1.0
        inner = geometry.inner_products_from(n)
        for _ in range(self.steps):
            pull = share / np.maximum(distances_to(values, inner)[:n], self.smoothing)
            values = np.concatenate((pull / pull.sum(), np.zeros(geometry.references)))
        return Coefficients(values, details={"steps": self.steps})


def _length(values: np.ndarray, inner: np.ndarray) -> float:
    """‖Σ v_k x_k‖ where v sums to 0."""
    return float(np.sqrt(max(values @ product(inner, values), 0.0)))


def _median(geometry: Geometry, share: np.ndarray) -> tuple[_Point, int]:
    """(the point, steps); `share` (n,) sums to 1.

    Seen from the client with the least sum of distances, which is an honest one where most are: a row any distance
    away then rounds no distance but its own.
    """
    n, start = geometry.clients, start_of(geometry, share)
    values = np.zeros(n)
    values[start.row] = 1.0
    if start.median:
        return _Point(values, np.empty(0), np.empty(0), start.gradient, start.noise), 0
    near, inner = geometry.seen_from(start.row)
    away = np.sqrt(near)
    here = start.here | (away == 0)
    pull = np.divide(share, away, out=np.zeros(n), where=~here)
    # the step of Vardi and Zhang, 1 − held / force of Weiszfeld's: the objective falls with each step, so z never comes
    # to a client again
    part = start.gradient / (start.gradient + start.held)
    values = part * pull / pull.sum() + (1 - part) * values
    # a distance is the root of what rounds by 2⁻⁵³ of the row's square
    descent = _Descent(share, inner, np.where(here, away[~here].min() * 2.0**-40, away * 2.0**-26))
    point, turn = descent.at(values), PATIENCE
    for step in range(1, MOST_STEPS):
        if point.converged:
            return point, step
        if step >= turn:
            if better := descent.newton(point):
                point = better
                continue
            turn = 2 * step
        point = descent.at(point.pull / point.pull.sum())
    return point, MOST_STEPS


class _Point(NamedTuple):
    """z as coefficients, its distances to the clients, share over distance, and the length of the gradient there.

    noise   where z is a client, what rounding makes of that length: a shorter one is not told from 0
    """

    values: np.ndarray
    away: np.ndarray
    pull: np.ndarray
    gradient: float
    noise: float = 0.0

    @property
    def converged(self) -> bool:
        """Whether the gradient is short enough, or as short as it can be told to be."""
        return self.gradient <= max(TOLERANCE, self.noise)


class _Descent(NamedTuple):
    """Steps towards the median: shares (n,), inner products (n, n), and below what a distance is not told from 0."""

    share: np.ndarray
    inner: np.ndarray
    floor: np.ndarray

    def at(self, values: np.ndarray) -> _Point:
        """What is known of a point. Weiszfeld's next one is pull / Σ pull."""
        away = np.maximum(distances_to(values, self.inner), self.floor)
        pull = self.share / away
        total = float(pull.sum())
        return _Point(values, away, pull, total * _length(pull / total - values, self.inner))

    def newton(self, point: _Point) -> _Point | None:
        """A point with a shorter gradient and no greater sum, along Newton's step; None where none is found.

        With unit vectors u_i from the clients to z, in rows U, distances d and p = share / d, the Hessian is Σp I −
        Uᵀ diag(p) U. By Woodbury's identity the step is −Uᵀ y, where (Σp I − S U Uᵀ S) S⁻¹ y = S d for S = diag(√p):
        a system in n-space.
        """
        values, away, pull, gradient = point[:4]
        toward, root = product(self.inner, values), np.sqrt(pull)
        matrix = self.inner - toward[:, None] - toward[None, :] + values @ toward
        matrix *= -np.outer(root / away, root / away)
        matrix[np.diag_indices_from(matrix)] += pull.sum()
        try:
            step = root * np.linalg.solve(matrix, root * away) / away
        except np.linalg.LinAlgError:
            return None
        if not np.isfinite(step).all():
            return None
        for length in LENGTHS:
            found = self.at(values + length * (step - step.sum() * values))
            shorter = found.gradient <= (1 - length / 4) * gradient
            if shorter and self.share @ found.away <= (1 + 2.0**-40) * (self.share @ away):
                return found
        return None
