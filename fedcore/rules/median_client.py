"""The client that a search for the geometric median starts from, which may be the median itself: certified.

A client x_o is a median of weights w (Σ w = 1) where the others pull no more than it holds, ‖Σ p_k (x_k − x_o)‖ ≤ h
with p_k = w_k / ‖x_k − x_o‖ and h the weight that lies at x_o. With ties that is an equality, of an even number of
evenly spaced rows say, so it is never left to the rounding of a Gram: what that leaves open is formed from the data.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fedcore.rules.coefficients import product
from fedcore.rules.distances import Distances
from fedcore.rules.geometry import Geometry
from fedcore.rules.median_pull import TIED, pull_at
from fedcore.rules.statistics import UNIT

#: the iteration stops when the gradient of the mean distance is this short (its length is at most 1)
TOLERANCE = 1e-9


class Start(NamedTuple):
    """A client, the weight that lies there, the gradient's length, below what it counts as 0, and whether it does.

    here   (n,) the clients that lie there
    """

    row: int
    held: float
    gradient: float
    noise: float
    median: bool
    here: np.ndarray


def start_of(geometry: Geometry, share: np.ndarray) -> Start:
    """The client with the least sum of distances; of several that tie and may be the median, the lowest row that is.

    Costs no look at the data unless a client may be the median; then its distances are formed again, and its pull.
    """
    n = geometry.clients
    lower, upper = (np.sqrt(found) for found in geometry.intervals())
    room = (n + 4) * UNIT
    rows = np.flatnonzero(product(lower, share) * (1 - room) <= (product(upper, share) * (1 + room)).min())
    squares = geometry.squared_distances()[rows, :n]
    away = np.sqrt(squares)
    here = away == 0
    pull = np.divide(share, away, out=np.zeros_like(away), where=~here)
    held = product(here, share)
    value, error = geometry.squared_lengths(rows, pull)
    # a share pulls with its own weight, whatever its distance: only the direction of a near one is in doubt
    wide, near = (upper - lower)[rows], lower[rows]
    unsure = product(np.divide(wide, near, out=np.full_like(wide, 2.0) * (wide > 0), where=2 * near > wide), share)
    least, most = np.sqrt(np.maximum(value - error, 0.0)) - unsure, np.sqrt(value + error) + unsure
    maybe = least <= held + np.maximum(TOLERANCE, _noise(held, held))
    if len(rows) == 1 and most[0] <= held[0]:
        return Start(int(rows[0]), float(held[0]), 0.0, 0.0, True, here[0])
    if not maybe.any():
        best = int(np.argmin(product(away, share)))
        force = float(np.sqrt(max(value[best], 0.0)))
        return Start(int(rows[best]), float(held[best]), max(force - float(held[best]), 0.0), 0.0, False, here[best])
    return _certified(geometry, share, rows[maybe])


def _certified(geometry: Geometry, share: np.ndarray, rows: np.ndarray) -> Start:
    """The start among `rows`, by distances and pulls that are formed from the data."""
    n, distances = geometry.clients, Distances(geometry)
    distances.find_equal(rows)
    rows = np.unique(distances.same[rows])
    wanted = np.zeros((n, n), bool)
    wanted[rows] = True
    distances.redo(wanted)
    sums = product(np.sqrt(distances.value[rows]), share)
    tied = rows[sums <= (1 + TIED) * sums.min()]
    # if any client is the median, that with the least sum is
    found = [_looked_at(geometry, share, row, distances) for row in dict.fromkeys((tied[0], rows[np.argmin(sums)]))]
    return next((start for start in found if start.median), found[-1])


def _looked_at(geometry: Geometry, share: np.ndarray, row: int, distances: Distances) -> Start:
    force, slack, here = pull_at(geometry, share, row, distances)
    held = float(share[here].sum())
    gradient, noise = max(force - held, 0.0), max(float(_noise(np.asarray(held), np.asarray(force))), slack)
    sure = slack <= TIED * geometry.clients or force + slack <= held
    return Start(int(row), held, gradient, noise, gradient <= max(TOLERANCE, noise) and sure, here)


def _noise(held: np.ndarray, force: np.ndarray) -> np.ndarray:
    """What the rounding of rows to fp32 makes of the gradient at a client.

    force² is Σ p_k p_l K_kl with p_k √K_kk = w_k, and K_kl is off by about 2⁻²² √K_kk √K_ll: force² by 2⁻²² (Σ w_k)²,
    and the force by that over twice itself. The iteration, which has the Gram, can tell no more.
    """
    return TIED * np.square(1 - held) / (2 * np.maximum(force, held))
