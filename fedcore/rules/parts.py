"""The rows of an executor, made of what was given: plain rows or a cohort, with the references below the clients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedcore.errors import LayoutError
from fedcore.ops.rows import Rows, as_rows
from fedcore.rowtable import RowTable
from fedcore.rules.given_rows import checked_reference, flat, row_like, zero_like, zero_row
from fedcore.updates import Cohort, Layout, Update


class Part(NamedTuple):
    """Rows of one dtype, clients and then references: as they were given, as ops see them, and their tensors."""

    given: Any
    data: Rows
    tensors: tuple[str, ...]

    @property
    def d(self) -> int:
        """Columns."""
        return self.data.d

    @property
    def dtype(self) -> str:
        """The dtype of all rows."""
        return self.data.dtype

    @property
    def starts(self) -> np.ndarray:
        """(s + 1,) the column at which each tensor starts, and the end."""
        assert self.data.table is not None
        return self.data.table.starts


def part_of_rows(rows: Any, references: Mapping[str, Any]) -> Part:
    """Plain rows and then the references, None a zero row. Raises LayoutError and DTypeError naming the reference."""
    data = as_rows(rows)
    if not references:
        return Part(rows, data, ())
    checked = [None if row is None else checked_reference(name, row, data) for name, row in references.items()]
    extended: Any
    if isinstance(rows, RowTable):
        extended = rows
        for row in checked:
            extended = extended.extend(zero_row(rows) if row is None else row_like(rows, row))
    else:
        extended = [*rows, *(zero_like(rows[0]) if row is None else flat(row, data) for row in checked)]
    return Part(extended, as_rows(extended), ())


def parts_of_cohort(
    cohort: Cohort, references: Mapping[str, Update | None], names: Sequence[str], tensors: Sequence[str] | None
) -> list[Part]:
    """The tensors of a cohort, all or those named, a part for each dtype, and then the references; None is zero.

    Raises LayoutError naming the client, or the reference, and the tensor that differs.
    """
    tables = cohort.tables(tensors)
    rows = [table for _, table in tables]
    for name, reference in references.items():
        if reference is None:
            found = [zero_row(table) for _, table in tables]
        else:
            check_like(name, reference, cohort.layout_of(tensors), names[0], tensors)
            found = [row for _, row in Cohort([reference]).tables(tensors)]
        rows = [table.extend(row) for table, row in zip(rows, found, strict=True)]
    return [Part(table, as_rows(table), part) for (part, _), table in zip(tables, rows, strict=True)]


def check_like(name: str, reference: Update, layout: Layout, client: str, tensors: Sequence[str] | None) -> None:
    """Raise LayoutError naming a reference and the tensor, all or those named, that is not as `client` has it."""
    theirs = reference.layout if tensors is None else reference.layout.select(tensors)
    if difference := layout.difference(theirs):
        raise LayoutError(f"{name}: {difference} like {client}; convert it or send the same adapter")
