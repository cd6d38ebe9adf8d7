"""Aggregation on arrival for rules that have to see all updates: rows go to disk, and their Gram grows meanwhile."""

from __future__ import annotations

import hashlib
import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fedcore import ops
from fedcore.backends import requested
from fedcore.engine import Aggregate, check_same_parameters, run
from fedcore.errors import LayoutError, RuleError, ShapeError
from fedcore.ops.rows import thread_count
from fedcore.rules.budget import DEFAULT, parse_memory
from fedcore.rules.files import FileExecutor, FilePart, Progress, budget_for
from fedcore.rules.geometry import UNIT, Gram
from fedcore.rules.rows import RowExecutor, row_of
from fedcore.rules.rule import Rule, check_weights, chosen_references
from fedcore.updates import Cohort, Update
from fedcore.updates.atomic import write_atomically
from fedcore.updates.bases import check_same_base
from fedcore.updates.filerows import FileRows
from fedcore.updates.layout import shown

#: rows that wait before the Gram grows by them: at least so many, and a quarter of those that it has
BATCH, SHARE = 16, 4
#: how much farther from the centre than from each other clients may lie before the Gram is made again about another
FAR = 16.0


class Spool:
    """The aggregate of updates that arrive one by one, under any rule in "parameters" space, from files on disk.

    rule        any rule of fedcore.rules
    directory   where updates are kept, one file each; made if it is not there. Updates that an earlier Spool left in it
                have been added: a server that was killed goes on where it was.
    reference, server, center   as for `fedcore.aggregate`
    memory      what adding and the result may take, as for `fedcore.aggregate`
    progress, backend, threads  as for `fedcore.aggregate`

    What `add` returns from is on disk, checked and flushed. A rule that needs a Gram has it made meanwhile: batches of
    new rows, a quarter of those before, are multiplied with them tile by tile, so that n rows are read some five times
    by the time the last one is there, and at the end the last batch is left. The Gram is centred at the first reference
    that is given, or else at the first client that came: that moves its error bound, never a decision, and where the
    centre turns out to be far from the clients the Gram is made again about a better one. A rule that selects selects
    what `fedcore.aggregate` over the same updates does; coefficients of an iteration (GeometricMedian) are equal within
    their bound.

    Raises RuleError, BudgetError, BackendError, and what `add` raises for files that are there already.
    """

    def __init__(
        self,
        rule: Rule,
        directory: str | os.PathLike[str],
        reference: Update | None = None,
        *,
        server: Update | None = None,
        center: Update | None = None,
        memory: int | str = DEFAULT,
        progress: Progress | None = None,
        backend: str | None = None,
        threads: int | None = None,
    ):
        if not isinstance(rule, Rule):
            raise RuleError(f"rule: got {rule!r}, expected an instance of a rule such as fedcore.rules.Krum(f=1)")
        requested(backend)
        parse_memory(memory)
        self.rule, self.directory = rule, Path(directory)
        self._references = chosen_references(rule, reference=reference, server=server, center=center)
        self._passes: dict[str, Any] = {"backend": backend, "threads": thread_count(threads)}
        self._files: dict[str, Any] = {"memory": memory, "progress": progress}
        #: client_id -> its update on disk, in the order of arrival, and its weight
        self._updates: dict[str, Update] = {}
        self._weights: dict[str, float] = {}
        self._grown = _GrowingGram(self._references, self._passes | self._files) if "gram" in rule.needs else None
        for path in sorted(self.directory.glob("*.safetensors")):
            update = Update.open(path)
            self._check(update)
            self._take(update)

    @property
    def client_ids(self) -> tuple[str, ...]:
        """The clients that have been added, in canonical order."""
        return tuple(sorted(self._updates))

    def add(self, update: Update) -> None:
        """Take one client's update and write it to disk; what it holds may be changed or freed afterwards.

        It is weighed by its num_examples, where the rule weighs clients. Raises LayoutError (a client that was added
        before; names, shapes, dtypes, ranks, scales or a base that differ), WeightError and NonFiniteError, naming the
        client and the tensor, and StorageError; after an error the update has not been added.
        """
        self._check(update)
        who = f"client {shown(update.client_id)}"
        # NaN is refused now, by a pass for norms, while the client is still there to be asked again
        alone, zero = Cohort([update]), {"zero": None}
        if update.mapped:
            RowExecutor.from_cohort(alone, zero, [who], **self._passes).squared_norms()
        else:
            options = self._passes | self._files
            FileExecutor.from_files(alone, zero, [who], gram=False, **options).squared_norms()
        name = hashlib.sha256(update.client_id.encode()).hexdigest()[:32]
        path = self.directory / f"{name}.safetensors"
        write_atomically(path, update.to_bytes())
        self._take(Update.open(path))

    def _check(self, update: Update) -> None:
        before = self._updates.get(getattr(update, "client_id", ""))
        Cohort([update] if before is None else [before, update])  # refuses the second of a client, and no update
        who = f"client {shown(update.client_id)}"
        check_weights([update.num_examples], [who])
        known = [(f"client {shown(name)}", other) for name, other in self._updates.items()]
        given = [(name, other) for name, other in self._references.items() if other is not None]
        check_same_base([*given, *known, (who, update)])
        if like := next(iter([*given, *known]), None):
            name, first = like
            check_same_parameters(Cohort([first]), [(who, update)], [name])
            if difference := first.layout.difference(update.layout):
                raise LayoutError(f"{who}: {difference} like {name}; send the same adapter")

    def _take(self, update: Update) -> None:
        self._updates[update.client_id] = update
        if self._grown is not None and self._grown.waiting(len(self._updates)) >= self._grown.batch:
            self._grown.grow(list(self._updates.values()))

    def result(self) -> Aggregate:
        """The aggregate of the updates so far, as `fedcore.aggregate` returns it; adding may go on.

        Raises ShapeError where none was added, and what `fedcore.aggregate` raises, a file that was changed or removed
        since it was added included.
        """
        if not self._updates:
            raise ShapeError("spool: got no update, expected at least one; add what clients send")
        cohort = Cohort(self._updates.values())
        self.rule.check(len(cohort))
        known = None
        if self._grown is not None:
            self._grown.grow(list(self._updates.values()))
            known = self._grown.gram([list(self._updates).index(client) for client in cohort.client_ids])
        return run(cohort, self.rule, "parameters", self._references, None, {}, self._passes | self._files, known)


