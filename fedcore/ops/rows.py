"""What the ops accept as rows, brought to one form without copying."""

from __future__ import annotations

import operator
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedcore.backends import default, requested
from fedcore.dtypes import BF16, ROW_DTYPES, name_of, to_float64
from fedcore.errors import DTypeError, NonFiniteError, RangeError, ShapeError
from fedcore.quantized import Quantized
from fedcore.rowtable import RowTable

MOST_THREADS = 1024


@dataclass
class Rows:
    """Validated rows: a table (data in main memory) or torch tensors on one GPU, and how to answer in kind.

    dtype is what the rows are to their owner; a table whose rows travel in another format shows ops its own.
    """

    table: RowTable | None
    tensors: list[Any] | None
    n: int
    d: int
    dtype: str
    device: Any = None  # torch device of the answer; None: NumPy
    bfloat16: Any = BF16  # the NumPy dtype that the caller uses for bf16

    @property
    def on_gpu(self) -> bool:
        return self.table is None


def is_torch(value: object) -> bool:
    """Whether a value is a torch tensor, without importing torch."""
    return type(value).__module__.partition(".")[0] == "torch" and hasattr(value, "data_ptr")


def view_of_tensor(tensor: Any) -> np.ndarray:
    """A NumPy view of a CPU tensor; bf16 becomes BF16."""
    import torch

    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(BF16)
    return tensor.numpy()


def as_rows(rows: Any) -> Rows:
    """Bring an (n, d) array or tensor, a sequence of n 1-D arrays or tensors, or a RowTable to `Rows`.

    Raises ShapeError or DTypeError that names the row.
    """
    if isinstance(rows, RowTable):
        return Rows(rows, None, rows.n, rows.d, rows.source)
    if isinstance(rows, np.ndarray) or is_torch(rows):
        _refuse_masks("rows", rows)
        if rows.ndim != 2:
            raise ShapeError(
                f"rows: got an array of shape {tuple(rows.shape)}, expected (n, d); give a matrix or a list of rows"
            )
        if isinstance(rows, np.ndarray) and len(rows):
            return _from_table(RowTable.from_matrix(rows), rows.dtype)
        if len(rows) and not isinstance(rows, np.ndarray) and _is_matrix(rows):
            table = RowTable.from_matrix(view_of_tensor(rows))
            return Rows(table, None, table.n, table.d, table.dtype, rows.device)
        rows = list(rows)
    if not isinstance(rows, Sequence) or len(rows) == 0:
        raise ShapeError("rows: got none, expected an (n, d) array or a non-empty sequence of 1-D rows")
    torch_rows = [is_torch(row) for row in rows]
    if all(torch_rows):
        return _from_tensors(list(rows))
    for i, row in enumerate(rows):
        _refuse_masks(f"row {i}", row)
        if not isinstance(row, (np.ndarray, Quantized)):
            raise DTypeError(
                f"row {i}: got {type(row).__name__}, expected a NumPy array or a torch tensor, all of one kind"
            )
    return _from_table(RowTable.from_arrays(rows), rows[0].dtype)


def _refuse_masks(what: str, value: Any) -> None:
    if isinstance(value, np.ma.MaskedArray):
        raise DTypeError(f"{what}: got a masked array, whose masked elements no op leaves out; pass .filled(value)")


def _is_matrix(tensor: Any) -> bool:
    """Whether NumPy sees the rows of a tensor as they lie; of others each row is looked at, and errors name it."""
    plain = tensor.device.type == "cpu" and str(tensor.layout) == "torch.strided"
    return plain and str(tensor.dtype).removeprefix("torch.") in ROW_DTYPES and tensor.is_contiguous()


def _from_table(table: RowTable, dtype: Any) -> Rows:
    native = dtype if table.dtype == "bfloat16" else BF16
    return Rows(table, None, table.n, table.d, table.dtype, bfloat16=native)


