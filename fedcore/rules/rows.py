"""The executor over rows in memory, in mapped files or on a GPU: what rules ask of the data, by the ops."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from fedcore import ops
from fedcore.backends import default, requested
from fedcore.dtypes import to_float64
from fedcore.errors import LayoutError, NonFiniteError
from fedcore.ops.rows import Rows, as_rows, raise_first_nonfinite, tensors_of, view_of_tensor
from fedcore.rowtable import RowTable
from fedcore.rules.geometry import UNIT, Gram
from fedcore.rules.pivot import choose_pivot
from fedcore.updates import Cohort, Update

#: columns in fp64 at a time when mixtures are formed
TILE = 1 << 14


class Part(NamedTuple):
    """Rows of one dtype, clients and then references: as they were given, as ops see them, and their tensors."""

    given: Any
    data: Rows
    tensors: tuple[str, ...]


class RowExecutor:
    """Passes over rows that are cut into parts of one dtype each; a cohort of one dtype has one part.

    clients, references   how many rows; `names` (clients,) is what messages call each client
    parts                 each with clients + references rows, references last
    zero_reference        the reference is the zero row: it is seen by the statistics and left out of sums
    """

    def __init__(
        self,
        parts: Sequence[Part],
        names: Sequence[str],
        references: int,
        *,
        zero_reference: bool = False,
        backend: str | None = None,
        threads: int | None = None,
    ):
        self.parts = list(parts)
        self.names = tuple(names)
        self.clients, self.references = len(self.names), references
        self.zero_reference = zero_reference
        self.backend, self.threads = backend, threads

    @classmethod
    def from_rows(
        cls, rows: Any, *, reference: Any, with_reference: bool, backend: str | None, threads: int | None
    ) -> RowExecutor:
        """Plain rows, and where the rule wants one a reference row: the one given, else zero."""
        data = as_rows(rows)
        names = tuple(f"row {i}" for i in range(data.n))
        if not with_reference:
            return cls([Part(rows, data, ())], names, 0, backend=backend, threads=threads)
        row = None if reference is None else _checked_reference(reference, data)
        extended: Any
        if isinstance(rows, RowTable):
            extended = rows.extend(zero_row(rows) if row is None else _row_like(rows, row))
        else:
            extended = [*rows, _zero_like(rows[0]) if row is None else _flat(row, data)]
        part = Part(extended, as_rows(extended), ())
        return cls([part], names, 1, zero_reference=reference is None, backend=backend, threads=threads)

    @classmethod
    def from_cohort(
        cls,
        cohort: Cohort,
        reference: Update | None,
        names: Sequence[str],
        tensors: Sequence[str] | None = None,
        *,
        with_reference: bool,
        backend: str | None,
        threads: int | None,
    ) -> RowExecutor:
        """The tensors of a cohort, all or those named, and where the rule wants one the reference update, else zero.

        Raises LayoutError naming the client, or the reference, and the tensor that differs.
        """
        tables = cohort.tables(tensors)
        found = [zero_row(table) for _, table in tables] if with_reference else []
        if reference is not None and with_reference:
            layouts = [u.layout if tensors is None else u.layout.select(tensors) for u in (cohort[0], reference)]
            if difference := layouts[0].difference(layouts[1]):
                raise LayoutError(f"reference: {difference} like {names[0]}; convert it or send the same adapter")
            found = [row for _, row in Cohort([reference]).tables(tensors)]
        rows = (
            [table.extend(row) for (_, table), row in zip(tables, found, strict=True)]
            if found
            else [t for _, t in tables]
        )
        parts = [Part(table, as_rows(table), part) for (part, _), table in zip(tables, rows, strict=True)]
        zero = with_reference and reference is None
        return cls(parts, names, int(with_reference), zero_reference=zero, backend=backend, threads=threads)

    def squared_norms(self) -> tuple[np.ndarray, np.ndarray]:
        """(clients,) squared distances to the first reference, the centre of the pass, summed in fp64; no bounds: 0."""
        total = np.zeros(self.clients)
        n = self.clients
        for part in self.parts:
            clients = _take(part.data, range(n))
            center = None if self.zero_reference else _center(part.data, n)
            total += self._pass(part, ops.squared_norms, clients, center)
        return total, np.zeros(self.clients)

    def gram(self) -> Gram:
        """The Gram of all rows, each part centred at its own pivot, added in fp64 in order of the parts."""
        rows = self.clients + self.references
        matrix, offset = np.zeros((rows, rows)), 0.0
        for part in self.parts:
            pivot = choose_pivot(rows, part.data.d, partial(_columns, part.data))
            matrix += self._pass(part, ops.gram, _take(part.data, range(rows)), _center(part.data, pivot))
            offset += float(self._pass(part, ops.squared_norms, _take(part.data, [pivot]), None)[0])
        columns = sum(part.data.d for part in self.parts)
        return Gram(matrix, ops.GRAM_EPSILON * matrix.diagonal(), float(np.sqrt(offset)), (columns + 4) * UNIT)

    def exact(self, pairs: np.ndarray, mix: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Squared distances in fp64, and bounds of 0: these values are the oracle.

        Order: within a part (one dtype) columns in order, and the sums of the parts in order of the parts.
        """
        total = np.zeros(len(pairs))
        backend = self.redone_on(False)
        for part in self.parts:
            if mix is None:
                used, index = np.unique(pairs, return_inverse=True)
                table = _in_main_memory(part.data, used)
                total += ops.squared_distances(table, index.reshape(pairs.shape), backend=backend, threads=self.threads)
            else:
                total += _mixed_distances(part.data, mix[pairs[:, 0]] - mix[pairs[:, 1]])
        return total, np.zeros(len(pairs))

    def redone_on(self, mixed: bool) -> str:
        """The backend of `exact`: there is no GPU kernel for a redo, so rows come to main memory; mixtures on NumPy."""
        if mixed:
            return "reference"
        backend = requested(self.backend)
        return default(on_gpu=False) if backend in (None, "triton") else backend

    def weighted_sum(self, coefficients: np.ndarray, divisor: float, out_dtype: str | None = None) -> list[Any]:
        """Σ c_k x_k / divisor of each part, rounded once to `out_dtype` or to the part's own dtype."""
        count = self.clients if self.zero_reference else self.clients + self.references
        kept = coefficients[:count]
        result = []
        for part in self.parts:
            rows = part.given
            if count < part.data.n:
                rows = rows.take(range(count)) if isinstance(rows, RowTable) else rows[:count]
            try:
                result.append(
                    ops.weighted_sum(
                        rows,
                        kept,
                        divisor,
                        out_dtype=out_dtype or part.data.dtype,
                        backend=self.backend,
                        threads=self.threads,
                    )
                )
            except NonFiniteError as error:
                raise self._named(error, part) from None
        return result

    def _pass(self, part: Part, op: Any, rows: Any, center: Any) -> np.ndarray:
        try:
            result = op(rows, center, backend=self.backend, threads=self.threads)
        except NonFiniteError:
            # a bad centre is a row of the part too: name the row, not the centre
            try:
                raise_first_nonfinite(part.data)
            except NonFiniteError as error:
                raise self._named(error, part) from None
            raise
        return result.cpu().numpy() if hasattr(result, "cpu") else result

    def _named(self, error: NonFiniteError, part: Part) -> NonFiniteError:
        """The error in the words of the caller: which client, which tensor."""
        who = self.names[error.row] if error.row < self.clients else "the reference"
        if not part.tensors or part.data.table is None:
            remedy = "repair the reference" if error.row >= self.clients else "drop that row or repair it"
            return NonFiniteError(
                f"{who}: holds NaN or Inf at column {error.column}; {remedy}", error.row, error.column
            )
        starts = part.data.table.starts
        tensor = int(np.searchsorted(starts, error.column, side="right")) - 1
        return not_finite(who, part.tensors[tensor], error.column - int(starts[tensor]), error.row)