class _GrowingGram:
    """The Gram of the references and of the clients in the order of their arrival, part by part, as rows arrive."""

    def __init__(self, references: dict[str, Update | None], passes: dict[str, Any]):
        self.references, self.passes = references, passes
        self.clients = 0
        given = [k for k, update in enumerate(references.values()) if update is not None]
        #: the row it is centred at: the first reference that is given, or else the first client
        self.center = given[0] if given else len(references)
        self.matrices: list[np.ndarray] = []
        self.square, self.columns = 0.0, 0

    @property
    def batch(self) -> int:
        """Rows that wait before it grows."""
        return max(BATCH, self.clients // SHARE)

    def waiting(self, clients: int) -> int:
        """How many of so many clients it does not have yet."""
        return clients - self.clients

    def grow(self, updates: list[Update]) -> None:
        """Bring in the clients that it lacks. Raises NonFiniteError, BudgetError, and what reading files raises."""
        if not self.waiting(len(updates)):
            return
        before, rows = (len(self.references) + count for count in (self.clients, len(updates)))
        first = before if self.clients else 0
        executor = self._executor(updates)
        read, grown, square = range(rows), [], 0.0
        for k, part in enumerate(executor.parts):
            total = np.zeros((rows, rows))
            if first:
                total[:first, :first] = self.matrices[k]
            norm = np.zeros(1)
            with executor.tiles(part, read, "gram") as tiles:
                for tile in tiles:
                    center = row_of(tile.rows, self.center)
                    gram = partial(ops.gram, first=first) if first else ops.gram
                    total = executor.statistic(part, tile, read, gram, tile.rows, center, total)
                    if not first:
                        norm = executor.statistic(part, tile, read, ops.squared_norms, center, None, norm)
            grown.append(total)
            square += float(norm[0])
        self.matrices, self.clients = grown, len(updates)
        self.square = self.square if first else square
        self.columns = sum(part.d for part in executor.parts)

    def _executor(self, updates: list[Update]) -> FileExecutor:
        """One over the references and then the clients, all of them plain rows."""
        layout = updates[0].layout
        who = [*(f"the {name}" for name in self.references), *(f"client {shown(u.client_id)}" for u in updates)]
        parts = FileRows.of_updates([*self.references.values(), *updates], layout, who)
        options = dict(self.passes)
        budget = budget_for(layout, len(who), options.pop("memory"), True, options["threads"])
        budget.check(f"the Gram of {len(who)} rows")
        progress = options.pop("progress")
        return FileExecutor([FilePart(rows, names) for names, rows in parts], who, {}, budget, progress, **options)

    def gram(self, order: list[int]) -> Gram | None:
        """What rules see, clients in this order and then references; None where the centre lies far from the clients.

        Errors grow with the distance from the centre, and doubtful pairs are read again: one pass about a better centre
        is cheaper than that, and a client that comes first must not be able to ask for it of every pair.
        """
        rows = [*(len(self.references) + k for k in order), *range(len(self.references))]
        matrix = np.add.reduce(self.matrices)[np.ix_(rows, rows)]
        n, square = len(order), matrix.diagonal()
        if n > 2:
            apart = square[:n, None] + square[None, :n] - 2 * matrix[:n, :n]
            if np.median(square[:n]) > FAR * np.median(apart, axis=1).min():
                return None
        rounding = (self.columns + 4) * UNIT
        return Gram(
            matrix, ops.gram_epsilon(self.passes.get("backend")) * square, float(np.sqrt(self.square)), rounding
        )
