"""Bulyan: Krum again and again, then coordinate by coordinate the values around the median."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from fedcore.errors import RuleError
from fedcore.numbers import among, got, keep
from fedcore.rules.geometry import Geometry
from fedcore.rules.order_statistic import OrderStatistic
from fedcore.rules.parameters import check_bound, check_count
from fedcore.rules.rule import Rule
from fedcore.rules.selection import Scoring, select
from fedcore.rules.shrinking import choose_one_by_one


@dataclass(frozen=True)
class Bulyan(Rule):
    """θ = n − 2f rows chosen by Krum, then in each coordinate the mean of the β = θ − 2f values nearest their median.

    selection="paper": Krum chooses one row after the other, each time among the m rows that are left, by the sum of
    the squared distances to the max(1, m − f − 2) closest others of those (the 1 matters for f = 1 and its last choice
    alone). selection="flower": one shot, the θ rows with the smallest scores over all n. Either is certified: it is the
    choice of distances formed directly in fp64, and ties go to the lowest row. The second stage is that of
    `MeanAroundMedian`: ties go to the smaller value. Weights are ignored.

    Breakdown point: f of n; needs n ≥ 4f + 3. What is added to Krum is a bound in each coordinate, against attackers
    who hide a large change of one weight in a small distance. Cost: the Gram matrix, n² log n in n-space, and one pass
    over θ rows with a sort of each coordinate. Choices that the Gram leaves open are settled in one or two more passes
    over rows in doubt, and never more than five, whatever n. El Mhamdi, Guerraoui and Rouault 2018, "The Hidden
    Vulnerability of Distributed Learning in Byzantium", ICML, section 4.
    """

    f: int
    selection: Literal["paper", "flower"] = "paper"
    needs: ClassVar[frozenset[str]] = frozenset({"gram"})
    linear: ClassVar[bool] = False

    def __post_init__(self) -> None:
        keep(self, f=check_count("Bulyan", "f", self.f, 0))
        if not among(self.selection, ("paper", "flower")):
            raise RuleError(f"{got('selection', self.selection, 'Bulyan')}, expected 'paper' or 'flower'")

    def check(self, clients: int) -> None:
        """Raise RuleError, with the largest f for this n, if there are too few clients."""
        check_bound("Bulyan", self.f, clients, "n ≥ 4f + 3", (clients - 3) // 4, least=3)

    def decide(self, geometry: Geometry, weights: np.ndarray | None) -> OrderStatistic:
        """The mean around the median of the chosen rows; `weights` do not count."""
        self.check(geometry.clients)
        n, f = geometry.clients, self.f
        theta = n - 2 * f
        per_client = {}
        if self.selection == "flower":
            found = select(geometry, Scoring(n - f - 2, mean=False), theta)
            rows, redone = found.rows, found.redone
            per_client["scores"] = found.scores
        else:
            chosen, redone = self._one_by_one(geometry, theta)
            rows = sorted(chosen)
            per_client["chosen_as"] = np.zeros(n, int)
            per_client["chosen_as"][chosen] = np.arange(1, theta + 1)
        left_out = sorted(set(range(n)) - set(rows))
        reasons = dict.fromkeys(left_out, f"not chosen: Krum preferred {theta} others to it, the n − 2f that count")
        details = geometry.redo_report(redone) | {"theta": theta, "beta": theta - 2 * f}
        return OrderStatistic(
            "mean_around_median", 2 * f, rows, reasons=reasons, details=details, per_client=per_client, selected=rows
        )

    def _one_by_one(self, geometry: Geometry, theta: int) -> tuple[list[int], int]:
        """(rows in the order of choice, pairs redone)."""
        if self.f == 0:
            return list(range(theta)), 0
        chosen, _, redone = choose_one_by_one(geometry, lambda left: max(1, left - self.f - 2), theta)
        return chosen, redone
