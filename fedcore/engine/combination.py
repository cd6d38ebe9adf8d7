"""What a decision makes of a cohort: the combination, the update, the report."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from fedcore.lora.executor import DeltaExecutor
from fedcore.lora.result import Combined, report_of
from fedcore.rules.order_statistic import OrderStatistic
from fedcore.rules.rows import RowExecutor
from fedcore.rules.rule import Decision, Rule
from fedcore.updates import Cohort, Layout, Update
from fedcore.updates.making import config_like
from fedcore.updates.weights import pooled_examples

Space = Literal["delta", "parameters"]

ROW_LAW = "row-order fp64 sum, rounded once"
EXACT_LAW = "exact sum, rounded once"
ORDER_LAW = "order statistic of integer keys, rounded once"
DELTA_ORDER_LAW = "order statistic of fp32 products, truncated to its leading singular triplets"
FULL_LAW = "stacked factors, rounded once"
FACTOR_LAW = "stacked factors, truncated to their leading singular triplets"


class Clock:
    """Seconds by step; a step that is made again adds up."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


@dataclass(frozen=True)
class Combination:
    """tensors of rows and factors; clients that count; coefficients and divisor as used (none for an order rule)."""

    tensors: dict[str, np.ndarray]
    counted: np.ndarray
    law: str
    factors: Combined | None = None
    coefficients: np.ndarray = field(default_factory=lambda: np.empty(0, np.float32))
    divisor: float | None = None


def combine(executor: RowExecutor | DeltaExecutor, decided: Decision, layout: Layout, dense: bool) -> Combination:
    """The pass that makes the result."""
    if isinstance(decided, OrderStatistic) and isinstance(executor, DeltaExecutor):
        combined, arrays = executor.order_statistic(decided, dense)
        tensors = {} if executor.dense is None else split_tensors(executor.dense.tensors, arrays, layout)
        law = DELTA_ORDER_LAW if combined.scaling else ORDER_LAW
        counted = decided.counted(executor.clients)
        return Combination(combined.tensors | tensors, counted, law, combined if combined.modules else None)
    if isinstance(decided, OrderStatistic):
        assert isinstance(executor, RowExecutor)
        tensors = split_tensors(executor.tensors, executor.order_statistic(decided), layout)
        return Combination(tensors, decided.counted(executor.clients), ORDER_LAW)
    values, divisor = decided.rounded(executor.names)
    counted = np.flatnonzero(values[: executor.clients])
    if isinstance(executor, RowExecutor):
        tensors = split_tensors(executor.tensors, executor.weighted_sum(values, divisor), layout)
        return Combination(tensors, counted, ROW_LAW, None, values, divisor)
    combined, arrays = executor.weighted_sum(values, divisor)
    tensors = {} if executor.dense is None else split_tensors(executor.dense.tensors, arrays, layout)
    law = FACTOR_LAW if combined.modules else ROW_LAW
    if executor.factors is not None and executor.factors.rank == "full":
        law = FULL_LAW
    return Combination(combined.tensors | tensors, counted, law, combined, values, divisor)


def split_tensors(
    parts: Iterable[tuple[str, ...]], arrays: Iterable[np.ndarray], layout: Layout
) -> dict[str, np.ndarray]:
    """Views of each part's sum, as named tensors; `parts` are the names of each part, one tensor after the other."""
    tensors = {}
    for names, array in zip(parts, arrays, strict=True):
        start = 0
        for k in (layout.index[name] for name in names):
            tensors[layout.names[k]] = array[start : (start := start + int(layout.sizes[k]))].reshape(layout.shapes[k])
    return tensors


def make_update(cohort: Cohort, found: Combination) -> Update:
    """The result as an update, with the examples of the clients that count (of none: 1)."""
    first, factors = cohort[0], found.factors
    examples, counted = pooled_examples([cohort[row] for row in found.counted])
    modules = first.modules.keys() if factors is None else factors.scaling.keys()
    # a client that does not count has no say in how the result is read
    settings = [cohort[row] for row in found.counted] or cohort
    update = Update.from_tensors(
        found.tensors,
        num_examples=examples,
        client_id="global",
        scaling=first.scaling if factors is None else factors.scaling,
        base=next((update.base for update in cohort if update.base is not None), None),
        adapter_config=None if factors is not None and not modules else config_like(settings, modules),
    )
    return replace(update, counted=counted)


def make_report(
    cohort: Cohort, rule: Rule, space: Space, decided: Decision, found: Combination, clock: Clock
) -> dict[str, Any]:
    """`Aggregate.report`: the rule, its law and coefficients, who counted and why others did not, in plain Python.

    Clients are named by their ids; what the rule tells of itself stands beside, `before` for each pre-aggregation.
    """
    ids = cohort.client_ids
    details = decided.details | _by_client(ids, decided.per_client)
    if decided.selected is not None:
        details["selected"] = [ids[row] for row in decided.selected]
    if decided.before:
        details["before"] = [
            {"rule": stage.rule} | stage.details | _by_client(ids, stage.per_client) for stage in decided.before
        ]
    if isinstance(decided, OrderStatistic):
        details["statistic"] = decided.statistic
        if (mixed := decided.rounded()) is not None:
            details["mix"], details["mix_divisors"] = mixed[0].tolist(), mixed[1].tolist()
    if found.factors is not None:
        details["modules"] = report_of(found.factors.modules)
        if lacking := cohort.lacking:
            details["lacking"] = lacking
    unused = decided.unused(len(ids))
    rest = found.coefficients[len(ids) :].tolist()  # none of an order statistic
    return {
        "rule": repr(rule),
        "space": space,
        "n": len(cohort),
        "law": found.law,
        "divisor": found.divisor,
        "reference_coefficients": dict(zip(rule.uses if rest else (), rest, strict=True)),
        "counted": [ids[row] for row in found.counted],
        "not_counted": {ids[row]: reason for row, reason in sorted((unused | decided.reasons).items())},
        "seconds": clock.seconds,
        **details,
    }


def _by_client(ids: Sequence[str], per_client: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
    return {name: dict(zip(ids, values.tolist(), strict=True)) for name, values in per_client.items()}
