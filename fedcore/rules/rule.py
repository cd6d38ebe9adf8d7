"""What a rule is: coefficients over the cohort, found from its geometry, and how rules compose.

A linear rule never sees the data. From a `Geometry` (distances and norms) it finds one coefficient for each row of the
extended cohort, clients first and then references; the result is Σ c_k x_k / Σ c_k. Another rule is one more file with
a frozen dataclass that says what it `needs`, what it `check`s and how it finds its `coefficients`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from fedcore.errors import RuleError, ShapeError, WeightError
from fedcore.ops.weighted_sum import LARGEST_COUNT
from fedcore.rules.geometry import Geometry, Statistics, combine
from fedcore.rules.rows import RowExecutor

#: the smallest fp32 number that keeps all 24 bits
SMALLEST_NORMAL = 2.0**-126


@dataclass(frozen=True)
class Stage:
    """What one stage of a composition found: `rule` as it prints, and its `details` and `per_client` values."""

    rule: str
    details: dict[str, Any]
    per_client: dict[str, np.ndarray]


@dataclass(frozen=True)
class Coefficients:
    """What a linear rule decided.

    values       (clients + references,) fp64, relative: the result divides by their sum
    reasons      row -> why that client does not count, in words
    details      what the rule has to report of the cohort, JSON-able
    per_client   what it has to report of each client: name -> (clients,) array
    selected     the rows it selected, ascending, or None for a rule that does not select
    before       what the stages before it found, in their order
    """

    values: np.ndarray
    reasons: dict[int, str] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    per_client: dict[str, np.ndarray] = field(default_factory=dict)
    selected: list[int] | None = None
    before: tuple[Stage, ...] = ()

    def rounded(self) -> tuple[np.ndarray, float]:
        """The coefficients as used, rounded to fp32 once, and the divisor: the fp64 sum of those, in row order.

        Below the normal range of fp32 they become 0: the few bits that are left there could make a clipped row 1.7
        times too long, or twice.
        """
        values = np.where(np.abs(self.values) < SMALLEST_NORMAL, 0.0, self.values).astype(np.float32)
        return values, float(np.cumsum(values, dtype=np.float64)[-1])


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


class Rule:
    """A linear aggregation rule. Subclasses are frozen dataclasses, so equal rules compare equal and print as written.

    needs            the statistics that `coefficients` asks for: a subset of {"norms", "gram"}; empty for none
    uses_reference   whether clients are seen relative to a reference row (the zero row where none is given)
    uses_weights     whether weights move the result; a rule that ignores them does not check them
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    uses_reference: ClassVar[bool] = False
    uses_weights: ClassVar[bool] = False

    def check(self, clients: int) -> None:
        """Raise RuleError if the rule cannot run on this many clients."""

    def coefficients(self, geometry: Geometry, weights: np.ndarray | None) -> Coefficients:
        """The coefficients for this cohort; `weights` is (clients,) fp64, or None for equal ones."""
        raise TypeError(f"{type(self).__name__}: a rule defines `coefficients`")

    def then(self, following: Rule) -> Rule:
        """Only a pre-aggregation hands rows on. Raises RuleError."""
        raise RuleError(
            f"{self!r}: gives one row, so {following!r} cannot follow it; then() belongs to a pre-aggregation such as "
            "NormClipping"
        )

    def __call__(
        self,
        rows: Any,
        weights: npt.ArrayLike | None = None,
        *,
        reference: Any = None,
        backend: str | None = None,
        threads: int | None = None,
    ) -> Any:
        """Aggregate plain rows.

        rows        (n, d) array or tensor, n arrays or tensors of length d, or a RowTable; fp32, fp16 or bf16
        weights     (n,) positive numbers, or None for equal ones
        reference   (d,) the row that the clients moved from, of the rows' dtype, or a RowTable of one row; None is the
                    zero row
        backend     'reference', 'c', 'triton', or None for where the rows lie. Pairs that a selection forms again in
                    fp64 have no GPU kernel: under 'triton' they run on the C kernels, or else on NumPy.
        threads     of the C kernels; None for all cores

        Returns (d,) in fp32: NumPy for NumPy, torch on the same device for torch. Raises RuleError (too few rows),
        WeightError, NonFiniteError, LayoutError (a reference of another dtype or length), ShapeError and DTypeError.
        """
        executor = RowExecutor.from_rows(
            rows, reference=reference, with_reference=self.uses_reference, backend=backend, threads=threads
        )
        self.check(executor.clients)
        checked = check_weights(weights, executor.names) if self.uses_weights else None
        values, divisor = self.coefficients(Geometry(Statistics(executor)), checked).rounded()
        return executor.weighted_sum(values, divisor, out_dtype="float32")[0]