def not_finite(who: str, tensor: str, element: int, row: int) -> NonFiniteError:
    """The error that names the client, the tensor and the element (0-based, row-major) that is NaN or Inf."""
    remedy = "exclude that client or have it trained again"
    return NonFiniteError(f"{who}: tensor {tensor!r} holds NaN or Inf at element {element}; {remedy}", row, element)


def zero_row(table: RowTable) -> RowTable:
    """One row of zeros with the segments of `table`; all of them share one buffer as long as the longest."""
    longest = int(table.lengths.max(initial=0))
    return RowTable(
        [np.zeros(longest * table.itemsize, np.uint8)], np.zeros((len(table.lengths), 1)), table.lengths, table.dtype
    )


def _row_like(table: RowTable, reference: Any) -> RowTable:
    """A checked reference as a table of one row with the segments of `table`."""
    if isinstance(reference, RowTable) and np.array_equal(reference.lengths, table.lengths):
        return reference
    found = as_rows([_flat(reference, as_rows(table))]).table
    if found is None:
        raise LayoutError("reference: on a GPU, expected main memory like the rows; move it there")
    return RowTable([found.segment(0, 0)], table.starts[:-1, None] * table.itemsize, table.lengths, table.dtype)


def _flat(reference: Any, data: Rows) -> Any:
    """A checked reference as one array or tensor; a table's row is a view where one segment holds it, else a copy."""
    if not isinstance(reference, RowTable):
        return reference
    if data.device is not None:
        return tensors_of(as_rows(reference))[0].to(data.device)
    return reference.columns(0, 0, reference.d)


