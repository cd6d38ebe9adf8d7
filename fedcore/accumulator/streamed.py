"""Updates of which nothing is kept but exact sums: for rules that weigh each client on its own."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np

from fedcore import ops
from fedcore.engine.combination import EXACT_LAW, Clock, Combination, make_report, make_update, split_tensors
from fedcore.engine.run import Aggregate
from fedcore.errors import FedcoreError, StorageError
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
        self.decisions: dict[str, Coefficients] = {}
        self.sums: list[ops.ExactSum] = []
        self.parts: list[tuple[str, ...]] = []
        self._last: Update | None = None
        #: why the sums can no longer be told, once they cannot
        self._lost: str | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the sums."""
        return sum(total.nbytes for total in self.sums)

    def close(self) -> None:
        """There is nothing that others wait for."""

    def add(self, who: str, update: Update, weight: float) -> Update:
        """Add an update; returns it without its data. Raises as `Accumulator.add` does."""
        self._check()
        executor = self._executor(update, self.references, who)
        decided = self.rule.decide(Geometry(Statistics(executor)), np.array([weight]))
        assert isinstance(decided, Coefficients)
        if not self.sums:
            self.parts = executor.tensors
            self.sums = [ops.ExactSum(part.d, **self.passes) for part in executor.parts]
        self._add(executor, float(round_coefficients(decided.values[:1])[0]))
        self.decisions[update.client_id] = decided
        self._last = self._without_data(update)
        return self._last

    def result(self, cohort: Cohort) -> Aggregate:
        """The decision over the cohort and the tensors that follow from it."""
        self._check()
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
        layout, added = cohort[0].layout, []
        try:
            for executor, coefficient in moved:
                self._add(executor, coefficient)
                added.append((executor, coefficient))
            dtypes = [layout.dtypes[layout.index[names[0]]] for names in self.parts]
            arrays = [total.result(divisor, dtype) for total, dtype in zip(self.sums, dtypes, strict=True)]
        finally:  # sums are exact: what was added is taken away without a trace
            for executor, coefficient in added:
                self._take_back(executor, coefficient)
        return split_tensors(self.parts, arrays, layout)

    def _executor(self, update: Update, references: dict[str, Update | None], who: str) -> RowExecutor:
        """Passes over one update and the references: in place, or in tiles where any of them lies in a file."""
        alone = Cohort([update])
        if all(one is None or one.mapped for one in (update, *references.values())):
            return RowExecutor.from_cohort(alone, references, [who], **self.passes)
        return FileExecutor.from_files(alone, references, [who], matrices=0, **self.files, **self.passes)

    def _add(self, executor: RowExecutor, coefficient: float) -> None:
        """Add coefficient · row 0 to the sums of each part: to all of them, or after an error to none.

        Sums that hold no client yet are dropped: the next client may have other tensors.
        """
        done = 0
        try:
            for _ in self._tiles(executor, coefficient):
                done += 1
        except BaseException:
            if self.decisions:
                self._take_back(executor, coefficient, done)
            else:
                self.sums, self.parts = [], []
            raise

    def _tiles(self, executor: RowExecutor, coefficient: float) -> Generator[None, None, None]:
        """One step for each tile that has been added."""
        for part, total in zip(executor.parts, self.sums, strict=True):
            with executor.tiles(part, [0], "sum") as tiles:
                for tile in tiles:
                    with executor.naming(part, [0], tile.start):
                        total.add(tile.rows, coefficient, tile.start)
                    yield

    def _take_back(self, executor: RowExecutor, coefficient: float, tiles: int | None = None) -> None:
        """Take a row, or its first tiles, out of the sums again."""
        try:
            with closing(self._tiles(executor, -coefficient)) as again:
                for _ in islice(again, tiles):
                    pass
        except FedcoreError as error:
            self._lost = str(error)
            self._check()

    def _check(self) -> None:
        """Raise StorageError where a file that changed meanwhile is in the sums in part, and not to be read again."""
        if self._lost is not None:
            raise StorageError(
                f"{self._lost}; some of it has been added and cannot be taken away: start a new Accumulator"
            )

    def _without_data(self, update: Update) -> Update:
        """What the report and later checks need of an update."""
        empty = np.empty(0, np.uint8)
        if self._last is None:
            return replace(update, buffer=empty, file=None)
        # what is equal is shared with the record before: one is small, however many tensors there are
        last = self._last
        config = last.adapter_config if update.adapter_config == last.adapter_config else update.adapter_config
        own = {name: getattr(update, name) for name in ("client_id", "num_examples", "base", "counted")}
        return replace(last, buffer=empty, adapter_config=config, **own)


def side_by_side(decisions: list[Coefficients]) -> Coefficients:
    """The decision over a cohort from those over its clients, in row order; `Rule.streams` says what adds up."""
    each = np.array([decided.values for decided in decisions])
    shared = np.cumsum(each[:, 1:], axis=0)[-1]
    details = {name: sum(d.details[name] for d in decisions) for name in decisions[0].details}
    per_client = {name: np.concatenate([d.per_client[name] for d in decisions]) for name in decisions[0].per_client}
    reasons = {row: d.reasons[0] for row, d in enumerate(decisions) if d.reasons}
    return Coefficients(np.concatenate((each[:, 0], shared)), reasons, details, per_client)
