"""MoNNA's averaging: the rows that lie closest to one that is trusted."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from fedcore.errors import RuleError
from fedcore.numbers import keep
from fedcore.rules.geometry import Geometry
from fedcore.rules.parameters import check_bound, check_count
from fedcore.rules.rule import Coefficients, Rule
from fedcore.rules.selection import nearest_to


@dataclass(frozen=True)
class MoNNA(Rule):
    """The mean of the n − f rows nearest to a trusted row.

    The trusted row is the server's own update, passed as `server=`; it is a yardstick and not averaged. With `pivot` it
    is the row of that number instead, which counts as one of the n − f: the paper's case of peers, where each trusts
    its own row, and ByzFL's `idx`. Certified: the rows are those of distances formed directly in fp64, ties to the
    lowest row. Weights are ignored.

    Breakdown point: f of n, as far as the trusted row is honest: whoever is averaged lies no farther from it than its
    farthest honest client. Needs 2f < n. Cost: a distance to each row, and one sum. Farhadkhani, Guerraoui, Gupta,
    Hoang, Pinot and Stephan 2023, "Robust Collaborative Learning with Linear Gradient Overhead", ICML, section 3
    (nearest-neighbour averaging; momentum is the clients').
    """

    f: int
    pivot: int | None = None

    def __post_init__(self) -> None:
        keep(self, f=check_count("MoNNA", "f", self.f, 0))
        if self.pivot is not None:
            keep(self, pivot=check_count("MoNNA", "pivot", self.pivot, 0))

    @property
    def needs_of_mixtures(self) -> frozenset[str]:
        """The Gram: distances of mixtures follow from it."""
        return frozenset({"gram"})

    @property
    def uses(self) -> tuple[str, ...]:  # type: ignore[override]
        """The server's row, unless a client is the trusted one."""
        return ("server",) if self.pivot is None else ()

    def without(self, row: int) -> MoNNA:
        """The same trusted row. Raises RuleError where that is the one that was excluded."""
        if self.pivot is None or row > self.pivot:
            return self
        if row == self.pivot:
            raise RuleError(
                f"MoNNA: the trusted row, pivot={self.pivot}, was excluded for what it sent; choose another"
            )
        return replace(self, pivot=self.pivot - 1)

    def check(self, clients: int) -> None:
        """Raise RuleError if f is too large for this n, with the largest that fits, or there is no such pivot."""
        check_bound("MoNNA", self.f, clients, "2f < n", (clients - 1) // 2, least=1)
        if self.pivot is not None and self.pivot >= clients:
            raise RuleError(f"MoNNA: got pivot={self.pivot} with n={clients} clients, expected at most {clients - 1}")

    def decide(self, geometry: Geometry, weights: np.ndarray | None) -> Coefficients:
        """1 for each of the nearest rows; `weights` do not count."""
        self.check(geometry.clients)
        n, total = geometry.clients, geometry.clients + geometry.references
        # the server's row comes after the row that clients moved from
        trusted = total - 1 if self.pivot is None else self.pivot
        rows, squares, redone = nearest_to(geometry, trusted, n - self.f)
        values = np.zeros(total)
        values[rows] = 1.0
        distance = np.sqrt(squares)
        farthest = distance[rows].max()
        reasons = {
            row: f"not among the n − f nearest: at distance {distance[row]:.6g} of the trusted row, those within "
            f"{farthest:.6g} count"
            for row in range(n)
            if values[row] == 0
        }
        details = geometry.redo_report(redone)
        return Coefficients(values, reasons, details, {"distances": distance}, [int(row) for row in rows])
