"""Mimic: attackers all copy one honest client, so that what only it knows counts f + 1 times."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedcore.attacks.attack import Attack, copies
from fedcore.errors import ConfigError
from fedcore.numbers import keep, whole


@dataclass(frozen=True)
class Mimic(Attack):
    """A copy of honest row i, which no rule can tell from honest ones; it hurts where clients differ.

    row   which honest row, in their order; None chooses it anew in each round: with z the direction in which the honest
          rows vary most (the first eigenvector of their covariance), the row with the largest |⟨z, x_i⟩|

    Karimireddy, He and Jaggi 2022, "Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing", ICLR, section 4
    and appendix, where z is followed over many rounds by Oja's method; here it is that of the one round, exactly. z
    comes from the Gram matrix of the centred rows, whose top eigenvector weighs them; equal rows give row 0.
    """

    row: int | None = None

    def __post_init__(self) -> None:
        if self.row is not None:
            keep(self, row=whole("row", self.row, 0, of="Mimic", error=ConfigError))

    def check(self, n: int, f: int) -> None:
        """Raise ConfigError where there is no such honest row."""
        if self.row is not None and self.row >= n - f:
            raise ConfigError(
                f"Mimic: got row={self.row}, expected below {n - f}, the number of honest rows; or leave it out"
            )

    def craft(self, honest: np.ndarray, f: int, seed: int) -> np.ndarray:
        """f times the row that is copied."""
        return copies(honest[most_extreme(honest) if self.row is None else self.row], f)


def most_extreme(honest: np.ndarray) -> int:
    """argmax_i |⟨z, x_i⟩| for the direction z of largest variance."""
    # by a power of two, so that squares neither overflow nor vanish
    honest = np.ldexp(honest, -np.frexp(np.abs(honest).max(initial=0.0))[1])
    centred = honest - honest.mean(axis=0)
    weights = np.linalg.eigh(centred @ centred.T)[1][:, -1]
    return int(np.abs(honest @ (weights @ centred)).argmax())
