"""Majority vote on the sign of each coordinate's change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedcore.errors import RuleError
from fedcore.numbers import keep
from fedcore.ops.weighted_sum import LARGEST_COUNT
from fedcore.rules.geometry import Geometry
from fedcore.rules.order_statistic import OrderStatistic
from fedcore.rules.parameters import check_positive
from fedcore.rules.rule import Rule


@dataclass(frozen=True)
class SignMajority(Rule):
    """r + step · sign(Σ_i sign(x_i − r)), coordinate by coordinate.

    r is the row that the clients moved from; zero where none is given. A coordinate on which the votes are even stays
    as it is. step is in the units of the rows and is rounded to fp32 once. Magnitudes do not count, nor do weights: a
    client has one vote in each coordinate, however far it goes.

    Breakdown point: fewer than half of the clients cannot turn a coordinate on which all honest ones agree. Needs
    n ≥ 1. Cost: one pass over the data. Bernstein, Zhao, Azizzadenesheli and Anandkumar 2019, "signSGD with Majority
    Vote is Communication Efficient and Fault Tolerant", ICLR, Algorithm 1.
    """

    step: float
    uses: ClassVar[tuple[str, ...]] = ("reference",)
    linear: ClassVar[bool] = False

    def __post_init__(self) -> None:
        keep(self, step=check_positive("SignMajority", "step", self.step))
        if not 0 < np.float64(np.float32(self.step)) <= LARGEST_COUNT:
            raise RuleError(
                f"SignMajority: got step={self.step!r}, expected a number of fp32 of at most {LARGEST_COUNT}"
            )

    def decide(self, geometry: Geometry, weights: np.ndarray | None) -> OrderStatistic:
        """The vote of all clients; `weights` do not count."""
        return OrderStatistic("sign_majority", step=self.step)
