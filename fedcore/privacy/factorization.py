"""Banded factors of prefix sums in whole numbers: their sensitivity, exact, and their error.

The matrix mechanism releases A C⁻¹ (C x + z) for the prefix sums A x of T rounds x. C is lower triangular, Toeplitz and
banded here: row t of C x is Σ_k c_k x_{t−k} / UNIT, 0 ≤ k < bands, with whole c_k ≥ 0 and c_0 = UNIT.

Coefficients: c_k / UNIT is the k-th of 1/√(1 − x), binom(2k, k) / 4^k, which is A's own square root, cut after
`bands` terms (Kalinin and Lampert 2024, "Banded Square Root Matrix Factorization for Differentially Private Model
Training", NeurIPS, arXiv 2405.13763) and rounded to 1/UNIT: the sensitivity below is that of the rounded ones.

Sensitivity: a client in rounds π moves C x by Σ_{i∈π} C[:, i] u_iᵀ, ‖u_i‖ at most the clip. Where rounds of π are
`separation` ≥ `bands` apart, columns share no row, so that its square is Σ_{i∈π} ‖C[:, i]‖² ‖u_i‖². A column's norm
falls with i, since later ones are cut at T, and the j-th round of π is at least j · separation: the most is reached,
at rounds 0, separation, … and all u_i at the clip (Choquette-Choo et al. 2023, "(Amplified) Banded Matrix
Factorization: A unified approach to private training", NeurIPS, arXiv 2306.08153, Theorem 2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

#: c_0, and what every c_k is in parts of. Larger ones bring the error closer to that of real coefficients, which at
#: 64 is within 1 %, and widen the noise that is drawn
UNIT = 64


def coefficients(bands: int) -> tuple[int, ...]:
    """c_0, …, c_{bands−1}: the square root's, rounded to 1/UNIT."""
    found, term = [], 1.0
    for k in range(bands):
        found.append(round(UNIT * term))
        term *= (2 * k + 1) / (2 * k + 2)
    return tuple(found)


@dataclass(frozen=True)
class Factor:
    """C for T `rounds` and clients that take part at most `participations` times, `separation` rounds apart or more.

    bands is at most the separation; one band is independent noise.
    """

    rounds: int
    separation: int
    participations: int
    bands: int

    @cached_property
    def coefficients(self) -> tuple[int, ...]:
        return coefficients(self.bands)

    @cached_property
    def squared_sensitivity(self) -> int:
        """UNIT² · max over π of Σ_{i∈π} ‖C[:, i]‖²: how far one client's terms of norm 1 move UNIT · C x, squared."""
        columns = range(0, self.rounds, self.separation)[: self.participations]
        return sum(sum(c * c for c in self.coefficients[: self.rounds - i]) for i in columns)

    @property
    def sensitivity(self) -> float:
        """The same, of C x, as a norm in clips: √(most participations) for independent noise."""
        return math.sqrt(self.squared_sensitivity) / UNIT

    @cached_property
    def noise_of_rounds(self) -> np.ndarray:
        """(T,) standard deviation of the noise on each round's sum, C⁻¹ z, for z of noise multiplier 1, in clips."""
        return self._deviations(np.eye(1, self.rounds)[0])

    @cached_property
    def noise_of_prefixes(self) -> np.ndarray:
        """(T,) of the noise on the sum of rounds 0 to t, A C⁻¹ z."""
        return self._deviations(np.ones(self.rounds))

    @property
    def error(self) -> float:
        """Root of the mean over t of squared `noise_of_prefixes`: what a choice of bands is judged by."""
        return math.sqrt(float(np.mean(self.noise_of_prefixes**2)))

    def _deviations(self, numerator: np.ndarray) -> np.ndarray:
        """Of a Toeplitz matrix times C⁻¹, given the first column of the former: quotients of power series."""
        tail = np.array(self.coefficients[:0:-1], float) / UNIT
        quotient = np.zeros(self.rounds + self.bands - 1)  # after bands - 1 zeros
        for t in range(self.rounds):
            quotient[t + self.bands - 1] = numerator[t] - tail @ quotient[t : t + self.bands - 1]
        return self.sensitivity * np.sqrt(np.cumsum(quotient[self.bands - 1 :] ** 2))


@lru_cache(maxsize=64)
def best_factor(rounds: int, separation: int, participations: int) -> Factor:
    """The factor of least error whose bands are a power of two or the separation itself."""
    most = min(separation, rounds)
    bands = {most, *(1 << k for k in range(most.bit_length()))}
    return min((Factor(rounds, separation, participations, b) for b in sorted(bands)), key=lambda factor: factor.error)
