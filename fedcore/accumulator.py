"""Aggregation on arrival: updates one at a time, in any order, without keeping them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from fedcore import ops
from fedcore.backends import requested
from fedcore.engine import (
    EXACT_LAW,
    Aggregate,
    Clock,
    Combination,
    check_rule,
    check_same_parameters,
    make_report,
    make_update,
    split_tensors,
)
from fedcore.errors import LayoutError, RuleError
from fedcore.ops.rows import thread_count
from fedcore.rules.geometry import Geometry, Statistics, round_coefficients
from fedcore.rules.rows import RowExecutor
from fedcore.rules.rule import Coefficients, Rule, check_weights, chosen_references
from fedcore.updates import Cohort, Layout, Update
from fedcore.updates.bases import BaseIdentity, check_same_base
from fedcore.updates.layout import shown


class Accumulator:
    """The aggregate of updates that arrive one by one, in "parameters" space: the same bits in every arrival order.

    rule        one that weighs each client on its own: Mean() or NormClipping(max_norm)
    reference   the global update that the clients moved from, for a rule that uses it; None is zero
    backend     'reference', 'c' or None
    threads     of the C kernels; None for all cores

    An update is checked, measured, added to an exact sum (fedcore/expansion.py) and forgotten. Memory: the sums,
    typically 8 to 16 bytes a parameter, the reference, and a few numbers for each client. Coefficients, who counts and
    the report are those of `aggregate` over the same updates; values are the exact sum of the weighted updates rounded
    to fp64 once, divided, and rounded once, where `aggregate` rounds each addition in fp64.

    Raises RuleError for a rule that has to see all updates before it can weigh one, and BackendError.
    """

    def __init__(
        self,
        rule: Rule,
        reference: Update | None = None,
        *,
        backend: str | None = None,
        threads: int | None = None,
    ):
        if not isinstance(rule, Rule):
            raise RuleError(f"rule: got {rule!r}, expected an instance of a rule such as fedcore.rules.Mean()")
        if not rule.streams:
            raise RuleError(
                f"{rule!r}: it has to see all updates before it can weigh one, expected a rule that streams, Mean() or "
                "NormClipping(max_norm); use fedcore.Spool, which keeps updates on disk, or fedcore.aggregate"
            )
        requested(backend)
        passes = {"backend": backend, "threads": thread_count(threads)}
        self.rule = rule
        self._references = chosen_references(rule, reference=reference, server=None, center=None)
        self._sums = _StreamedSums(rule, self._references, passes)
        #: client_id -> its update without the data
        self._records: dict[str, Update] = {}
        self._last: Update | None = None
        #: what every update has to agree with: a reference, else the first client
        self._like = next(((name, update) for name, update in self._references.items() if update is not None), None)
        self._bases: dict[BaseIdentity, tuple[str, Update]] = {}
        if self._like is not None:
            self._bases[BaseIdentity.of(self._like[1])] = self._like
        self._clock = Clock()

    @property
    def client_ids(self) -> tuple[str, ...]:
        """The clients that have been added, in canonical order."""
        return tuple(sorted(self._records))

    @property
    def nbytes(self) -> int:
        """Bytes that the sums take."""
        return self._sums.nbytes

    def add(self, update: Update, weight: float | None = None) -> None:
        """Take one client's update; what it holds may be changed or freed afterwards.

        weight   None takes its num_examples

        Raises LayoutError (a client that was added before; names, shapes, dtypes, ranks, scales or a base that differ),
        WeightError and NonFiniteError, naming the client and the tensor; after an error nothing of it has been added.
        """
        with self._clock.step("check"):
            before = self._records.get(getattr(update, "client_id", ""))
            Cohort([update] if before is None else [before, update])  # refuses the second of a client, and no update
            who = f"client {shown(update.client_id)}"
            share = check_weights([update.num_examples if weight is None else weight], [who])
            record = self._checked(who, update)
        with self._clock.step("add"):
            self._sums.add(who, update, share)
        self._like = self._like or (who, record)
        self._bases.setdefault(BaseIdentity.of(record), (who, record))
        self._records[update.client_id] = self._last = record

    def _checked(self, who: str, update: Update) -> Update:
        """The update without its data. Raises LayoutError where it does not fit to those before it."""
        check_same_base([*self._bases.values(), (who, update)])
        if self._like is None:
            return replace(update, buffer=np.empty(0, np.uint8))
        name, like = self._like
        check_same_parameters(Cohort([like]), [(who, update)], [name])
        if difference := like.layout.difference(update.layout):
            raise LayoutError(f"{who}: {difference} like {name}; send the same adapter")
        # what is equal is shared with the record before: one is small, however many tensors there are
        last = like if self._last is None else self._last
        config = last.adapter_config if update.adapter_config == last.adapter_config else update.adapter_config
        own = {name: getattr(update, name) for name in ("client_id", "num_examples", "base", "counted")}
        return replace(last, buffer=np.empty(0, np.uint8), adapter_config=config, **own)

    def result(self) -> Aggregate:
        """The aggregate of the updates so far, as `fedcore.aggregate` returns it; adding may go on.

        The bits depend on which updates were added and on nothing else. Raises ShapeError where none was added,
        RuleError and RangeError.
        """
        cohort = Cohort(self._records.values())
        check_rule(self.rule, cohort, {})
        clock = Clock()
        clock.seconds |= self._clock.seconds
        with clock.step("combination"):
            decided, found = self._sums.combined(cohort)
            update = make_update(cohort, found)
        report = make_report(cohort, self.rule, "parameters", decided, found, clock) | {"excluded": {}}
        coefficients = dict(zip(cohort.client_ids, found.coefficients[: len(cohort)].tolist(), strict=True))
        return Aggregate(update, coefficients, {}, report)


class _StreamedSums:
    """Exact sums of weighted updates, one for each dtype, and what the rule decided on each client."""

    def __init__(self, rule: Rule, references: dict[str, Update | None], passes: dict[str, Any]):
        self.rule, self.references, self.passes = rule, references, passes
        self.decisions: dict[str, Coefficients] = {}
        self.sums: list[ops.ExactSum] = []
        self.parts: list[tuple[str, ...]] = []

    @property
    def nbytes(self) -> int:
        """Bytes of the sums."""
        return sum(total.nbytes for total in self.sums)

    def add(self, who: str, update: Update, weights: np.ndarray | None) -> None:
        executor = RowExecutor.from_cohort(Cohort([update]), self.references, [who], **self.passes)
        decided = self.rule.decide(Geometry(Statistics(executor)), weights)
        assert isinstance(decided, Coefficients)
        if not self.sums:
            self.parts = executor.tensors
            self.sums = [ops.ExactSum(part.data.d, **self.passes) for part in executor.parts]
        executor.add_exactly(self.sums, 0, float(round_coefficients(decided.values[:1])[0]))
        self.decisions[update.client_id] = decided

    def combined(self, cohort: Cohort) -> tuple[Coefficients, Combination]:
        """The decision over the cohort and the tensors that follow from it."""
        decided = side_by_side([self.decisions[client] for client in cohort.client_ids])
        values, divisor = decided.rounded()
        layout: Layout = cohort[0].layout
        moved = self._references_with(values[len(cohort) :])
        added = []
        try:
            for executor, coefficient in moved:
                executor.add_exactly(self.sums, 0, coefficient)
                added.append((executor, coefficient))
            dtypes = [layout.dtypes[layout.index[names[0]]] for names in self.parts]
            arrays = [total.result(divisor, dtype) for total, dtype in zip(self.sums, dtypes, strict=True)]
        finally:  # sums are exact: what was added is taken away without a trace
            for executor, coefficient in added:
                executor.add_exactly(self.sums, 0, -coefficient)
        tensors = split_tensors(self.parts, arrays, layout)
        return decided, Combination(tensors, np.flatnonzero(values[: len(cohort)]), EXACT_LAW, None, values, divisor)

    def _references_with(self, coefficients: np.ndarray) -> list[tuple[RowExecutor, float]]:
        """The references that are not zero, each with its coefficient."""
        return [
            (RowExecutor.from_cohort(Cohort([update]), {}, [f"the {name}"], **self.passes), float(coefficient))
            for (name, update), coefficient in zip(self.references.items(), coefficients, strict=True)
            if update is not None
        ]


def side_by_side(decisions: list[Coefficients]) -> Coefficients:
    """The decision over a cohort from those over its clients, in row order; `Rule.streams` says what adds up."""
    each = np.array([decided.values for decided in decisions])
    shared = np.cumsum(each[:, 1:], axis=0)[-1]
    details = {name: sum(d.details[name] for d in decisions) for name in decisions[0].details}
    per_client = {name: np.concatenate([d.per_client[name] for d in decisions]) for name in decisions[0].per_client}
    reasons = {row: d.reasons[0] for row, d in enumerate(decisions) if d.reasons}
    return Coefficients(np.concatenate((each[:, 0], shared)), reasons, details, per_client)
