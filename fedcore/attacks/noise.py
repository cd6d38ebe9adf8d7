"""Attacks that need no knowledge of the others: Gaussian noise, and infinity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedcore.attacks.attack import Attack, check_strength
from fedcore.numbers import keep


@dataclass(frozen=True)
class Gaussian(Attack):
    """Each attacker its own draw of N(0, σ²) in every element.

    sigma   σ above 0, in the units of the rows; 200 in the paper
    The draw is NumPy's PCG64 of the call's seed. Blanchard, El Mhamdi, Guerraoui and Stainer 2017, "Machine Learning
    with Adversaries: Byzantine Tolerant Gradient Descent", NeurIPS, section 6.
    """

    sigma: float = 200.0

    def __post_init__(self) -> None:
        keep(self, sigma=check_strength("Gaussian", "sigma", self.sigma))

    def craft(self, honest: np.ndarray, f: int, seed: int) -> np.ndarray:
        """(f, d) independent draws."""
        return np.random.default_rng(seed).normal(0.0, self.sigma, (f, honest.shape[1]))


@dataclass(frozen=True)
class Inf(Attack):
    """+∞ in every element: what no rule may average and every server has to notice. As ByzFL's Inf."""

    finite: ClassVar[bool] = False

    def craft(self, honest: np.ndarray, f: int, seed: int) -> np.ndarray:
        """(f, d) of +∞."""
        return np.full((f, honest.shape[1]), np.inf)
