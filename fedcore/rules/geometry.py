"""What a linear rule sees of a cohort: distances with their error bounds, norms, and an exact redo. Never the data.

Rows are those of the extended cohort: the clients, then the reference rows (the global model that they moved from, or
zero). A pre-aggregation replaces the clients by mixtures y_a = Σ_k C_ak x_k with Σ_k C_ak = 1. For v = C_a − C_b, which
sums to 0, and a Gram matrix G centred anywhere,

    ‖y_a − y_b‖² = vᵀ G v = −½ Σ_kl v_k v_l D_kl,

so the distances of mixed rows follow from the Gram of the rows themselves, and their errors from those of its
distances.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from fedcore.errors import RuleError, ShapeError
from fedcore.rules.coefficients import combine, product, stays_with_clients
from fedcore.rules.mixture_bounds import MixtureBounds
from fedcore.rules.statistics import UNIT, Statistics

#: the relative error of a mixture's squared distance to the reference above which it is formed from the data
GRAM_DOUBT = 2.0**-30
#: what equal rows can differ by in a Gram, relative to their squared norms
SAME_ROW = 2.0**-40
#: the part of a squared distance that its error may be where an iteration goes by it
ITERATED_DOUBT = 0.25


class Geometry:
    """Distances between the clients, or between mixtures that stand in for them.

    clients      rows that compete: n clients, or n' mixtures
    references   reference rows after them, the same for mixtures
    names        (clients,) what messages call each row
    """

    def __init__(self, statistics: Statistics, mix: np.ndarray | None = None):
        executor = statistics.executor
        self._statistics = statistics
        #: (clients + references, rows of the extended cohort), or None for the rows themselves
        self._mix = mix
        self.references = executor.references
        self.clients = executor.clients if mix is None else len(mix) - self.references
        own = mix is None or stays_with_clients(mix[: self.clients], executor.clients)
        self.names = tuple(executor.names) if own else tuple(f"mixed row {i}" for i in range(self.clients))

    def with_references(self, matrix: np.ndarray) -> np.ndarray:
        """A mixing matrix (n', clients + references) with the references below it as they are."""
        if matrix.ndim != 2 or matrix.shape[1] != self.clients + self.references:
            raise ShapeError(f"mixing: got shape {matrix.shape}, expected (rows, {self.clients + self.references})")
        return np.vstack((matrix, np.eye(self.references, matrix.shape[1], k=self.clients)))

    def mixed(self, matrix: np.ndarray) -> Geometry:
        """The geometry of matrix · rows. Each row of `matrix` sums to 1; no data are read."""
        extended = self.with_references(matrix)
        # each coefficient is rounded once, and their sum at each addition
        room = (extended.shape[1] + 2) * UNIT
        for row in np.flatnonzero(~(np.abs((sums := extended.sum(1)) - 1) <= room * np.abs(extended).sum(1))):
            raise ShapeError(f"mixing: coefficients of row {row} sum to {sums[row]:.17g}, expected 1; divide by that")
        mix = self._mix
        return Geometry(self._statistics, extended if mix is None else combine(extended, mix))

    @cached_property
    def same(self) -> np.ndarray:
        """(clients,) the lowest row that each is known to equal without a look at the data: the same mixture."""
        if self._mix is None:
            return np.arange(self.clients)
        first: dict[bytes, int] = {}
        # + 0.0 gives zero one sign
        return np.array([first.setdefault((row + 0.0).tobytes(), i) for i, row in enumerate(self._mix[: self.clients])])

    def squared_distances_to_reference(self) -> tuple[np.ndarray, np.ndarray]:
        """Squared distances to the first reference: values (clients,) fp64 and bounds of their errors (clients,).

        Of rows it is a pass for norms. Of mixtures it follows from the Gram; those that cancel in it are redone.
        """
        if not self.references:
            raise RuleError("norms: got no reference row, expected one; give the row that the clients moved from")
        if self._mix is None:
            return self._statistics.squared_norms
        gram, r = self.inner_products(), self.clients
        square = gram.diagonal()
        value = np.maximum(square[:r] + square[r] - 2 * gram[:r, r], 0.0)
        error, slack = self._mixtures.pairs(r, np.arange(r))
        doubtful = np.flatnonzero(error > GRAM_DOUBT * value)
        if doubtful.size:
            value[doubtful], error[doubtful] = self.redo(np.column_stack((doubtful, np.full(len(doubtful), r))))
            error[doubtful] += 2 * np.sqrt(value[doubtful]) * slack[doubtful] + np.square(slack[doubtful])
        return value, error

    def squared_distances_to(self, row: int) -> tuple[np.ndarray, np.ndarray, bool]:
        """Squared distances of clients to a row, client or reference: values and bounds (clients,), and whether final.

        Of rows themselves they are formed from the data, and are final. Of mixtures they follow from the Gram, and the
        bound holds for true distances and for redone ones.
        """
        every = np.arange(self.clients)
        value, error = np.zeros(self.clients), np.zeros(self.clients)
        if self._mix is None:
            others = every[every != row]
            value[others], error[others] = self.redo(np.column_stack((others, np.full(len(others), row))))
            return value, error, True
        inner = self.inner_products()
        value = np.maximum(inner.diagonal()[every] + inner[row, row] - 2 * inner[every, row], 0.0)
        error, slack = self._mixtures.pairs(row, every)
        return value, self._redone_too(value, error, slack), False

    def _redone_too(self, distance: np.ndarray, error: np.ndarray, slack: np.ndarray | None) -> np.ndarray:
        """Bounds that hold for redone distances as for true ones: a redo rounds relatively, a mixture absolutely.

        |D° − D| ≤ 2 √D slack + slack² + rounding · D; rows themselves have no slack.
        """
        upper = np.maximum(distance + error, 0.0)
        if slack is not None:
            error = error + (2 * np.sqrt(upper) * slack + np.square(slack))
        upper *= self._statistics.gram.rounding
        upper += error
        return upper

    def intervals(self) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper bounds (clients, clients) of squared distances, for true ones and for redone ones."""
        gram = self._statistics.gram
        # equal mixtures are measured once, and are at distance 0
        kept, back = np.unique(self.same, return_inverse=True)
        inner = self.inner_products()[np.ix_(kept, kept)]
        square = inner.diagonal()
        distance = square[:, None] + square[None, :] - 2 * inner
        if self._mix is None:
            error = gram.error[kept, None] + gram.error[None, kept] + 4 * UNIT * (square[:, None] + square[None, :])
            slack = None
        else:
            error, slack = self._mixtures.every(kept)
        error = self._redone_too(distance, error, slack)
        lower, upper = np.maximum(distance - error, 0.0), np.maximum(distance + error, 0.0)
        np.fill_diagonal(lower, 0.0)
        np.fill_diagonal(upper, 0.0)
        if len(kept) == self.clients:
            return lower, upper
        return lower[np.ix_(back, back)], upper[np.ix_(back, back)]

    def squared_distances(self) -> np.ndarray:
        """Squared distances between clients and references as the Gram gives them: (rows, rows) fp64, none below 0.

        For iterations, which need no certainty; a selection goes by `intervals`. Rows that differ by no more than the
        rounding of equal ones are at distance 0.
        """
        inner = self.inner_products()
        square = inner.diagonal()
        total = square[:, None] + square[None, :]
        distance = total - 2 * inner
        return np.where(distance > SAME_ROW * total, distance, 0.0)

    def inner_products_from(self, row: int) -> np.ndarray:
        """⟨y_a − y_row, y_b − y_row⟩ of clients and references: (rows, rows) fp64, 0 for rows that are `row` again.

        What a far row is off by is in proportion to its own length, and does not reach the others.
        """
        inner = self.inner_products()
        found = inner - inner[:, [row]] - inner[[row], :] + inner[row, row]
        again = self.squared_distances()[row] == 0
        found[again] = 0.0
        found[:, again] = 0.0
        return found

    def seen_from(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """(squared distances of clients to client `row` (n,), inner products seen from it (n, n)), for iterations.

        Where the Gram hardly tells rows from that one, as in a cluster far from its centre, the distances of all of
        them are formed from the data.
        """
        n = self.clients
        squares, inner = self.squared_distances()[row, :n], self.inner_products_from(row)[:n, :n]
        error, _ = self._bounds(row, np.arange(n))
        near = np.flatnonzero((error > ITERATED_DOUBT * squares) & (self.same != self.same[row]))
        if not near.size:
            return squares, inner
        first, second = np.triu_indices(near.size, 1)
        pairs = np.vstack((np.column_stack((np.full(near.size, row), near)), near[np.column_stack((first, second))]))
        value, _ = self.redo(pairs)
        squares[near] = value[: near.size]
        found = np.zeros((near.size, near.size))
        found[first, second] = found[second, first] = value[near.size :]
        inner[np.ix_(near, near)] = (squares[near, None] + squares[near] - found) / 2
        again = squares == 0
        inner[again] = 0.0
        inner[:, again] = 0.0
        return squares, inner

    def cosines(self, row: int, origin: int) -> np.ndarray:
        """cos(y_i − y_origin, y_row − y_origin) of clients i and two others: (clients,) fp64, 0 for one that is origin.

        Those that the Gram does not tell from 0 are formed from the data, of y_i at the distance of y_row, so that a
        far one rounds no more; and are 0 where they are not told from that even then.
        """
        every, there = np.arange(self.clients), np.array([origin])
        length = np.sqrt(self.squared_distances()[origin])
        inner = self.inner_products_from(origin)[every, row]
        to_row, to_origin, between = (
            self._bounds(one, others)[0] for one, others in ((row, every), (origin, every), (row, there))
        )
        reach = length[every] * length[row]
        found = np.divide(inner, reach, out=np.zeros(self.clients), where=reach > 0)
        doubtful = np.flatnonzero((np.abs(inner) <= (to_row + to_origin + between) / 2) & (reach > 0))
        k = doubtful.size
        if not k:
            return found
        matrix = np.zeros((k + 2, self.clients + self.references))
        matrix[every[:k], doubtful] = length[row] / length[doubtful]
        matrix[:k, origin] = 1 - matrix[every[:k], doubtful]
        matrix[k, row] = matrix[k + 1, origin] = 1.0
        mixed = self.mixed(matrix)
        one, other = np.triu_indices(k + 2, 1)
        used = other >= k
        one, other = one[used], other[used]
        square, error = mixed.redo(np.column_stack((one, other)))
        error = mixed._redone_too(square, error, mixed._mixtures.slack(one, other))
        to_row, to_origin = (other == k) & (one < k), (other == k + 1) & (one < k)
        inner = square[to_origin] + square[-1] - square[to_row]
        sure = np.abs(inner) > error[to_origin] + error[-1] + error[to_row]
        found[doubtful] = np.where(sure, inner / (2 * np.square(length[row])), 0.0)
        return found

    def squared_lengths(self, rows: np.ndarray, pulls: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """‖Σ_k p_k (y_k − y_o)‖² for clients o in `rows` (m,) and p in `pulls` (m, clients), and error bounds: (m,)."""
        vectors = np.zeros((len(rows), self.clients + self.references))
        vectors[:, : self.clients] = pulls
        vectors[np.arange(len(rows)), rows] -= pulls.sum(1)
        gram = self._statistics.gram
        if self._mix is not None:
            vectors = vectors @ self._mix
        value = np.einsum("ij,ij->i", vectors @ gram.matrix, vectors)
        sizes = np.abs(vectors)
        reach = np.square(product(sizes, np.sqrt(gram.matrix.diagonal())))
        error = sizes.sum(1) * product(sizes, gram.error) + (2 * vectors.shape[1] + 8) * UNIT * reach
        return value, error

    def redone_products(self, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """⟨z_a − z_0, z_b − z_0⟩ of mixtures z = matrix · rows from the data, for a (m, clients + references) matrix.

        The products and bounds of their errors, both (m, m), are of mixtures as a redo rounds them; (m,) how far
        z_a − z_0 is off by that, as a norm: 0 for two rows of the data.
        """
        mixed, m = self.mixed(matrix), len(matrix)
        one, other = np.triu_indices(m, 1)
        square, error = np.zeros((m, m)), np.zeros((m, m))
        value, bound = mixed.redo(np.column_stack((one, other)))
        square[one, other] = square[other, one] = value
        error[one, other] = error[other, one] = bound + self._statistics.gram.rounding * value
        inner = (square[0, :, None] + square[0] - square) / 2
        assert mixed._mix is not None
        every = np.arange(m)
        rounded = np.where(np.count_nonzero(mixed._mix[:m], axis=1) > 1, mixed._mixtures.slack(every, every) / 2, 0.0)
        return inner, (error[0, :, None] + error[0] + error) / 2, rounded + rounded[0]

    def rounding_of_sums(self, row: int) -> np.ndarray:
        """(clients,) how far a redo takes a mixture of `row` and each client from what it is, as a norm."""
        own = np.eye(self.clients, self.clients + self.references)
        return self.mixed(own)._mixtures.slack(row, np.arange(self.clients))

    def redo(self, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Squared distances of pairs (m, 2) from the data: values (m,) and their bounds (m,), 0 for rows in fp64."""
        self._statistics.redone += len(pairs)
        return self._statistics.executor.exact(pairs, self._mix)

    @property
    def redone_on(self) -> str:
        """What pairs are redone on, in words for a report."""
        return self._statistics.executor.redone_on(self._mix is not None)

    @property
    def redone(self) -> int:
        """How many pairs have been redone for this cohort."""
        return self._statistics.redone

    def redo_report(self, redone: int) -> dict[str, Any]:
        """What a report says of pairs that were formed again: how many, and on what (None for none)."""
        return {"redone_pairs": redone, "redone_on": self.redone_on if redone else None}

    def inner_products(self) -> np.ndarray:
        """⟨y_a − p, y_b − p⟩ of clients and references, for one unknown p: (rows, rows) fp64.

        For coefficients v, w that each sum to 0, vᵀ · this · w is the inner product of Σ v_a y_a and Σ w_a y_a.
        """
        matrix = self._statistics.gram.matrix
        return matrix if self._mix is None else self._mix @ matrix @ self._mix.T

    def _bounds(self, row: int, others: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """How far squared distances of a row to `others` can be off, and redone ones as norms: `MixtureBounds`."""
        if self._mix is not None:
            return self._mixtures.pairs(row, others)
        error, square = self._statistics.gram.error, self._statistics.gram.matrix.diagonal()
        return error[row] + error[others] + 4 * UNIT * (square[row] + square[others]), None

    @cached_property
    def _mixtures(self) -> MixtureBounds:
        assert self._mix is not None
        return MixtureBounds(self._statistics.gram, self._mix)
