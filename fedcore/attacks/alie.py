"""A Little Is Enough: attackers hide inside the spread of the honest ones."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from fedcore.attacks.attack import Attack, check_strength, copies
from fedcore.errors import ConfigError
from fedcore.numbers import keep


def largest_z(n: int, f: int) -> float:
    """z_max = Φ⁻¹((n − f − s) / (n − f)) with s = ⌊n/2 + 1⌋ − f: how many honest rows it takes to have a majority.

    n clients in all, f of them attackers: s honest rows lie further out than z_max, and side with the attackers (Baruch
    et al. 2019, Algorithm 1, steps 1 and 2). Raises ConfigError where that is no number above 0: attackers that are a
    majority already, or so few that half of the honest rows would have to side with them. There is one for 3 attackers
    or more, or 2 where n is odd, if at least half of all are honest.
    """
    share = (n - f - (math.floor(n / 2 + 1) - f)) / (n - f)
    if not 0.5 < share < 1:
        raise ConfigError(f"ALIE: the paper has no z above 0 for n={n}, f={f}; give z")
    return NormalDist().inv_cdf(share)


@dataclass(frozen=True)
class ALIE(Attack):
    """μ − z σ, with the mean μ and standard deviation σ (n − 1 in the denominator) of each column of the honest rows.

    z       None takes `largest_z`, and is refused where that is not above 0; a z below 0 shifts to the other side, as
            in ByzFL, which has μ + z σ
    Every attacker sends the same row. Baruch, Baruch and Goldberg 2019, "A Little Is Enough: Circumventing Defenses For
    Distributed Learning", NeurIPS, section 3.2; omniscient here: μ and σ are of the honest clients, which the paper
    estimates from the attackers' own data.
    """

    z: float | None = None

    def __post_init__(self) -> None:
        if self.z is not None:
            keep(self, z=check_strength("ALIE", "z", self.z, -math.inf))

    def check(self, n: int, f: int) -> None:
        """Raise ConfigError where z is left to the paper, and the paper has none."""
        if self.z is None:
            largest_z(n, f)

    def craft(self, honest: np.ndarray, f: int, seed: int) -> np.ndarray:
        """f times μ − z σ."""
        z = largest_z(len(honest) + f, f) if self.z is None else self.z
        return copies(honest.mean(axis=0) - z * deviation(honest), f)


def deviation(honest: np.ndarray) -> np.ndarray:
    """(d,) standard deviation of each column, n − 1 in the denominator; 0 for one row."""
    return honest.std(axis=0, ddof=1) if len(honest) > 1 else np.zeros(honest.shape[1])
