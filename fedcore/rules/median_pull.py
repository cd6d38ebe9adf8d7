"""The pull of the other clients at one of them, formed from the data: what certifies it as the geometric median.

x_o is a median where ‖Σ p_k (x_k − x_o)‖, with p_k = w_k / ‖x_k − x_o‖ over the others, is at most the weight that lies
at x_o. A sum in fp64 loses what clients next to x_o are to the rest: each x_k is as long as it is, and p_k has no
bound. So those who lie that near are rows of their own beside the sum of the rest.
"""

from __future__ import annotations

import numpy as np

from fedcore.rules.distances import Distances
from fedcore.rules.geometry import Geometry

#: rows whose sums differ by no more, relatively, tie; what rows in fp32 round such sums by
TIED = 2.0**-22


def pull_at(geometry: Geometry, share: np.ndarray, row: int, distances: Distances) -> tuple[float, float, np.ndarray]:
    """(length of the pull, a bound of its error, (n,) who lies at `row`), by redone distances to it.

    A client whose direction is not told from the data lies at the row: its pull is anything up to its weight, which is
    what its weight there allows. Taking it there changes the sum of distances by no more than w_k ‖x_k − x_o‖, twice.
    """
    n, value, error = geometry.clients, distances.value[row], distances.error[row]
    away = np.sqrt(value)
    own = np.sqrt(value + error) - away
    here = away <= own
    pull = np.divide(share, away, out=np.zeros(n), where=~here)
    if not pull.any():
        return 0.0, 0.0, here
    # what each adds to the error of a sum over them: those that would add most are taken out of it
    doubt = np.where(here, 0.0, pull * (own + geometry.rounding_of_sums(row)))
    order = np.argsort(doubt)
    near = np.sort(order[np.cumsum(doubt[order]) > TIED / 16 * n])
    rest = pull.copy()
    rest[near] = 0.0
    total = float(rest.sum())
    matrix = np.zeros((len(near) + 2, n + geometry.references))
    matrix[0, row] = 1.0
    matrix[1, :n] = rest / total if total else matrix[0, :n]
    matrix[np.arange(len(near)) + 2, near] = 1.0
    inner, bound, slack = geometry.redone_products(matrix)
    used = np.concatenate(([0.0, total], pull[near]))
    # where the pull is as long as what lies here, its square is off by twice that times what its length is
    untold = used[2:] * (bound @ used)[2:] > TIED / 2 * share[here].sum()
    untold |= slack[2:] > TIED / 2 * away[near]
    here[near[untold]] = True
    used[2:][untold] = 0.0
    square = max(float(used @ inner @ used), 0.0)
    force = float(np.sqrt(square))
    return force, float(np.sqrt(square + used @ bound @ used)) - force + float(used @ slack), here
