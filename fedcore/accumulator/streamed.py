"""Updates of which nothing is kept but exact sums: for rules that weigh each client on its own."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from fedcore import ops
from fedcore.accumulator.addition import Addition
from fedcore.accumulator.record import Record
from fedcore.engine.combination import EXACT_LAW, Clock, Combination, make_report, make_update, split_tensors
from fedcore.engine.run import Aggregate
from fedcore.errors import FedcoreError, StorageError
from fedcore.numbers import shown
from fedcore.rules.coefficients import round_coefficients
from fedcore.rules.files import FileExecutor
from fedcore.rules.geometry import Geometry
from fedcore.rules.rows import RowExecutor
from fedcore.rules.rule import Coefficients, Rule
from fedcore.rules.statistics import Statistics
from fedcore.updates import Cohort, Update


class StreamedSums:
    """Exact sums of weighted updates, one for each dtype, and what the rule decided on each client."""

    def __init__(self, rule: Rule, references: dict[str, Update | None], passes: dict[str, Any], files: dict[str, Any]):
        self.rule, self.references, self.passes, self.files = rule, references, passes, files
        #: client_id -> its update without its data, in the order of arrival; who is in it is in the sums
        self.updates: dict[str, Update] = {}
        self.decisions: dict[str, Coefficients] = {}
        self.sums: list[ops.ExactSum] = []
        self.parts: list[tuple[str, ...]] = []
        #: what may be in the sums and does not belong there, the last of them first to be taken out
        self._unsettled: list[Addition] = []
        self._last: Record | None = None
        #: why the sums can no longer be told, once they cannot
        self._lost: str | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the sums."""
        return sum(total.nbytes for total in self.sums)

    def close(self) -> None:
        """There is nothing that others wait for."""

    def add(self, who: str, update: Update, weight: float) -> None:
        """Add an update, and keep it without its data. Raises as `Accumulator.add` does."""
        self._begin()
        executor = self._executor(update, self.references, who)
        decided = self.rule.decide(Geometry(Statistics(executor)), np.array([weight]))
        assert isinstance(decided, Coefficients)
        if not self.sums:
            self.parts = executor.tensors
            self.sums = [ops.ExactSum(part.d, **self.passes) for part in executor.parts]
        coefficient, client = float(round_coefficients(decided.values[:1])[0]), update.client_id
        try:
            self._unsettled = [Addition(executor, coefficient, self.sums, client)]
            self._unsettled[0].go_on()
            self.decisions[client] = decided
            self._last = Record.of(update, self._last)
            self.updates[client] = self._last  # from here on it is taken, whatever interrupts what follows
        finally:  # what holds its data may be changed or freed afterwards
            self._settle()

    def copied(self) -> StreamedSums:
        """The same, with sums of its own."""
        self._begin()
        twin = copy.copy(self)
        twin.updates, twin.decisions = dict(self.updates), dict(self.decisions)
        twin.sums = [copy.copy(total) for total in self.sums]
        return twin

    def result(self, cohort: Cohort) -> Aggregate:
        """The decision over the cohort and the tensors that follow from it."""
        self._begin()
        clock = Clock()
        with clock.step("combination"):
            decided = side_by_side([self.decisions[client] for client in cohort.client_ids])
            values, divisor = decided.rounded([f"client {client!r}" for client in cohort.client_ids])
            tensors = self._combined(values[len(cohort) :], divisor, cohort)
            counted = np.flatnonzero(values[: len(cohort)])
            found = Combination(tensors, counted, EXACT_LAW, None, values, divisor)
            update = make_update(cohort, found)
        report = make_report(cohort, self.rule, "parameters", decided, found, clock) | {"excluded": {}}
        coefficients = dict(zip(cohort.client_ids, values[: len(cohort)].tolist(), strict=True))
        return Aggregate(update, coefficients, {}, report)

    def _combined(self, shares: np.ndarray, divisor: float, cohort: Cohort) -> dict[str, np.ndarray]:
        """The tensors of the sums and of the references with their coefficients."""
        moved = [
            (self._executor(update, {}, f"the {name}"), float(coefficient))
            for (name, update), coefficient in zip(self.references.items(), shares, strict=True)
            if update is not None
        ]
        layout = cohort[0].layout
        try:
            for executor, coefficient in moved:
                self._unsettled = [*self._unsettled, Addition(executor, coefficient, self.sums)]
                self._unsettled[-1].go_on()
            dtypes = [layout.dtypes[layout.index[names[0]]] for names in self.parts]
            arrays = [total.result(divisor, dtype) for total, dtype in zip(self.sums, dtypes, strict=True)]
        finally:
            self._settle()
        return split_tensors(self.parts, arrays, layout)

    def _executor(self, update: Update, references: dict[str, Update | None], who: str) -> RowExecutor:
        """Passes over one update and the references: in place, or in tiles where any of them lies in a file."""
        alone = Cohort([update])
        if all(one is None or one.mapped for one in (update, *references.values())):
            return RowExecutor.from_cohort(alone, references, [who], **self.passes)
        return FileExecutor.from_files(alone, references, [who], matrices=0, **self.files, **self.passes)

    def _begin(self) -> None:
        """Finish what an interruption kept from being settled. Raises StorageError where that cannot be done."""
        for left in self._unsettled:
            # a reference is still as it was, and the sums of a first client are dropped; others' data may have changed
            if self.updates and left.client is not None and left.client not in self.updates and left.remains:
                self._lost = f"client {shown(left.client)}: it was interrupted while it was taken back"
        self._settle()

    def _settle(self) -> None:
        """Take out of the sums what does not belong there: they are exact, so that it leaves no trace."""
        self._check()
        if not self.updates:  # the next client may have other tensors
            self.sums, self.parts, self._unsettled = [], [], []
        while self._unsettled:
            last = self._unsettled[-1]
            if last.client not in self.updates:
                if last.tiles is None:
                    last = last.back()
                    self._unsettled = [*self._unsettled[:-1], last]
                try:
                    last.go_on()
                except FedcoreError as error:
                    self._lost = str(error)
                    self._check()
            self._unsettled = self._unsettled[:-1]

    def _check(self) -> None:
        """Raise StorageError where something is in the sums in part, and cannot be taken out."""
        if self._lost is not None:
            raise StorageError(
                f"{self._lost}; some of it has been added and cannot be taken away: start a new Accumulator"
            )


def side_by_side(decisions: list[Coefficients]) -> Coefficients:
    """The decision over a cohort from those over its clients, in row order; `Rule.streams` says what adds up."""
    each = np.array([decided.values for decided in decisions])
    shared = np.cumsum(each[:, 1:], axis=0)[-1]
    details = {name: sum(d.details[name] for d in decisions) for name in decisions[0].details}
    per_client = {name: np.concatenate([d.per_client[name] for d in decisions]) for name in decisions[0].per_client}
    reasons = {row: d.reasons[0] for row, d in enumerate(decisions) if d.reasons}
    return Coefficients(np.concatenate((each[:, 0], shared)), reasons, details, per_client)
