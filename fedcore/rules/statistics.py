"""The statistics of one cohort, and what makes them: the passes over the data, in memory, files, factors or a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

#: the unit roundoff of fp64
UNIT = 2.0**-53


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

    def gram(self, origin: int | None = None) -> Gram:
        """The Gram matrix of the extended cohort, centred at row `origin`; None is one among the many."""

    def exact(self, pairs: np.ndarray, mix: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Squared distances of pairs (m, 2) formed directly: values (m,) and their own error bounds (m,).

        A pair is of rows, or of mixtures of rows where `mix` (mixtures, clients + references) is given.
        """

    def redone_on(self, mixed: bool) -> str:
        """What `exact` runs on, in words for a report; `mixed` says whether pairs are of mixtures."""

    def weighted_sum(self, coefficients: np.ndarray, divisor: float) -> Any:
        """Σ c_k x_k / divisor over the extended cohort, c in fp32; rows with coefficient 0 are not read."""


class Statistics:
    """The statistics of one cohort, each made at most once, and the count of pairs that were redone.

    `origin` is the row that the Gram is centred at (`Rule.origin_row`); None is one among the many.
    """

    def __init__(self, executor: Executor, origin: int | None = None):
        self.executor, self.origin = executor, origin
        self.redone = 0

    @cached_property
    def gram(self) -> Gram:
        """The Gram matrix of the extended cohort."""
        return self.executor.gram(self.origin)

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
