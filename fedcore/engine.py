"""Run a rule over a cohort of updates: check, statistics, coefficients, combination.

`RowExecutor` makes the passes over parameters as they were sent, `DeltaExecutor` over true LoRA updates. A rule is the
same under both.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fedcore.backends import requested
from fedcore.errors import LayoutError, NonFiniteError, RuleError, ShapeError
from fedcore.lora.delta import Combined, report_of
from fedcore.lora.executor import DeltaExecutor
from fedcore.ops.rows import thread_count
from fedcore.rules.geometry import Geometry, Statistics
from fedcore.rules.rows import RowExecutor
from fedcore.rules.rule import Coefficients, Rule, check_weights
from fedcore.updates import Cohort, Layout, Update
from fedcore.updates.bases import check_same_base

Space = Literal["delta", "parameters"]

ROW_LAW = "row-order fp64 sum, rounded once"
FACTOR_LAW = "stacked factors, truncated by QR and SVD"


@dataclass(frozen=True)
class Aggregate:
    """What `aggregate` returns.

    update         the result; client_id "global", num_examples the sum over the clients that count
    coefficients   client_id -> its coefficient as used (an fp32 value); the result divides by report["divisor"]
    excluded       client_id -> why it was left out before the rule ran (NaN or Inf, or factors that cancel)
    report         JSON-able: rule, space, n, divisor, seconds by step, what the rule decided and why, truncation by
                   module
    """

    update: Update
    coefficients: dict[str, float]
    excluded: dict[str, str]
    report: dict[str, Any]


class _Clock:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start


def aggregate(
    updates: Iterable[Update],
    rule: Rule,
    space: Space = "delta",
    reference: Update | None = None,
    *,
    weights: Mapping[str, float] | npt.ArrayLike | None = None,
    on_nonfinite: Literal["raise", "exclude"] = "raise",
    backend: str | None = None,
    threads: int | None = None,
) -> Aggregate:
    """Aggregate the updates of one round into one.

    updates        of one base model and one set of modules; a `Cohort`, or updates with distinct client_ids in any
                   order
    rule           from fedcore.rules
    space          "delta": distances, norms and sums are of s · B · A, and the result is truncated to the clients'
                   rank; ranks and scales may differ. "parameters": of the tensors as they are; ranks and scales must
                   agree.
    reference      the global update that the clients moved from: norms and clips are of the change. None is zero.
    weights        client_id -> weight, or one number for each update in the order given; None takes their num_examples.
                   Rules that ignore weights (Krum) ignore these too.
    on_nonfinite   a client that sent NaN or Inf, or in "delta" space factors whose terms cancel, so that fp64 cannot
                   tell their product: "raise" names it; "exclude" leaves it out,
                   says so, and keeps the rule's f
    backend        of passes over rows: 'reference', 'c', 'triton' or None for where they lie. Factors in "delta" space
                   are NumPy's and LAPACK's on every backend. Pairs that a selection forms again have no GPU kernel:
                   under 'triton' they run on the C kernels, or else on NumPy; report["redone_on"] says where.
    threads        of the C kernels. BLAS and LAPACK, which do the work on factors, use NumPy's own threads
                   (OMP_NUM_THREADS and the like), whatever this says.

    In "parameters" space the result has the same bits on every backend, given the coefficients. In "delta" space
    factors come from QR and SVD, equal within fp64 rounding; a client that alone counts is returned bit for bit.

    Stages before the last one of a composed rule are under report["before"], in their order.

    Raises LayoutError, NonFiniteError, RuleError, WeightError, ShapeError, RangeError, BackendError; each names
    the client, tensor or module.
    """
    if space not in ("delta", "parameters"):
        raise RuleError(f"space: got {space!r}, expected 'delta' or 'parameters'")
    if on_nonfinite not in ("raise", "exclude"):
        raise RuleError(f"on_nonfinite: got {on_nonfinite!r}, expected 'raise' or 'exclude'")
    requested(backend)
    thread_count(threads)
    given = updates if isinstance(updates, Sequence) else list(updates)
    cohort, by_id = given if isinstance(given, Cohort) else Cohort(given), _weights_by_id(weights, given)
    excluded: dict[str, str] = {}
    while True:
        try:
            return _aggregate(cohort, rule, space, reference, by_id, excluded, backend, threads)
        except NonFiniteError as error:
            if on_nonfinite == "raise" or not 0 <= error.row < len(cohort):
                raise
            excluded[cohort[error.row].client_id] = str(error)
            if len(cohort) == 1:
                message = f"every client sent NaN or Inf or factors that cancel, the last one: {error}"
                raise NonFiniteError(message) from None
            cohort = Cohort(update for i, update in enumerate(cohort) if i != error.row)


def _weights_by_id(weights: Any, updates: Sequence[Update]) -> dict[str, Any] | None:
    if weights is None:
        return None
    ids = [update.client_id for update in updates]
    if isinstance(weights, Mapping):
        for name in sorted(set(ids) ^ weights.keys()):
            have = "has no weight" if name in ids else "sent no update but has a weight"
            raise ShapeError(f"weights: client {name!r} {have}; give one weight for each client")
        return dict(weights)
    values = weights.tolist() if hasattr(weights, "tolist") else list(weights)
    if not isinstance(values, list) or len(values) != len(ids):
        raise ShapeError(f"weights: got {np.shape(weights)}, expected ({len(ids)},), one for each update")
    return dict(zip(ids, values, strict=True))


def _aggregate(
    cohort: Cohort,
    rule: Rule,
    space: Space,
    reference: Update | None,
    weights: dict[str, Any] | None,
    excluded: dict[str, str],
    backend: str | None,
    threads: int | None,
) -> Aggregate:
    """One attempt, with the clients that are left."""
    clock = _Clock()
    with clock.step("check"):
        _check_rule(rule, cohort, excluded)
        names = [f"client {client!r}" for client in cohort.client_ids]
        share = cohort.num_examples if weights is None else [weights[client] for client in cohort.client_ids]
        checked = check_weights(share, names) if rule.uses_weights else None
        named = [(f"client {update.client_id!r}", update) for update in cohort]
        check_same_base([*named, ("reference", reference)] if reference is not None else named)
        used = reference if rule.uses_reference else None
        passes: dict[str, Any] = {"with_reference": rule.uses_reference, "backend": backend, "threads": threads}
        executor: RowExecutor | DeltaExecutor
        if space == "delta":
            executor = DeltaExecutor.from_cohort(cohort, used, names, **passes)
        else:
            _check_same_parameters(cohort, used, names)
            executor = RowExecutor.from_cohort(cohort, used, names, **passes)
        statistics = Statistics(executor)
    with clock.step("statistics"):
        statistics.gather(rule.needs)
    with clock.step("rule"):
        decided = rule.coefficients(Geometry(statistics), checked)
        values, divisor = decided.rounded()
    with clock.step("combination"):
        if isinstance(executor, DeltaExecutor):
            combined, arrays = executor.weighted_sum(values, divisor)
            rows = executor.dense
        else:
            combined, arrays, rows = None, executor.weighted_sum(values, divisor), executor
        tensors = {} if rows is None else _split(rows, arrays, cohort[0].layout)
        update = _result(cohort, values, tensors, combined)
    law = ROW_LAW if combined is None or not combined.modules else FACTOR_LAW
    report = _report(cohort, rule, space, decided, values, divisor, clock)
    report |= {"law": law, "excluded": dict(excluded)}
    if combined is not None:
        report["modules"] = report_of(combined.modules)
    coefficients = {client: float(value) for client, value in zip(cohort.client_ids, values, strict=False)}
    return Aggregate(update, coefficients, dict(excluded), report)


def _check_rule(rule: Rule, cohort: Cohort, excluded: dict[str, str]) -> None:
    if not isinstance(rule, Rule):
        raise RuleError(f"rule: got {rule!r}, expected an instance of a rule such as fedcore.rules.Krum(f=1)")
    try:
        rule.check(len(cohort))
    except RuleError as error:
        if not excluded:
            raise
        raise RuleError(
            f"{error} (after excluding {', '.join(map(repr, sorted(excluded)))} for what they sent)"
        ) from None


def _check_same_parameters(cohort: Cohort, reference: Update | None, names: Sequence[str]) -> None:
    """Refuse what only delta space can take: ranks that differ, and factors of different scales."""
    first = cohort[0].modules
    updates = list(cohort) if reference is None else [*cohort, reference]
    for who, update in zip([*names, "reference"], updates, strict=False):
        if update.layout == cohort[0].layout and update.scaling == cohort[0].scaling:
            continue
        found = update.modules
        for module in sorted(first.keys() & found.keys()):
            for what in ("rank", "scale"):
                expected, got = getattr(first[module], what), getattr(found[module], what)
                if expected != got:
                    raise LayoutError(
                        f"{who}: module {module!r} has {what} {got:g}, expected {expected:g} like {names[0]}; "
                        f"parameters of another {what} cannot be added up: use space='delta', which takes any {what}"
                    )
    cohort.check_same_layout()


def _split(executor: RowExecutor, arrays: list[np.ndarray], layout: Layout) -> dict[str, np.ndarray]:
    """Views of each part's sum, as named tensors."""
    tensors = {}
    for part, array in zip(executor.parts, arrays, strict=True):
        assert part.data.table is not None
        starts = part.data.table.starts
        for k, name in enumerate(part.tensors):
            tensors[name] = array[starts[k] : starts[k + 1]].reshape(layout.shapes[layout.index[name]])
    return tensors


