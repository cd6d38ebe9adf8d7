"""The executor over rows that lie in files: the passes of `RowExecutor`, in tiles under a memory budget."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from fedcore.dtypes import to_float64
from fedcore.numbers import shown_bytes
from fedcore.ops.rows import thread_count
from fedcore.rules.budget import DEFAULT, MATRICES, Budget
from fedcore.rules.parts import check_like
from fedcore.rules.pivot import Blocks
from fedcore.rules.rows import RowExecutor
from fedcore.rules.statistics import Gram
from fedcore.rules.tiles import Tile, TileReader, open_files_allowed
from fedcore.updates import Cohort, Layout, Update
from fedcore.updates.filepieces import file_rows, widest
from fedcore.updates.filerows import Descriptors, FileRows

#: called as progress(work, done, total): tiles of one pass, from the thread that aggregates
Progress = Callable[[str, int, int], object]


class FileExecutor(RowExecutor):
    """Passes over rows in files and in memory, tile by tile, with the bits of one pass over rows in memory.

    A tile is read while the one before is worked on. Raises FormatError, MissingError or StorageError naming the client
    and the file where one was changed, cut short, replaced or removed since its header was read.
    """

    parts: list[FileRows]  # type: ignore[assignment]

    def __init__(
        self,
        parts: Sequence[FileRows],
        names: Sequence[str],
        references: Mapping[str, Any],
        budget: Budget,
        progress: Progress | None,
        known: Gram | None = None,
        **passes: Any,
    ):
        super().__init__([], names, references, **passes)
        self.parts, self.budget, self.progress, self.known = list(parts), budget, progress, known
        self.mixed_bytes = budget.mixed or None

    @classmethod
    def from_files(
        cls,
        cohort: Cohort,
        references: Mapping[str, Update | None],
        names: Sequence[str],
        tensors: Sequence[str] | None = None,
        *,
        memory: Any = None,
        matrices: int = MATRICES,
        mixtures: int = 0,
        known: Gram | None = None,
        progress: Progress | None = None,
        backend: str | None,
        threads: int | None,
    ) -> FileExecutor:
        """The tensors of a cohort, all or those named, and reference updates by name; None is zero.

        memory   the budget (see `parse_memory`); None is DEFAULT, or the least that works where that is more
        matrices how many matrices (n, n) a decision over a Gram holds (see `Rule.matrices`); 0 without a Gram
        mixtures how many mixtures of rows an order statistic is taken of (see `Rule.mixtures`)
        known    the Gram, where somebody has made it already

        Raises LayoutError naming the client, or the reference, and the tensor that differs, and BudgetError with the
        least that works.
        """
        layout = cohort.layout_of(tensors)
        for name, reference in references.items():
            if reference is not None:
                check_like(name, reference, layout, names[0], tensors)
        who = (*names, *(f"the {name}" for name in references))
        rows = [*cohort, *references.values()]
        budget = budget_for(layout, rows, memory, matrices, threads, mixtures)
        if memory is None:
            budget.total = max(budget.total, budget.least)
        budget.check(f"{len(cohort)} clients of {shown_bytes(int(layout.nbytes.sum()))}")
        return cls(
            file_rows(rows, layout, who), names, references, budget, progress, known, backend=backend, threads=threads
        )

    def gram(self, origin: int | None = None) -> Gram:
        """The Gram of all rows: the one that is known, or a pass as in memory."""
        return super().gram(origin) if self.known is None else self.known

    @contextmanager
    def tiles(self, part: Any, rows: Sequence[int], work: str) -> Iterator[Iterable[Tile]]:
        """Some rows of a part in tiles as wide as the budget allows, read ahead."""
        width = self.budget.width(len(rows), part.itemsize, part.d)
        if len(self.parts) > 1:
            work = f"{work}, {part.dtype}"
        with TileReader(part, rows, width, thread_count(self.threads)) as reader:
            yield reader if self.progress is None else self._told(reader, work, self.progress)

    @staticmethod
    def _told(reader: TileReader, work: str, progress: Progress) -> Iterator[Tile]:
        progress(work, 0, reader.count)
        for done, tile in enumerate(reader, 1):
            yield tile
            progress(work, done, reader.count)

    @contextmanager
    def sample(self, part: Any) -> Iterator[Callable[[Blocks], np.ndarray]]:
        """Columns by small reads of their own."""
        with Descriptors(part, open_files_allowed()) as descriptors:

            def of_row(row: int, blocks: Blocks) -> np.ndarray:
                found = [part.columns(row, start, stop, descriptors) for start, stop in blocks]
                return to_float64(np.concatenate(found))

            yield lambda blocks: np.stack([of_row(row, blocks) for row in range(len(part.names))])


def budget_for(
    layout: Layout, updates: Sequence[Update | None], memory: Any, matrices: int, threads: int | None, mixtures: int = 0
) -> Budget:
    """The budget of an aggregation of the tensors of `layout` of these updates, references included; None is zeros."""
    given = DEFAULT if memory is None else memory
    # the result exists twice for a moment: as rows, and as the tensors of an update
    output = 2 * int(layout.decoded().nbytes.sum())
    layouts = {id(update.layout): update.layout for update in updates if update is not None}
    itemsize, margin = widest(layouts.values(), None in updates)
    return Budget(given, len(updates), itemsize, output, matrices, thread_count(threads), margin, mixtures)
