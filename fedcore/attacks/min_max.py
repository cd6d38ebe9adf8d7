"""Min-max and min-sum: the strongest shift along a direction that is no farther out than honest rows are.

Shejwalkar and Houmansadr 2021, "Manipulating the Byzantine: Optimizing Model Poisoning Attacks and Defenses for
Federated Learning", NDSS, the attacks that know no aggregation rule: attackers send μ + γ p with the mean μ of the
honest rows, a perturbation p, and the largest γ that a bound on distances allows. The paper halves steps towards γ (its
Algorithm 1); both bounds are quadratic in γ, so that here it is their root. With c_i = ‖μ − x_i‖² and
b_i = ⟨p, μ − x_i⟩, ‖μ + γ p − x_i‖² = c_i + 2 γ b_i + γ² ‖p‖², and Σ_i b_i = 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from fedcore.attacks.alie import deviation
from fedcore.attacks.attack import Attack, copies
from fedcore.errors import ConfigError

Perturbation = Literal["std", "unit", "sign"]


@dataclass(frozen=True)
class Shifted(Attack):
    """μ + γ p for every attacker.

    perturbation   p: "std" is −σ of each column (n − 1 in the denominator), "unit" is −μ / ‖μ‖, "sign" is −sign(μ)
    Where p is zero (rows that are all equal, or of mean zero) the attackers send μ.
    """

    perturbation: Perturbation = "std"

    def __post_init__(self) -> None:
        if self.perturbation not in ("std", "unit", "sign"):
            raise ConfigError(f"{self.name}: perturbation is {self.perturbation!r}, expected 'std', 'unit' or 'sign'")

    def craft(self, honest: np.ndarray, f: int, seed: int) -> np.ndarray:
        """f times μ + γ p."""
        mean = honest.mean(axis=0)
        p = self.direction(honest, mean)
        if not p.any():
            return copies(mean, f)
        return copies(mean + self.gamma(mean - honest, p, squared_distances(honest)) * p, f)

    def direction(self, honest: np.ndarray, mean: np.ndarray) -> np.ndarray:
        """p, (d,)."""
        if self.perturbation == "std":
            return -deviation(honest)
        if self.perturbation == "sign":
            return -np.sign(mean)
        # by a power of two, so that squares neither overflow nor vanish
        mean = np.ldexp(mean, -np.frexp(np.abs(mean).max(initial=0.0))[1])
        norm = float(np.linalg.norm(mean))
        return -mean / norm if norm else np.zeros_like(mean)

    def gamma(self, offsets: np.ndarray, p: np.ndarray, distances: np.ndarray) -> float:
        """The largest γ; offsets (n, d) are μ − x_i, distances (n, n) are squared."""
        raise TypeError(f"{type(self).__name__}: says its `gamma`")


@dataclass(frozen=True)
class MinMax(Shifted):
    """The largest γ with max_i ‖μ + γ p − x_i‖² ≤ max_ij ‖x_i − x_j‖²: no farther from any than two honest ones are."""

    def gamma(self, offsets: np.ndarray, p: np.ndarray, distances: np.ndarray) -> float:
        """min_i of the larger root of c_i + 2 γ b_i + γ² ‖p‖² = max_ij ‖x_i − x_j‖²."""
        square, b = float(p @ p), offsets @ p
        room = np.maximum(distances.max() - np.square(offsets).sum(axis=1), 0.0)
        return float(((np.sqrt(b * b + square * room) - b) / square).min())


@dataclass(frozen=True)
class MinSum(Shifted):
    """The largest γ with Σ_i ‖μ + γ p − x_i‖² ≤ max_i Σ_j ‖x_i − x_j‖²: no farther in sum than an honest one is."""

    def gamma(self, offsets: np.ndarray, p: np.ndarray, distances: np.ndarray) -> float:
        """√((max_i Σ_j ‖x_i − x_j‖² − Σ_i c_i) / (n ‖p‖²))."""
        room = max(float(distances.sum(axis=1).max() - np.square(offsets).sum()), 0.0)
        return float(np.sqrt(room / (len(offsets) * float(p @ p))))


def squared_distances(rows: np.ndarray) -> np.ndarray:
    """(n, n) of ‖x_i − x_j‖², formed directly."""
    return np.array([np.square(rows - row).sum(axis=1) for row in rows])
