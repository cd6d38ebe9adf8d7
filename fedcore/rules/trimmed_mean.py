"""Means of what is left when each coordinate loses its extremes: the trimmed mean and the mean around the median."""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal
from typing import ClassVar

import numpy as np

from fedcore.errors import RuleError
from fedcore.numbers import as_real, got, keep, shown
from fedcore.rules.geometry import Geometry
from fedcore.rules.order_statistic import OrderStatistic
from fedcore.rules.parameters import check_count, check_minority
from fedcore.rules.rule import Rule


@dataclass(frozen=True)
class TrimmedMean(Rule):
    """The mean of each coordinate without its f smallest and f largest values.

    Give f, how many clients may be Byzantine, or the fraction β of clients to drop on each side: f = ⌊βn⌋, as the paper
    and Flower have it, with β the decimal that it is written as: 0.29 of 100 is 29, where Flower's int(0.29 * 100) is
    28, and f=28 asks for that. What is dropped never enters a sum. Weights are ignored.

    Breakdown point: f of n; needs 2f < n. Cost: one pass over the data with a sort of each coordinate, some n log² n
    exchanges. Yin, Chen, Ramchandran and Bartlett 2018, "Byzantine-Robust Distributed Learning: Towards Optimal
    Statistical Rates", ICML, Algorithm 1, option II.
    """

    f: int | None = None
    fraction: float | None = None
    linear: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if (self.f is None) == (self.fraction is None):
            raise RuleError(
                f"{got('f', self.f, 'TrimmedMean')} and fraction={shown(self.fraction)}, expected one of the two"
            )
        if self.f is not None:
            keep(self, f=check_count("TrimmedMean", "f", self.f, 0))
            return
        fraction = as_real(self.fraction)
        if fraction is None or not 0 <= fraction < 0.5:
            raise RuleError(
                f"{got('fraction', self.fraction, 'TrimmedMean')}, expected a number from 0 to below 0.5, for each side"
            )
        keep(self, fraction=fraction)

    def dropped(self, clients: int) -> int:
        """How many values are dropped on each side of a coordinate."""
        if self.f is not None:
            return self.f
        # the decimal that a float prints as: 0.29 of 100 is 29, and 0.3333333333 of 3 is 0
        return math.floor(Decimal(repr(self.fraction)) * clients)

    def check(self, clients: int) -> None:
        """Raise RuleError, with the largest f for this n, if nothing would be left."""
        check_minority("TrimmedMean", self.dropped(clients), clients)

    def decide(self, geometry: Geometry, weights: np.ndarray | None) -> OrderStatistic:
        """The trimmed mean over all clients; `weights` do not count."""
        self.check(geometry.clients)
        f = self.dropped(geometry.clients)
        return OrderStatistic("trimmed_mean", f, details={"dropped_each_side": f})


@dataclass(frozen=True)
class MeanAroundMedian(Rule):
    """The mean of the n − f values of each coordinate that lie closest to its median; ties go to the smaller value.

    Also called Meamed. f is how many clients may be Byzantine. Weights are ignored. Breakdown point: f of n; needs
    2f < n. Cost: one pass over the data with a sort of each coordinate. Xie, Koyejo and Gupta 2018, "Generalized
    Byzantine-tolerant SGD", arXiv:1802.10116.
    """

    f: int
    linear: ClassVar[bool] = False

    def __post_init__(self) -> None:
        keep(self, f=check_count("MeanAroundMedian", "f", self.f, 0))

    def check(self, clients: int) -> None:
        """Raise RuleError, with the largest f for this n, if a majority could be Byzantine."""
        check_minority("MeanAroundMedian", self.f, clients)

    def decide(self, geometry: Geometry, weights: np.ndarray | None) -> OrderStatistic:
        """The mean around the median of all clients; `weights` do not count."""
        self.check(geometry.clients)
        return OrderStatistic("mean_around_median", self.f)