class PreAggregation(Rule):
    """A rule that can also hand its rows on: `NormClipping(1.0).then(Krum(2))`."""

    def mixing(self, geometry: Geometry, weights: np.ndarray | None) -> Mixing:
        """The rows to hand on, as mixtures of the extended cohort."""
        raise TypeError(f"{type(self).__name__}: a pre-aggregation defines `mixing`")

    def rows(self, clients: int) -> int:
        """How many rows it hands on for this many clients."""
        return clients

    def then(self, following: Rule) -> Rule:
        """The rule that mixes rows first and then applies `following` to them; the data are not read for the mixing."""
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
        return self.first.needs | (frozenset({"gram"}) if self.following.needs else frozenset())

    @property
    def uses_reference(self) -> bool:  # type: ignore[override]
        """Whether either part does."""
        return self.first.uses_reference or self.following.uses_reference

    @property
    def uses_weights(self) -> bool:  # type: ignore[override]
        """Whether the last part does: mixing alone moves with weights only through it."""
        return self.following.uses_weights

    def check(self, clients: int) -> None:
        """Raise RuleError if either part cannot run."""
        self.first.check(clients)
        self.following.check(self.first.rows(clients))

    def then(self, following: Rule) -> Rule:
        """A longer chain: a.then(b).then(c) is a.then(b.then(c))."""
        return Composed(self.first, self.following.then(following))

    def coefficients(self, geometry: Geometry, weights: np.ndarray | None) -> Coefficients:
        """The coefficients of `following` on the mixed rows, times the mixing matrix; the product reads no data."""
        mixing = self.first.mixing(geometry, weights)
        inner = self.following.coefficients(geometry.mixed(mixing.matrix), mixing.weights)
        kept = len(mixing.matrix) == geometry.clients
        matrix = geometry.with_references(mixing.matrix)
        stage = Stage(repr(self.first), mixing.details, mixing.per_client)
        if not kept:
            rows = {name: values.tolist() for name, values in inner.per_client.items()}
            details = {"mixed_rows": {**inner.details, **rows, "selected": inner.selected}}
            return Coefficients(combine(inner.values, matrix), details=details, before=(stage,))
        return replace(inner, values=combine(inner.values, matrix), before=(stage, *inner.before))


def check_weights(weights: npt.ArrayLike | None, names: Sequence[str]) -> np.ndarray | None:
    """The weights as (n,) fp64, or None for equal ones; `names` is what messages call each row.

    Raises ShapeError for another length, WeightError for a weight that is not a finite number above 0 or a count above
    2**24.
    """
    if weights is None:
        return None
    try:
        values = np.asarray(weights.tolist() if hasattr(weights, "tolist") else weights, np.float64)
    except (TypeError, ValueError):
        raise WeightError(f"weights: got {weights!r}, expected {len(names)} numbers") from None
    if values.shape != (len(names),):
        raise ShapeError(f"weights: got shape {values.shape}, expected ({len(names)},), one for each client")
    for name, value in zip(names, values, strict=True):
        if not (np.isfinite(value) and value > 0):
            raise WeightError(
                f"{name}: got weight {value:.15g}, expected a finite number above 0; correct it or leave it out"
            )
        if value > LARGEST_COUNT:
            raise WeightError(
                f"{name}: got weight {value:.15g}, expected at most {LARGEST_COUNT}; divide all weights by one number"
            )
        if np.float32(value) == 0:
            raise WeightError(f"{name}: weight {value:g} is zero in fp32; multiply all weights by one number")
    return values
