"""Nearest-neighbour mixing: each row gives way to the mean of the rows that lie closest to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedcore.numbers import keep
from fedcore.rules.composition import Mixing, PreAggregation
from fedcore.rules.geometry import Geometry
from fedcore.rules.parameters import check_count, check_minority
from fedcore.rules.selection import nearest


@dataclass(frozen=True)
class NearestNeighborMixing(PreAggregation):
    """y_i = 1/(n − f) Σ of x_i itself and the n − f − 1 rows nearest to it; made to go before a robust rule.

    `NearestNeighborMixing(f=2).then(Krum(f=2))`: honest rows that differ much are brought together, so that a rule
    after it reaches the best error that is possible among clients with different data. Neighbours are certified: they
    are those of distances formed directly in fp64 (pairs in doubt are formed again), ties to the lowest row. Weights
    are ignored in the means; a rule that follows and uses weights gets each client's for the row in its place. Alone it
    is the plain mean of the mixed rows.

    Breakdown point: that of the rule which follows; needs 2f < n. Cost: the Gram matrix, n² log n in n-space, nothing
    on the data; a rule after it that needs distances takes two products of (n, n) matrices for them, and one that
    selects by all of them two more for their bounds. Allouah, Farhadkhani, Guerraoui, Gupta, Pinot and Stephan 2023,
    "Fixing by Mixing: A Recipe for Optimal Byzantine ML under Heterogeneity", AISTATS, Algorithm 2; ByzFL's NNM is the
    same.
    """

    f: int
    needs: ClassVar[frozenset[str]] = frozenset({"gram"})

    def __post_init__(self) -> None:
        keep(self, f=check_count("NearestNeighborMixing", "f", self.f, 0))

    def check(self, clients: int) -> None:
        """Raise RuleError, with the largest f for this n, if a majority could be Byzantine."""
        check_minority("NearestNeighborMixing", self.f, clients)

    def mixing(self, geometry: Geometry, weights: np.ndarray | None) -> Mixing:
        """1/(n − f) for each row of a neighbourhood; weights stay with their clients."""
        self.check(geometry.clients)
        n, kept = geometry.clients, geometry.clients - self.f
        neighbors, redone = nearest(geometry, kept - 1)
        np.fill_diagonal(neighbors, True)
        matrix = np.zeros((n, n + geometry.references))
        matrix[:, :n] = neighbors / kept
        return Mixing(matrix, weights, geometry.redo_report(redone), {"neighbor_of": neighbors.sum(0)})
