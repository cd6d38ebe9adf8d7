"""Minimum-diameter averaging: the mean of the n − f rows that lie closest together."""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal
from typing import ClassVar

import numpy as np

from fedcore.errors import RuleError
from fedcore.numbers import keep
from fedcore.rules.distances import Distances
from fedcore.rules.geometry import Geometry
from fedcore.rules.parameters import check_count, check_minority
from fedcore.rules.rule import Coefficients, Rule
from fedcore.rules.vertex_cover import Meter, TooLong, graph_of, members, most_branchings, vertex_cover


@dataclass(frozen=True)
class MinimumDiameterAveraging(Rule):
    """The mean of the n − f rows with the least diameter max ‖x_i − x_j‖; of several, the set with the lowest rows.

    The lowest rows: the set that comes first in lexicographic order, as a search through all C(n, f) sets in that order
    would find it. It is found exactly: the least diameter is one of the distances, and t is at least that if and only
    if f vertices touch all edges of the graph of pairs farther apart than t, a bounded search tree inside a bisection
    over the distances. Certified: the set is that of distances formed directly in fp64. Weights are ignored.

    Attackers who lie far away decide themselves, and so do most honest cohorts of any size; in the worst case a search
    takes about 1.47^f branchings. Above `most_branchings` in all the rule refuses, with what it could take: up to
    f = 18 (and n = 10,000) that cannot happen by default, whatever the rows. A branching takes time in proportion to
    the rows that are left: some tenths of a millisecond for 200.

    Breakdown point: f of n; needs 2f < n. Cost: the Gram matrix, one sum over n − f rows, and the search. Rousseeuw
    1985, "Multivariate Estimation with High Breakdown Point"; El Mhamdi, Guerraoui and Rouault 2018, "The Hidden
    Vulnerability of Distributed Learning in Byzantium", ICML; El Mhamdi et al. 2020, "Genuinely Distributed Byzantine
    Machine Learning", PODC. ByzFL's MDA is the same, by a search through all sets.
    """

    f: int
    most_branchings: int = 130_000
    needs: ClassVar[frozenset[str]] = frozenset({"gram"})

    def __post_init__(self) -> None:
        keep(self, f=check_count("MinimumDiameterAveraging", "f", self.f, 0))
        most = check_count("MinimumDiameterAveraging", "most_branchings", self.most_branchings, 1)
        keep(self, most_branchings=most)

    def check(self, clients: int) -> None:
        """Raise RuleError, with the largest f for this n, if a majority could be Byzantine."""
        check_minority("MinimumDiameterAveraging", self.f, clients)

    def decide(self, geometry: Geometry, weights: np.ndarray | None) -> Coefficients:
        """1 for each row of the set; `weights` do not count. Raises RuleError if the search is too long."""
        self.check(geometry.clients)
        n, distances, meter = geometry.clients, Distances(geometry), Meter(self.most_branchings)
        before = geometry.redone
        try:
            rows, square = _closest_together(distances, self.f, meter)
        except TooLong:
            worst, sets = _searches(n, self.f) * most_branchings(self.f), math.comb(n, self.f)
            raise RuleError(
                f"MinimumDiameterAveraging: got f={self.f} with n={n}: not done after {self.most_branchings} "
                f"branchings, could take {Decimal(worst):.1E} (there are {Decimal(sets):.1E} sets of rows); raise "
                "most_branchings, or take NearestNeighborMixing or a smaller f"
            ) from None
        values = np.zeros(n + geometry.references)
        values[rows] = 1.0
        diameter = float(np.sqrt(square))
        reasons = {
            row: f"not in the n − f rows of least diameter {diameter:.6g}: at distance "
            f"{np.sqrt(distances.value[row, rows].max()):.6g} of one of them"
            for row in range(n)
            if values[row] == 0
        }
        details = geometry.redo_report(geometry.redone - before) | {
            "diameter": diameter,
            "branchings": meter.branchings,
        }
        return Coefficients(values, reasons, details, selected=rows)


def _searches(n: int, f: int) -> int:
    """How many covers are looked for at most: three bisections over the distances, and one for each row left out."""
    return 3 * (max(n * (n - 1) // 2, 1).bit_length() + 1) + f + 1


def _closest_together(distances: Distances, f: int, meter: Meter) -> tuple[list[int], float]:
    """(the n − f rows of least diameter, ascending; its square)."""
    n = distances.size
    if n == 1:
        return [0], 0.0
    least = _least_diameter(distances.lower, f, meter, 0.0, np.inf)
    most = _least_diameter(distances.upper, f, meter, least, np.inf)
    # the least diameter lies in between: what is certainly above or below is as it is
    distances.redo((distances.lower <= most) & (distances.upper >= least))
    square = _least_diameter(distances.value, f, meter, *((0.0, np.inf) if distances.error.any() else (least, most)))
    error = distances.error[distances.value == square].min()
    # a distance ties with the diameter where it is as near as the sharper of the two is known
    graph = graph_of(distances.value - square > 2 * np.minimum(distances.error, error))
    return _lowest_rows(graph, n - f, meter), square


def _least_diameter(squares: np.ndarray, f: int, meter: Meter, above: float, below: float) -> float:
    """The least t such that at most f rows touch all pairs with a square above t; known to lie in [above, below]."""
    found = np.unique(squares[np.triu_indices(len(squares), 1)])
    found = found[(found >= above) & (found <= below)]
    low, high = 0, len(found) - 1
    while low < high:
        middle = (low + high) // 2
        if vertex_cover(graph_of(squares > found[middle]), (1 << len(squares)) - 1, f, meter) is None:
            low = middle + 1
        else:
            high = middle
    return float(found[low])


def _lowest_rows(graph: list[int], count: int, meter: Meter) -> list[int]:
    """The `count` vertices without an edge between them that come first in lexicographic order; there are such."""
    n = len(graph)
    everyone, budget = (1 << n) - 1, n - count
    cover, out, kept = vertex_cover(graph, everyone, budget, meter), 0, 0
    assert cover is not None
    for vertex in range(n):
        bit, later = 1 << vertex, everyone >> (vertex + 1) << (vertex + 1)
        if kept.bit_count() == count or out & bit:
            continue
        if cover & bit:
            # the cover at hand leaves this row out; is there one that keeps it, and all that were kept?
            forced = out | graph[vertex]
            rest = budget - forced.bit_count()
            other = None if rest < 0 else vertex_cover(graph, later & ~forced, rest, meter)
            if other is None:
                out |= bit
                continue
            cover = forced | other
        kept, out = kept | bit, out | graph[vertex]
    return list(members(kept))
