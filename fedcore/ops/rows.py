"""What the ops accept as rows, brought to one form without copying."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedcore.backends import default, requested
from fedcore.dtypes import BF16, ROW_DTYPES, name_of, to_float64
from fedcore.errors import DTypeError, NonFiniteError, RangeError, ShapeError
from fedcore.numbers import whole
from fedcore.ops.tensors import check_plain, check_reach, extent, is_torch, tensor_of, view_of_tensor
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

    def overlapped(self, low: int, high: int) -> str | None:
        """The first row that has a byte from address `low` up to `high`, in words."""
        if self.table is None:
            assert self.tensors is not None
            found = np.array([extent(row) for row in self.tensors], np.uint64)
            starts, sizes = found[:, 0], found[:, 1] - found[:, 0]
        else:
            starts, sizes = self.table.extents()
        hit = (starts < np.uint64(high)) & (starts + sizes.astype(np.uint64) > np.uint64(low)) & (sizes > 0)
        return f"row {np.flatnonzero(hit)[0] % self.n}" if hit.any() else None


def as_rows(rows: Any) -> Rows:
    """Bring an (n, d) array or tensor, a sequence of n 1-D arrays or tensors, or a RowTable to `Rows`.

    Raises ShapeError or DTypeError that names the row.
    """
    if isinstance(rows, RowTable):
        if rows.n == 0:
            raise _no_rows("none")
        return Rows(rows, None, rows.n, rows.d, rows.source)
    check_plain("rows", rows)
    if isinstance(rows, np.ndarray) or is_torch(rows):
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
        raise _no_rows("none" if isinstance(rows, Sequence) else type(rows).__name__)
    torch_rows = [is_torch(row) for row in rows]
    if all(torch_rows):
        return _from_tensors(list(rows))
    for i, row in enumerate(rows):
        check_plain(f"row {i}", row)
        if not isinstance(row, (np.ndarray, Quantized)):
            raise DTypeError(
                f"row {i}: got {type(row).__name__}, expected a NumPy array or a torch tensor, all of one kind"
            )
    return _from_table(RowTable.from_arrays(rows), rows[0].dtype)


def _no_rows(got: str) -> ShapeError:
    return ShapeError(f"rows: got {got}, expected an (n, d) array or a non-empty sequence of 1-D rows")


def _is_matrix(tensor: Any) -> bool:
    """Whether NumPy sees the rows of a tensor as they lie; of others each row is looked at, and errors name it."""
    known = str(tensor.dtype).removeprefix("torch.") in ROW_DTYPES
    return tensor.device.type == "cpu" and known and tensor.is_contiguous()


def _from_table(table: RowTable, dtype: Any) -> Rows:
    native = dtype if table.dtype == "bfloat16" else BF16
    return Rows(table, None, table.n, table.d, table.dtype, bfloat16=native)


def _from_tensors(tensors: list[Any]) -> Rows:
    device, dtype, d = tensors[0].device, name_of(tensors[0].dtype, "row 0", ROW_DTYPES), tensors[0].numel()
    for i, row in enumerate(tensors):
        check_plain(f"row {i}", row)
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
    """A (d,) row of any row dtype, or a table of one row; None stays None (zero).

    Raises ShapeError for other than one row of the rows' columns and on their device, and DTypeError.
    """
    if center is None:
        return None
    if not isinstance(center, RowTable) and getattr(center, "shape", None) != (rows.d,):
        got = f"shape {tuple(center.shape)}" if hasattr(center, "shape") else type(center).__name__
        raise ShapeError(f"center: got {got}, expected one row of {rows.d} columns like the rows")
    if isinstance(center, RowTable) and (center.n, center.d) != (1, rows.d):
        raise ShapeError(f"center: got {center.n} × {center.d}, expected one row of {rows.d} columns like the rows")
    if not isinstance(center, (RowTable, Quantized)):
        check_plain("center", center)
        name_of(center.dtype, "center", ROW_DTYPES)
    found = as_rows(center if isinstance(center, RowTable) else [center])
    if found.on_gpu != rows.on_gpu:
        raise ShapeError("center: it lies on another device than the rows; move it there")
    return found


def checked_total(total: Any, shape: tuple[int, ...]) -> np.ndarray | None:
    """A statistic of the columns before, as C can add to it. Raises DTypeError and ShapeError; None stays None."""
    if total is None:
        return None
    check_plain("total", total)
    if not isinstance(total, np.ndarray) or total.dtype != np.float64:
        got = str(total.dtype) if isinstance(total, np.ndarray) else type(total).__name__
        raise DTypeError(f"total: got {got}, expected a NumPy array of float64")
    usable = total.flags.c_contiguous and total.flags.aligned and total.flags.writeable
    if total.shape != shape or not usable:
        raise ShapeError(
            f"total: got shape {total.shape}{'' if usable else ', read-only or with gaps'}, expected {shape}, "
            "contiguous, aligned and writable; pass a copy"
        )
    return total


def choose(rows: Rows, backend: str | None) -> str:
    """The backend that will run: the one asked for, else the default where the data lies.

    Raises BackendError for one that is unknown or not available, ShapeError for one that cannot read rows on a GPU.
    """
    name = requested(backend) or default(rows.on_gpu)
    if rows.on_gpu:
        check_reach("rows", rows.device, name)
    return name


def tensors_of(rows: Rows) -> list[Any]:
    """The rows as torch tensors, for the Triton backend (views; a row in several segments is joined, a copy)."""
    if rows.tensors is not None:
        return rows.tensors
    assert rows.table is not None
    return [tensor_of(rows.table.columns(i, 0, rows.d)) for i in range(rows.n)]


def thread_count(threads: int | None) -> int:
    """threads= if given, else FEDCORE_NUM_THREADS, else the cores the calling thread may run on, MOST_THREADS at most.

    Its own mask counts, which threads that it starts inherit: a library that binds it to one core, as libgomp does when
    torch is imported with OMP_PROC_BIND=true, leaves one. Raises RangeError.
    """
    said = os.environ.get("FEDCORE_NUM_THREADS") if threads is None else None
    if not said:
        usual = min(available_cores(), MOST_THREADS)
        return whole("threads", usual if threads is None else threads, 1, MOST_THREADS, error=RangeError)
    try:
        value: Any = int(said)
    except ValueError:
        value = said
    return whole("FEDCORE_NUM_THREADS", value, 1, MOST_THREADS, error=RangeError)


def available_cores() -> int:
    """Cores that the calling thread may run on."""
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
