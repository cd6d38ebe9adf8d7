"""Inner-product manipulation: a small step the other way."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedcore.attacks.attack import Attack, check_strength, copies
from fedcore.numbers import keep


@dataclass(frozen=True)
class IPM(Attack):
    """−ε μ, with the mean μ of the honest rows: small enough to pass, and the inner product with μ turns negative.

    epsilon   ε above 0; the paper has values below 1 against distance-based rules and large ones against the mean
    Every attacker sends the same row. Xie, Koyejo and Gupta 2020, "Fall of Empires: Breaking Byzantine-tolerant SGD by
    Inner Product Manipulation", UAI (PMLR 115), section 4.
    """

    epsilon: float = 0.5

    def __post_init__(self) -> None:
        keep(self, epsilon=check_strength("IPM", "epsilon", self.epsilon))

    def craft(self, honest: np.ndarray, f: int, seed: int) -> np.ndarray:
        """f times −ε μ."""
        return copies(-self.epsilon * honest.mean(axis=0), f)
