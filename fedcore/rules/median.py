"""The coordinate-wise median."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedcore.rules.geometry import Geometry
from fedcore.rules.order_statistic import OrderStatistic
from fedcore.rules.rule import Rule


@dataclass(frozen=True)
class Median(Rule):
    """The middle value of each coordinate; for even n half the sum of the middle two.

    Each coordinate lies within the range of the honest ones while fewer than half of the clients are Byzantine. Weights
    are ignored. Breakdown point: (n − 1)/2 of n, rounded down. Needs n ≥ 1. Cost: one pass over the data with a
    selection network per coordinate, some n log² n exchanges. Yin, Chen, Ramchandran and Bartlett 2018,
    "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", ICML, Algorithm 1, option I.
    """

    linear: ClassVar[bool] = False

    def decide(self, geometry: Geometry, weights: np.ndarray | None) -> OrderStatistic:
        """The median of all clients; `weights` do not count."""
        return OrderStatistic("median")
