"""The weighted mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedcore.rules.geometry import Geometry
from fedcore.rules.rule import Coefficients, Rule


@dataclass(frozen=True)
class Mean(Rule):
    """Σ w_i x_i / Σ w_i, with w_i the examples that client i trained on: federated averaging.

    Breakdown point 0: one client moves the result as far as it likes. Needs n ≥ 1. Cost: one pass over the data.
    The counts are used as they are and divided by their sum once, so equal weights give the plain mean in every bit.
    McMahan et al. 2017, "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS, Algorithm
    1.
    """

    uses_weights: ClassVar[bool] = True
    streams: ClassVar[bool] = True

    def decide(self, geometry: Geometry, weights: np.ndarray | None) -> Coefficients:
        """The weights themselves, and nothing on a reference."""
        values = np.zeros(geometry.clients + geometry.references)
        values[: geometry.clients] = 1.0 if weights is None else weights
        return Coefficients(values)
