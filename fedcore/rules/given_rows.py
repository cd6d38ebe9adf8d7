"""Rows as callers give them (tables, lists of arrays or tensors): one of them, some of them, zeros like them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fedcore.dtypes import to_float64
from fedcore.errors import DTypeError, LayoutError, ShapeError
from fedcore.ops.rows import Rows, as_rows, tensors_of
from fedcore.ops.tensors import view_of_tensor
from fedcore.quantized import Quantized
from fedcore.rowtable import RowTable
from fedcore.rules.pivot import Blocks


def zero_row(table: RowTable) -> RowTable:
    """One row of zeros with the segments of `table`; all of them share one buffer as long as the longest."""
    longest = int(table.lengths.max(initial=0))
    return RowTable(
        [np.zeros(longest * table.itemsize, np.uint8)], np.zeros((len(table.lengths), 1)), table.lengths, table.dtype
    )


def row_like(table: RowTable, reference: Any) -> RowTable:
    """A checked reference as a table of one row with the segments of `table`."""
    if isinstance(reference, RowTable) and np.array_equal(reference.lengths, table.lengths):
        return reference
    found = as_rows([flat(reference, as_rows(table))]).table
    if found is None:
        raise LayoutError("reference: on a GPU, expected main memory like the rows; move it there")
    return RowTable([found.segment(0, 0)], table.starts[:-1, None] * table.itemsize, table.lengths, table.dtype)


def flat(reference: Any, data: Rows) -> Any:
    """A checked reference as one array or tensor; a table's row is a view where one segment holds it, else a copy."""
    if not isinstance(reference, RowTable):
        return reference
    if data.device is not None:
        return tensors_of(as_rows(reference))[0].to(data.device)
    return reference.columns(0, 0, reference.d)


def zero_like(row: Any) -> Any:
    """Zeros of a row's shape, dtype and device; of a quantised row, in fp32."""
    if isinstance(row, Quantized):
        return np.zeros(row.shape, np.float32)
    return row.new_zeros(row.shape) if hasattr(row, "new_zeros") else np.zeros_like(row)


def checked_reference(name: str, reference: Any, data: Rows) -> Any:
    """`reference` where it is one row like `data`, of whatever kind. Raises LayoutError and DTypeError that name it."""
    shape = getattr(reference, "shape", None)
    if not isinstance(reference, RowTable) and shape is not None and tuple(shape) != (data.d,):
        raise LayoutError(f"{name}: got shape {tuple(shape)}, expected ({data.d},) like the rows")
    try:
        found = as_rows(reference if isinstance(reference, RowTable) else [reference])
    except (DTypeError, ShapeError) as error:  # it was looked at as a list of one row
        raise error.with_message(f"{name}: {str(error).removeprefix('row 0: ')}") from None
    if found.n != 1:
        raise LayoutError(f"{name}: got {found.n} rows, expected one")
    if found.d != data.d:
        raise LayoutError(f"{name}: got {found.d} columns, expected {data.d} like the rows")
    if found.dtype != data.dtype:
        raise LayoutError(f"{name}: got {found.dtype}, expected {data.dtype} like the rows; convert it")
    return reference


def repair(who: str) -> str:
    """What to do about NaN in a reference: the server's update is trained anew, a global model or centre is not."""
    return "train the server's update again" if who == "the server" else f"repair {who}"


def take(given: Any, rows: Sequence[int] | range) -> Any:
    """Some of the rows, in the form that they were given in."""
    if isinstance(given, RowTable):
        return given if len(rows) == given.n else given.take(rows)
    return [given[i] for i in rows]


def row_of(given: Any, row: int) -> Any:
    """One row in the form that ops take as a centre."""
    return given.take([row]) if isinstance(given, RowTable) else given[row]


def columns(data: Rows, blocks: Blocks) -> np.ndarray:
    """The columns of all rows that lie in blocks (start, stop), joined, in fp64 and in main memory: (rows, columns)."""
    if data.table is not None:
        return data.table.sample(blocks)
    assert data.tensors is not None
    return np.stack(
        [
            to_float64(np.concatenate([view_of_tensor(tensor[start:stop].cpu()) for start, stop in blocks]))
            for tensor in data.tensors
        ]
    )


def in_main_memory(given: Any) -> RowTable:
    """The rows as a table; those on a GPU are copied."""
    data = as_rows(given)
    if data.table is not None:
        return data.table
    assert data.tensors is not None
    return RowTable.from_arrays([view_of_tensor(tensor.cpu()) for tensor in data.tensors])
