"""What a linear rule sees of a cohort: distances with their error bounds, norms, and an exact redo. Never the data.

Rows are those of the extended cohort: the clients, then the reference rows (the global model that they moved from, or
zero). A pre-aggregation replaces the clients by mixtures y_a = Σ_k C_ak x_k with Σ_k C_ak = 1. For v = C_a − C_b, which
sums to 0, and a Gram matrix G centred anywhere,

    ‖y_a − y_b‖² = vᵀ G v = −½ Σ_kl v_k v_l D_kl,

so the distances of mixed rows follow from the Gram of the rows themselves, and their errors from those of its
distances.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from fedcore.errors import RuleError, ShapeError

#: the unit roundoff of fp64
UNIT = 2.0**-53
#: the relative error of a mixture's squared distance to the reference above which it is formed from the data
GRAM_DOUBT = 2.0**-30


@dataclass(frozen=True)
class Gram:
    """The centred Gram matrix of the extended cohort (N rows) and how far it can be off.

    matrix     (N, N) fp64 inner products of x_i − p, for any one p
    error      (N,) such that |D̂_ij − D_ij| ≤ error_i + error_j for D_ij = G_ii + G_jj − 2 G_ij
    offset     ‖p‖: what an fp64 sum of rows that are not centred rounds in proportion to
    rounding   bound on the relative rounding of an exact redo of a pair of rows
    """

    matrix: np.ndarray
    error: np.ndarray
    offset: float
    rounding: float


class Executor(Protocol):
    """The passes over the data. Rules are the same whichever executor makes them: memory, files, factors, GPU."""

    @property
    def names(self) -> Sequence[str]:
        """(clients,) what messages call each client."""

    @property
    def clients(self) -> int:
        """Rows that are aggregated."""

    @property
    def references(self) -> int:
        """Rows that clients are seen relative to, after them."""

    def squared_norms(self) -> tuple[np.ndarray, np.ndarray]:
        """Squared distance of each client to the first reference: values (clients,) fp64 and bounds of their errors."""

    def gram(self) -> Gram:
        """The Gram matrix of the extended cohort."""

    def exact(self, pairs: np.ndarray, mix: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Squared distances of pairs (m, 2) formed directly: values (m,) and their own error bounds (m,).

        A pair is of rows, or of mixtures of rows where `mix` (mixtures, clients + references) is given.
        """

    def redone_on(self, mixed: bool) -> str:
        """What `exact` runs on, in words for a report; `mixed` says whether pairs are of mixtures."""

    def weighted_sum(self, coefficients: np.ndarray, divisor: float) -> Any:
        """Σ c_k x_k / divisor over the extended cohort, c in fp32; rows with coefficient 0 are not read."""


class Statistics:
    """The statistics of one cohort, each made at most once, and the count of pairs that were redone."""

    def __init__(self, executor: Executor):
        self.executor = executor
        self.redone = 0

    @cached_property
    def gram(self) -> Gram:
        """The Gram matrix of the extended cohort."""
        return self.executor.gram()

    @cached_property
    def squared_norms(self) -> tuple[np.ndarray, np.ndarray]:
        """Squared distances to the first reference: values (clients,) and bounds of their errors (clients,)."""
        return self.executor.squared_norms()

    def gather(self, needs: frozenset[str]) -> None:
        """Make the passes that a rule needs, now."""
        if "norms" in needs:
            _ = self.squared_norms
        if "gram" in needs:
            _ = self.gram


