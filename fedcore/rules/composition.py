"""How rules compose: a pre-aggregation hands on mixtures of rows, and what follows decides on those."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from fedcore.errors import RuleError
from fedcore.numbers import shown
from fedcore.rules.budget import MIXING
from fedcore.rules.coefficients import combine, stays_with_clients
from fedcore.rules.geometry import Geometry
from fedcore.rules.order_statistic import OrderStatistic
from fedcore.rules.rule import REFERENCES, Coefficients, Decision, Rule
from fedcore.rules.stage import Stage


@dataclass(frozen=True)
class Mixing:
    """What a pre-aggregation hands on: rows that are mixtures of the extended cohort.

    matrix       (rows, clients + references) fp64; each row sums to 1
    weights      (rows,) fp64, or None for a weight of 1 each
    details      what the pre-aggregation has to report of the cohort, JSON-able
    per_client   what it has to report of each row that it was given: name -> (clients,) array
    """

    matrix: np.ndarray
    weights: np.ndarray | None
    details: dict[str, Any] = field(default_factory=dict)
    per_client: dict[str, np.ndarray] = field(default_factory=dict)


class PreAggregation(Rule):
    """A rule that can also hand its rows on: `NormClipping(1.0).then(Krum(2))`. Alone it is the mean of those rows.

    keeps_rows    whether the row of number i that it hands on stands for client i
    """

    keeps_rows: ClassVar[bool] = True

    def decide(self, geometry: Geometry, weights: np.ndarray | None) -> Decision:
        """The mean of the rows that it hands on, by their weights."""
        self.check(geometry.clients)
        mixing = self.mixing(geometry, weights)
        share = np.ones(len(mixing.matrix)) if mixing.weights is None else mixing.weights
        values = combine(share, mixing.matrix)
        return Coefficients(values, details=mixing.details, per_client=mixing.per_client)

    def mixing(self, geometry: Geometry, weights: np.ndarray | None) -> Mixing:
        """The rows to hand on, as mixtures of the extended cohort."""
        raise TypeError(f"{type(self).__name__}: a pre-aggregation defines `mixing`")

    def rows(self, clients: int) -> int:
        """How many rows it hands on for this many clients."""
        return clients

    def then(self, following: Rule) -> Rule:
        """The rule that mixes rows first and then applies `following` to them; the data are not read for the mixing.

        A rule that needs distances then takes n³ in n-space for products with the Gram, and n³ more for the bounds of
        all distances where clients are in several mixtures: as products too after NearestNeighborMixing, which gives a
        client one weight wherever it counts, else, as after a clip of such mixtures, by differences, some ten times as
        long.

        Raises RuleError where `following` is no rule.
        """
        if not isinstance(following, Rule):
            raise RuleError(f"{self!r}.then: got {shown(following)}, expected an instance of a rule such as Krum(f=1)")
        return Composed(self, following)


@dataclass(frozen=True, repr=False)
class Composed(Rule):
    """`following` on the rows of `first`: with C the matrix of `first` and c what `following` finds, c·C."""

    first: PreAggregation
    following: Rule

    def __repr__(self) -> str:
        return f"{self.first!r}.then({self.following!r})"

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """All that either part asks for; what is asked of mixed rows follows from the Gram matrix."""
        return self.first.needs | self.following.needs_of_mixtures

    @property
    def needs_of_mixtures(self) -> frozenset[str]:
        """What either part asks of mixtures."""
        return self.first.needs_of_mixtures | self.following.needs_of_mixtures

    @property
    def uses(self) -> tuple[str, ...]:  # type: ignore[override]
        """What either part does, in one order for all."""
        return tuple(name for name in REFERENCES if name in self.first.uses or name in self.following.uses)

    @property
    def origin(self) -> str | None:  # type: ignore[override]
        """That of the last part: what hands rows on makes no such promise."""
        return self.following.origin

    @property
    def matrices(self) -> int:  # type: ignore[override]
        """Those of the larger part, and the mixtures with what bounds their distances."""
        return max(self.first.matrices, self.following.matrices) + MIXING

    @property
    def linear(self) -> bool:  # type: ignore[override]
        """Whether the last part is: a pre-aggregation always is."""
        return self.following.linear

    @property
    def uses_weights(self) -> bool:  # type: ignore[override]
        """Whether the last part does: mixing alone moves with weights only through it."""
        return self.following.uses_weights

    def mixtures(self, clients: int) -> int:
        """Those that the last pre-aggregation hands on, where an order rule follows."""
        handed_on = self.first.rows(clients)
        return 0 if self.linear else self.following.mixtures(handed_on) or handed_on

    def check(self, clients: int) -> None:
        """Raise RuleError if either part cannot run."""
        self.first.check(clients)
        rows = self.first.rows(clients)
        try:
            self.following.check(rows)
        except RuleError as error:
            if rows == clients:
                raise
            raise RuleError(f"{error} ({self.first!r} makes {rows} mixed rows of {clients} clients)") from None

    def for_round(self, number: int) -> Rule:
        """Both parts with the randomness of that round."""
        first = self.first.for_round(number)
        assert isinstance(first, PreAggregation)
        return Composed(first, self.following.for_round(number))

    def without(self, row: int) -> Rule:
        """`following` without it, where a row that it gets stands for a client; the number of a bucket stays."""
        return Composed(self.first, self.following.without(row)) if self.first.keeps_rows else self

    def then(self, following: Rule) -> Rule:
        """A longer chain: a.then(b).then(c) is a.then(b.then(c))."""
        return Composed(self.first, self.following.then(following))

    def decide(self, geometry: Geometry, weights: np.ndarray | None) -> Decision:
        """What `following` decides on the mixed rows, times the mixing matrix; the product reads no data."""
        mixing = self.first.mixing(geometry, weights)
        inner: Decision = self.following.decide(geometry.mixed(mixing.matrix), mixing.weights)
        matrix = geometry.with_references(mixing.matrix)
        own = stays_with_clients(mixing.matrix, geometry.clients)
        if not own:
            # what was found is of mixed rows, so it is no longer of a client
            found = Stage("", inner.details, inner.per_client).of_rows() | {"selected": inner.selected}
            stages = tuple(Stage(stage.rule, stage.of_rows(), {}) for stage in inner.before)
            inner = replace(
                inner, details={"mixed_rows": found}, per_client={}, reasons={}, selected=None, before=stages
            )
        before = (Stage(repr(self.first), mixing.details, mixing.per_client), *inner.before)
        decided: Decision
        if isinstance(inner, OrderStatistic):
            mix = inner.of(matrix, len(mixing.matrix))
            counted, decided = mix.any(0), replace(inner, mix=mix, rows=None, before=before)
        else:
            values = combine(inner.values, matrix)
            counted, decided = values != 0, replace(inner, values=values, before=before)
        if own:
            return decided
        left_out = np.flatnonzero(~np.asarray(counted)[: geometry.clients])
        return replace(decided, reasons={int(row): "in none of the mixed rows that count" for row in left_out})
