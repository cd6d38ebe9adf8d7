"""What a rule is: a decision over the cohort, found from its geometry, and how rules compose.

A rule never sees the data. From a `Geometry` (distances and norms) it decides: a linear rule on one coefficient for
each row of the extended cohort, clients first and then references, so that the result is Σ c_k x_k / Σ c_k; an order
rule on the rows, or mixtures of rows, that a coordinate-wise statistic is taken of. Another rule is one more file with
a frozen dataclass that says what it `needs` and `uses`, what it `check`s and how it `decide`s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, overload

import numpy as np
import numpy.typing as npt

from fedcore.errors import RuleError, WeightError
from fedcore.numbers import shown
from fedcore.ops.kinds import NumpyRows, TorchRows
from fedcore.ops.weighted_sum import exact_weights
from fedcore.rules.budget import MATRICES
from fedcore.rules.coefficients import round_coefficients
from fedcore.rules.geometry import Geometry
from fedcore.rules.order_statistic import OrderStatistic
from fedcore.rules.rows import RowExecutor
from fedcore.rules.stage import Stage
from fedcore.rules.statistics import Statistics

if TYPE_CHECKING:
    import torch


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

    def rounded(self, names: Sequence[str]) -> tuple[np.ndarray, float]:
        """The coefficients as used, rounded to fp32 once, and the divisor: the fp64 sum of those, in row order.

        Raises WeightError, with the name of the row of the largest coefficient, where one does not fit fp32, all are 0
        as rounded, or they cancel: then the divisor would be what their roundings leave.
        """
        with np.errstate(over="ignore"):
            values = round_coefficients(self.values)
        divisor, total = (float(np.cumsum(found, dtype=np.float64)[-1]) for found in (values, np.abs(values)))
        if total <= MOST_CANCELLED * abs(divisor) and 0 < total < np.inf:
            return values, divisor
        row = int(np.argmax(np.abs(self.values)))
        who = names[row] if row < len(names) else "a reference row"
        got = f"{who}: got coefficient {self.values[row]:.6g}, the largest of all"
        if not 0 < total < np.inf:
            raise WeightError(f"{got}, expected one within fp32; multiply weights by one number, or leave that row out")
        raise WeightError(f"{got} where all sum to {divisor:.6g}, expected no such cancellation; leave that row out")

    def unused(self, clients: int) -> dict[int, str]:
        """row -> why its coefficient as used is 0, of every client whose is."""
        used = round_coefficients(self.values[:clients])
        return {
            int(row): f"its coefficient {self.values[row]:.3g} rounds to 0 in fp32"
            if self.values[row]
            else "its coefficient is 0: the result lies on other rows alone"
            for row in np.flatnonzero(used == 0)
        }


#: how many times the size of their sum coefficients may have in all: each rounds by up to 2⁻²⁴ of itself
MOST_CANCELLED = 2.0**16
#: what a rule decides on
Decision = Coefficients | OrderStatistic
#: the reference rows that a rule can ask for, by name
REFERENCES = ("reference", "server", "center")


class Rule:
    """An aggregation rule. Subclasses are frozen dataclasses, so equal rules compare equal and print as written.

    needs         the statistics that `decide` asks for: a subset of {"norms", "gram"}; empty for none
    uses          the reference rows that `decide` sees after the clients, in this order: "reference" (the row that
                  clients moved from; zero where none is given), "server" (a trusted update made by the server; must
                  be given), "center" (where an iteration starts; the reference where none is given)
    origin        the reference row that distances are taken from, by name, for a rule that promises something whatever
                  most clients send: the Gram is centred there, so that no row rounds another's distance to it. None
                  for a rule that compares clients with each other.
    matrices      how many matrices (n, n) in fp64 `decide` holds at a time, the Gram among them, for a memory budget
    uses_weights  whether weights move the result; a rule that ignores them does not check them
    linear        whether the decision is `Coefficients`, so that the rule also runs on products of factors
    streams       whether the decision over a cohort is that over each client alone, put side by side: what it gives to
                  references, and the numbers in `details`, add up. Such a rule takes updates as they arrive.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    uses: ClassVar[tuple[str, ...]] = ()
    origin: ClassVar[str | None] = None
    matrices: ClassVar[int] = MATRICES
    uses_weights: ClassVar[bool] = False
    linear: ClassVar[bool] = True
    streams: ClassVar[bool] = False

    @property
    def needs_of_mixtures(self) -> frozenset[str]:
        """The Gram, where `decide` needs anything of rows."""
        return frozenset({"gram"}) if self.needs else frozenset()

    def origin_row(self, clients: int) -> int | None:
        """The row of `origin` in the extended cohort of so many clients."""
        return None if self.origin is None else clients + self.uses.index(self.origin)

    def mixtures(self, clients: int) -> int:
        """How many mixtures of so many rows must be formed for an order statistic; 0 where the rows themselves do."""
        return 0

    def check(self, clients: int) -> None:
        """Raise RuleError if the rule cannot run on this many clients."""

    def decide(self, geometry: Geometry, weights: np.ndarray | None) -> Decision:
        """The decision for this cohort; `weights` is (clients,) fp64, or None for equal ones."""
        raise TypeError(f"{type(self).__name__}: a rule defines `decide`")

    def for_round(self, number: int) -> Rule:
        """The rule with the randomness of round `number`; a rule without any is the same in every round."""
        return self

    def without(self, row: int) -> Rule:
        """The rule for a cohort without that client: one that names a row by its number keeps to that row."""
        return self

    def then(self, following: Rule) -> Rule:
        """Only a pre-aggregation hands rows on. Raises RuleError."""
        raise RuleError(
            f"{self!r}: gives one row, so {shown(following)} cannot follow it; then() belongs to a pre-aggregation "
            "such as NormClipping"
        )

    @overload
    def __call__(
        self,
        rows: NumpyRows,
        weights: npt.ArrayLike | None = None,
        *,
        reference: Any = None,
        server: Any = None,
        center: Any = None,
        backend: str | None = None,
        threads: int | None = None,
    ) -> np.ndarray: ...

    @overload
    def __call__(
        self,
        rows: TorchRows,
        weights: npt.ArrayLike | None = None,
        *,
        reference: Any = None,
        server: Any = None,
        center: Any = None,
        backend: str | None = None,
        threads: int | None = None,
    ) -> torch.Tensor: ...

    def __call__(
        self,
        rows: Any,
        weights: npt.ArrayLike | None = None,
        *,
        reference: Any = None,
        server: Any = None,
        center: Any = None,
        backend: str | None = None,
        threads: int | None = None,
    ) -> Any:
        """Aggregate plain rows. `explained` also says which of them count, and why others do not.

        rows        (n, d) array or tensor, n arrays or tensors of length d, or a RowTable; fp32, fp16 or bf16
        weights     (n,) positive numbers, or None for equal ones
        reference   (d,) the row that the clients moved from, of the rows' dtype, or a RowTable of one row; None is the
                    zero row
        server      (d,) a trusted row of the server's own, for rules that use one (FLTrust, MoNNA)
        center      (d,) the row that an iteration starts from, for rules that use one (CenteredClipping); None is the
                    reference
        backend     'reference', 'c', 'triton', or None for where the rows lie. Distances of mixtures that a selection
                    forms again in fp64 are NumPy's on every backend.
        threads     of the C kernels; None for all cores

        Returns (d,) in fp32: NumPy for NumPy, torch on the same device for torch. Raises RuleError (too few rows, a
        row that the rule uses and nobody gave), WeightError, NonFiniteError, LayoutError (a reference of another dtype
        or length), ShapeError and DTypeError.
        """
        given = {"reference": reference, "server": server, "center": center}
        return self.explained(rows, weights, **given, backend=backend, threads=threads)[0]

    @overload
    def explained(
        self, rows: NumpyRows, weights: npt.ArrayLike | None = None, **given: Any
    ) -> tuple[np.ndarray, Decision]: ...

    @overload
    def explained(
        self, rows: TorchRows, weights: npt.ArrayLike | None = None, **given: Any
    ) -> tuple[torch.Tensor, Decision]: ...

    def explained(self, rows: Any, weights: npt.ArrayLike | None = None, **given: Any) -> tuple[Any, Decision]:
        """(what a call of the rule gives, the decision behind it): arguments and errors are those of a call.

        The decision is `Coefficients` or, of an order rule, an `OrderStatistic`: its `reasons` say by row number who
        does not count and why, `selected` and `per_client` who does, and by how much, `details` what else was found.
        """
        references = chosen_references(self, **{name: given.pop(name, None) for name in REFERENCES})
        passes = {"backend": None, "threads": None} | given
        executor = RowExecutor.from_rows(rows, references=references, **passes)
        self.check(executor.clients)
        checked = check_weights(weights, executor.names) if self.uses_weights else None
        decision = self.decide(Geometry(Statistics(executor, self.origin_row(executor.clients))), checked)
        if isinstance(decision, OrderStatistic):
            return executor.order_statistic(decision, out_dtype="float32")[0], decision
        return executor.weighted_sum(*decision.rounded(executor.names), out_dtype="float32")[0], decision


def chosen_references(rule: Rule, **given: Any) -> dict[str, Any]:
    """The rows of `rule.uses`, by name and in its order; None for the zero row.

    Raises RuleError where a server's row is wanted and not given.
    """
    if "server" in rule.uses and given["server"] is None:
        raise RuleError(f"{rule!r}: got no server row, expected the server's own trusted update; pass server=")
    given = given | {"center": given["reference"] if given["center"] is None else given["center"]}
    return {name: given[name] for name in rule.uses}


def check_weights(weights: npt.ArrayLike | None, names: Sequence[str]) -> np.ndarray | None:
    """The weights as (n,) fp64, or None for equal ones; `names` is what messages call each row.

    Raises as `ops.weighted_sum` does, and WeightError for a weight that is not above 0.
    """
    if weights is None:
        return None
    values = exact_weights(weights, len(names), names)
    for row in np.flatnonzero(values <= 0).tolist():
        raise WeightError(
            f"{names[row]}: got weight {values[row]:.15g}, expected a finite number above 0; correct it or leave it out"
        )
    return values