def combine(coefficients: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """coefficients (a,) · matrix (a, k), added strictly in row order, as no BLAS product promises: (k,)."""
    return np.cumsum(coefficients[:, None] * matrix, axis=0)[-1]


class Geometry:
    """Distances between the clients, or between mixtures that stand in for them.

    clients      rows that compete: n clients, or n' mixtures
    references   reference rows after them, the same for mixtures
    names        (clients,) what messages call each row
    """

    def __init__(self, statistics: Statistics, mix: np.ndarray | None = None):
        executor = statistics.executor
        self._statistics = statistics
        #: (clients + references, rows of the extended cohort), or None for the rows themselves
        self._mix = mix
        self.references = executor.references
        self.clients = executor.clients if mix is None else len(mix) - self.references
        kept = self.clients == executor.clients
        self.names = tuple(executor.names) if kept else tuple(f"mixed row {i}" for i in range(self.clients))

    def with_references(self, matrix: np.ndarray) -> np.ndarray:
        """A mixing matrix (n', clients + references) with the references below it as they are."""
        if matrix.ndim != 2 or matrix.shape[1] != self.clients + self.references:
            raise ShapeError(f"mixing: got shape {matrix.shape}, expected (rows, {self.clients + self.references})")
        return np.vstack((matrix, np.eye(self.references, matrix.shape[1], k=self.clients)))

    def mixed(self, matrix: np.ndarray) -> Geometry:
        """The geometry of matrix · rows. Each row of `matrix` sums to 1; no data are read."""
        extended = self.with_references(matrix)
        if not (np.abs(extended.sum(1) - 1) <= extended.shape[1] * UNIT * np.abs(extended).sum(1)).all():
            raise ShapeError("mixing: a row of coefficients does not sum to 1")
        mix = self._mix
        return Geometry(
            self._statistics, extended if mix is None else np.array([combine(row, mix) for row in extended])
        )

    def squared_distances_to_reference(self) -> tuple[np.ndarray, np.ndarray]:
        """Squared distances to the first reference: values (clients,) fp64 and bounds of their errors (clients,).

        Of rows it is a pass for norms. Of mixtures it follows from the Gram; those that cancel in it are redone.
        """
        if not self.references:
            raise RuleError("norms: got no reference row, expected one; give the row that the clients moved from")
        if self._mix is None:
            return self._statistics.squared_norms
        gram, r = self._inner_products(), self.clients
        square = gram.diagonal()
        value = np.maximum(square[:r] + square[r] - 2 * gram[:r, r], 0.0)
        error, slack = self._mixed_error(r)[:r], self._mixed_slack(r)[:r]
        doubtful = np.flatnonzero(error > GRAM_DOUBT * value)
        if doubtful.size:
            value[doubtful], error[doubtful] = self.redo(np.column_stack((doubtful, np.full(len(doubtful), r))))
            error[doubtful] += 2 * np.sqrt(value[doubtful]) * slack[doubtful] + np.square(slack[doubtful])
        return value, error

    def intervals(self) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper bounds (clients, clients) of squared distances, for true ones and for redone ones."""
        gram, n = self._statistics.gram, self.clients
        inner = self._inner_products()[:n, :n]
        square = inner.diagonal()
        distance = square[:, None] + square[None, :] - 2 * inner
        if self._mix is None:
            error = gram.error[:n, None] + gram.error[None, :n] + 4 * UNIT * (square[:, None] + square[None, :])
            slack: np.ndarray | float = 0.0
        else:
            error = np.array([self._mixed_error(a)[:n] for a in range(n)])
            slack = np.array([self._mixed_slack(a)[:n] for a in range(n)])
        upper = np.maximum(distance + error, 0.0)
        # a redo rounds relatively, a mixture's columns absolutely: |D° − D| ≤ 2 √D slack + slack² + rounding · D
        error = error + 2 * np.sqrt(upper) * slack + np.square(slack) + gram.rounding * upper
        lower, upper = np.maximum(distance - error, 0.0), np.maximum(distance + error, 0.0)
        np.fill_diagonal(lower, 0.0)
        np.fill_diagonal(upper, 0.0)
        return lower, upper

    def redo(self, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Squared distances of pairs (m, 2) from the data: values (m,) and their bounds (m,), 0 for rows in fp64."""
        self._statistics.redone += len(pairs)
        return self._statistics.executor.exact(pairs, self._mix)

    @property
    def redone_on(self) -> str:
        """What pairs are redone on, in words for a report."""
        return self._statistics.executor.redone_on(self._mix is not None)

    @property
    def redone(self) -> int:
        """How many pairs have been redone for this cohort."""
        return self._statistics.redone

    def _inner_products(self) -> np.ndarray:
        matrix = self._statistics.gram.matrix
        return matrix if self._mix is None else self._mix @ matrix @ self._mix.T

    def _mixed_error(self, a: int) -> np.ndarray:
        """½ Σ |v_k||v_l| (e_k + e_l) = ‖v‖₁ Σ |v_k| e_k of row a against each, and the rounding of the products."""
        assert self._mix is not None
        gram, mix = self._statistics.gram, self._mix
        v = np.abs(mix[a] - mix)
        size = np.abs(mix) @ np.sqrt(gram.matrix.diagonal())
        return v.sum(1) * (v @ gram.error) + (2 * mix.shape[1] + 8) * UNIT * np.square(size[a] + size)

    def _mixed_slack(self, a: int) -> np.ndarray:
        """How far Σ v_k x_k of a redo can be off, as a norm: its rounding, and what v misses of summing to 0."""
        assert self._mix is not None
        gram, mix = self._statistics.gram, np.abs(self._mix)
        size = mix @ (np.sqrt(gram.matrix.diagonal()) + gram.offset)
        return (4 * mix.shape[1] + 8) * UNIT * (size[a] + size)