def _result(cohort: Cohort, values: np.ndarray, tensors: dict[str, np.ndarray], combined: Combined | None) -> Update:
    first, counted = cohort[0], np.flatnonzero(values[: len(cohort)])
    return Update.from_tensors(
        tensors if combined is None else combined.tensors | tensors,
        num_examples=int(cohort.num_examples[counted].sum()) or 1,
        client_id="global",
        scaling=first.scaling if combined is None else combined.scaling,
        base=next((update.base for update in cohort if update.base is not None), None),
        adapter_config=first.adapter_config,
    )


def _report(
    cohort: Cohort,
    rule: Rule,
    space: Space,
    decided: Coefficients,
    values: np.ndarray,
    divisor: float,
    clock: _Clock,
) -> dict[str, Any]:
    ids = cohort.client_ids
    details = decided.details | _by_client(ids, decided.per_client)
    if decided.selected is not None:
        details["selected"] = [ids[row] for row in decided.selected]
    if decided.before:
        details["before"] = [
            {"rule": stage.rule} | stage.details | _by_client(ids, stage.per_client) for stage in decided.before
        ]
    return {
        "rule": repr(rule),
        "space": space,
        "n": len(cohort),
        "divisor": divisor,
        "reference_coefficients": [float(value) for value in values[len(cohort) :]],
        "not_counted": {ids[row]: reason for row, reason in decided.reasons.items()},
        "seconds": clock.seconds,
        **details,
    }


def _by_client(ids: Sequence[str], per_client: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
    return {name: dict(zip(ids, values.tolist(), strict=True)) for name, values in per_client.items()}