def _zero_like(row: Any) -> Any:
    return row.new_zeros(row.shape) if hasattr(row, "new_zeros") else np.zeros_like(row)


def _checked_reference(reference: Any, data: Rows) -> Any:
    found = as_rows(reference if isinstance(reference, RowTable) else [reference])
    if found.n != 1:
        raise LayoutError(f"reference: got {found.n} rows, expected one")
    if found.d != data.d:
        raise LayoutError(f"reference: got {found.d} columns, expected {data.d} like the rows")
    if found.dtype != data.dtype:
        raise LayoutError(f"reference: got {found.dtype}, expected {data.dtype} like the rows; convert it")
    return reference


def _take(data: Rows, rows: Sequence[int] | range) -> Any:
    """Some of the rows in the form that statistics take: a table in main memory, or tensors."""
    if data.table is not None:
        return data.table if len(rows) == data.n else data.table.take(rows)
    assert data.tensors is not None
    return [data.tensors[i] for i in rows]


def _center(data: Rows, row: int) -> Any:
    """One row in the form that statistics take as a centre."""
    return data.table.take([row]) if data.table is not None else data.tensors[row]  # type: ignore[index]


def _columns(data: Rows, row: int, start: int, stop: int) -> np.ndarray:
    if data.table is not None:
        return to_float64(data.table.columns(row, start, stop))
    assert data.tensors is not None
    return to_float64(view_of_tensor(data.tensors[row][start:stop].cpu()))


def _in_main_memory(data: Rows, rows: np.ndarray) -> RowTable:
    if data.table is not None:
        return data.table.take(rows)
    assert data.tensors is not None
    return RowTable.from_arrays([view_of_tensor(data.tensors[int(i)].cpu()) for i in rows])


def _mixed_distances(data: Rows, differences: np.ndarray) -> np.ndarray:
    """(m,) Σ over columns of (Σ_k v_k x_k)², fp64: rows in order within a column, columns in order."""
    used = np.flatnonzero(differences.any(0))
    table, total = _in_main_memory(data, used), np.zeros(len(differences))
    for start in range(0, data.d, TILE):
        tile = [to_float64(table.columns(i, start, min(start + TILE, data.d))) for i in range(len(used))]
        for p, v in enumerate(differences[:, used]):
            column = np.zeros(len(tile[0]) if tile else 0)
            for i in np.flatnonzero(v):
                column += v[i] * tile[i]
            total[p] = np.cumsum(np.concatenate(([total[p]], column * column)))[-1]
    return total