def _from_tensors(tensors: list[Any]) -> Rows:
    device, dtype, d = tensors[0].device, name_of(tensors[0].dtype, "row 0", ROW_DTYPES), tensors[0].numel()
    for i, row in enumerate(tensors):
        if row.device != device:
            raise ShapeError(f"row {i}: on {row.device}, expected {device} like row 0; move the rows to one device")
        if row.ndim != 1 or row.numel() != d:
            raise ShapeError(f"row {i}: got shape {tuple(row.shape)}, expected ({d},) like row 0")
        if name_of(row.dtype, f"row {i}", ROW_DTYPES) != dtype:
            raise DTypeError(f"row {i}: got {row.dtype}, expected torch.{dtype} like row 0; convert to one dtype")
        if not row.is_contiguous():
            raise ShapeError(f"row {i}: its elements are not contiguous; pass row.contiguous()")
    if device.type == "cpu":
        return Rows(RowTable.from_arrays([view_of_tensor(t) for t in tensors]), None, len(tensors), d, dtype, device)
    return Rows(None, [t.detach() for t in tensors], len(tensors), d, dtype, device)


def as_center(center: Any, rows: Rows) -> Rows | None:
    """A (d,) row of any row dtype, or a table of one row; None stays None (zero)."""
    if center is None:
        return None
    found = as_rows(center if isinstance(center, RowTable) else [center])
    if found.n != 1 or found.d != rows.d:
        raise ShapeError(f"center: got {found.n} × {found.d}, expected one row of {rows.d} columns like the rows")
    if found.on_gpu != rows.on_gpu:
        raise ShapeError("center: it lies on another device than the rows; move it there")
    return found


def choose(rows: Rows, backend: str | None) -> str:
    """The backend that will run. Raises BackendError when a request cannot be met where the data lies."""
    name = requested(backend) or default(rows.on_gpu)
    if rows.on_gpu and name != "triton":
        raise ShapeError(f"rows: on {rows.device}, which backend {name!r} cannot read; use 'triton' or rows.cpu()")
    return name


def tensors_of(rows: Rows) -> list[Any]:
    """The rows as torch tensors, for the Triton backend (views; a row in several segments is joined, a copy)."""
    if rows.tensors is not None:
        return rows.tensors
    import torch

    assert rows.table is not None
    columns = [rows.table.columns(i, 0, rows.d) for i in range(rows.n)]
    with warnings.catch_warnings():  # torch warns of rows in read-only memory; the kernels only read
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        if rows.table.dtype == "bfloat16":
            return [torch.from_numpy(c.view(np.int16)).view(torch.bfloat16) for c in columns]
        return [torch.from_numpy(c) for c in columns]


def thread_count(threads: int | None) -> int:
    """threads= if given, else FEDCORE_NUM_THREADS, else the cores this process may run on. Raises RangeError."""
    said = os.environ.get("FEDCORE_NUM_THREADS") if threads is None else None
    value: Any = threads if threads is not None else said or available_cores()
    try:
        count = operator.index(value) if not isinstance(value, str) else int(value)
    except (TypeError, ValueError):
        count = 0
    if not 1 <= count <= MOST_THREADS or isinstance(value, bool):
        name = "FEDCORE_NUM_THREADS" if said else "threads"
        raise RangeError(f"{name}: got {value!r}, expected a whole number from 1 to {MOST_THREADS}")
    return count


def available_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def raise_first_nonfinite(rows: Rows, among: np.ndarray | None = None, op: str = "rows") -> None:
    """Raise NonFiniteError for the lowest row (of `among`), then the lowest column, that is not finite; else return."""
    for i in range(rows.n) if among is None else among:
        if rows.table is None:
            import torch

            assert rows.tensors is not None
            hits = torch.nonzero(~torch.isfinite(rows.tensors[i]))[:1].flatten().tolist()
            found = (hits[0], float(rows.tensors[i][hits[0]])) if hits else None
        else:
            found = _first_nonfinite(rows.table, int(i))
        if found is not None:
            column, value = found
            raise NonFiniteError(
                f"{op}: row {i} holds {value} at column {column}; drop that row or repair it", int(i), column
            )


def _first_nonfinite(table: RowTable, row: int, tile: int = 1 << 20) -> tuple[int, float] | None:
    for start in range(0, table.d, tile):
        values = to_float64(table.columns(row, start, min(start + tile, table.d)))
        bad = np.flatnonzero(~np.isfinite(values))
        if bad.size:
            return start + int(bad[0]), float(values[bad[0]])
    return None
