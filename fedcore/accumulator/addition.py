"""One row on its way into exact sums, or out of them again, which may be interrupted anywhere."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import islice

from fedcore import ops
from fedcore.rules.files import FileExecutor
from fedcore.rules.rows import RowExecutor


class Addition:
    """coefficient · row 0 of each part, added tile by tile to the sums of the parts.

    client   whose row it is; None for a reference, which stays as it is while the sums live
    tiles    how many of each part are added; None: all. A row that is taken out again went in so far

    How far it came is asked of the sums, which note each tile in one step with its addition (`ExactSum.added`): what a
    signal handler raises comes between any two lines of Python, so that nothing noted here could be relied on.
    """

    def __init__(
        self,
        executor: RowExecutor,
        coefficient: float,
        sums: list[ops.ExactSum],
        client: str | None = None,
        tiles: list[int] | None = None,
    ):
        self.executor, self.coefficient, self.sums, self.client, self.tiles = executor, coefficient, sums, client, tiles
        self._began = [total.added for total in sums]
        #: what the sums had noted when all of it was in; others add to them from there on
        self._ended: list[int] | None = None

    @property
    def done(self) -> list[int]:
        """Tiles of each part that are in the sums, none where the coefficient is 0."""
        now = self._ended or [total.added for total in self.sums]
        return [ended - began for began, ended in zip(self._began, now, strict=True)]

    @property
    def remains(self) -> bool:
        """Whether something of the row is in the sums."""
        return self.done != (self.tiles or [0] * len(self.sums))

    def go_on(self) -> None:
        """Add what is missing. Raises what reading a file raises, and NonFiniteError."""
        limits: Sequence[int | None] = self.tiles or [None] * len(self.sums)
        missing = zip(self.executor.parts, self.sums, self.done, limits, strict=True)
        for part, total, done, tiles in missing:
            if done == tiles:
                continue
            with self.executor.tiles(part, [0], "sum") as found:
                for tile in islice(found, done, tiles):
                    with self.executor.naming(part, [0], tile.start):
                        total.add(tile.rows, self.coefficient, tile.start)
        self._ended = [total.added for total in self.sums]

    def back(self) -> Addition:
        """The way out for what is in. It says nothing of its progress: who is told may be who wants to stop."""
        executor = self.executor
        if isinstance(executor, FileExecutor):
            executor = copy.copy(executor)
            executor.progress = None
        return Addition(executor, -self.coefficient, self.sums, self.client, self.done)
