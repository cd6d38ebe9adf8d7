"""What an order rule decides: a coordinate-wise statistic, and the rows or mixtures of rows that it is taken of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from fedcore import ops
from fedcore.ops.rows import as_center, as_rows
from fedcore.rowtable import RowTable
from fedcore.rules.buffer import buffer
from fedcore.rules.coefficients import combine, round_coefficients
from fedcore.rules.stage import Stage

#: bytes of mixed rows that exist at a time, where a budget has room for them, and columns of those at least
MIXED_BYTES, NARROWEST = 1 << 26, 1 << 10


@dataclass(frozen=True)
class OrderStatistic:
    """A coordinate-wise statistic over rows of the extended cohort.

    statistic    "median", "trimmed_mean" and "mean_around_median" with `f`, or "sign_majority" with `step`
    rows         the clients that it is taken of, ascending; None for all
    mix          (rows, clients + references) fp64, the mixtures that it is taken of instead, each summing to 1; formed
                 in row-order fp64, divided by the fp64 sum of the coefficients as rounded to fp32, rounded once to fp32
    step         how far sign_majority moves the reference in each coordinate
    reasons, details, per_client, selected, before   as in `Coefficients`
    """

    statistic: Literal["median", "trimmed_mean", "mean_around_median", "sign_majority"]
    f: int = 0
    rows: list[int] | None = None
    mix: np.ndarray | None = None
    step: float = 0.0
    reasons: dict[int, str] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    per_client: dict[str, np.ndarray] = field(default_factory=dict)
    selected: list[int] | None = None
    before: tuple[Stage, ...] = ()

    def of(self, matrix: np.ndarray, clients: int) -> np.ndarray:
        """The mixtures of this statistic when its rows are those of `matrix`: `clients` of them, then references."""
        if self.mix is not None:
            return combine(self.mix, matrix)
        return matrix[list(range(clients) if self.rows is None else self.rows)]

    def rounded(self) -> tuple[np.ndarray, np.ndarray] | None:
        """`mix` as used, rounded to fp32 once, and the divisors: the fp64 sums of those, in row order; None without."""
        if self.mix is None:
            return None
        mix = round_coefficients(self.mix)
        return mix, np.cumsum(mix, axis=1, dtype=np.float64)[:, -1]

    def counted(self, clients: int) -> np.ndarray:
        """The clients that it is taken of, ascending: of mixtures those that are in one as it is used."""
        mixed = self.rounded()
        if mixed is None:
            return np.array(range(clients) if self.rows is None else self.rows, int)
        return np.flatnonzero(mixed[0][:, :clients].any(0))

    def unused(self, clients: int) -> dict[int, str]:
        """row -> why it is in no mixture as that is used, of every client that is in none."""
        if self.mix is None:
            return {}
        most = np.abs(self.mix[:, :clients]).max(0)
        return {
            int(row): f"its coefficient in mixed rows, at most {most[row]:.3g}, rounds to 0 in fp32"
            if most[row]
            else "in none of the mixed rows"
            for row in np.setdiff1d(np.arange(clients), self.counted(clients))
        }


def column_statistic(
    decided: OrderStatistic,
    rows: Any,
    mixed: tuple[np.ndarray, np.ndarray] | None,
    center: Any,
    mixed_bytes: int | None = None,
    **options: Any,
) -> Any:
    """The statistic of `rows`, or of mixtures of them that are formed tile by tile: (d,).

    mixed     (coefficients (mixtures, rows) fp32, divisors (mixtures,) fp64), or None for the rows themselves
    center    what signs are taken relative to: a row as ops take it, or None for zero
    mixed_bytes   what mixtures may take; None for MIXED_BYTES
    options   backend, threads and out_dtype of the ops
    """
    if mixed is None:
        return _statistic(decided, rows, center, **options)
    passes = {name: value for name, value in options.items() if name != "out_dtype"}
    data, pieces = as_rows(rows), []
    width = max(NARROWEST, (mixed_bytes or MIXED_BYTES) // (4 * len(mixed[0])))
    memory = None
    if data.device is None:  # torch tensors stay what they are, for the answer's sake; of the rest a table can be cut
        rows = data.table
        center = None if center is None else as_center(center, data).table  # type: ignore[union-attr]
        memory = buffer(4 * len(mixed[0]) * min(width, data.d)).view(np.float32)
    for start in range(0, max(data.d, 1), width):
        stop = min(start + width, data.d)
        shape = (len(mixed[0]), stop - start)
        out = None if memory is None else memory[: shape[0] * shape[1]].reshape(shape)
        formed = ops.weighted_sums(_columns(rows, start, stop), *mixed, out=out, **passes)
        middle = None if center is None else _columns(center, start, stop)
        pieces.append(_statistic(decided, formed, middle, **options))
    return join(pieces)


def _statistic(decided: OrderStatistic, rows: Any, center: Any, **options: Any) -> Any:
    if decided.statistic == "median":
        return ops.median(rows, **options)
    if decided.statistic == "trimmed_mean":
        return ops.trimmed_mean(rows, decided.f, **options)
    if decided.statistic == "mean_around_median":
        return ops.mean_around_median(rows, decided.f, **options)
    return _moved_by_majority(rows, center, decided.step, **options)


def _moved_by_majority(rows: Any, center: Any, step: float, out_dtype: str, **passes: Any) -> Any:
    """center + step · sign(votes), formed in fp64 with `step` rounded to fp32, and rounded once."""
    votes = ops.sign_counts(rows, center, **passes)
    if isinstance(votes, np.ndarray):
        signs = np.sign(votes).astype(np.float32)
    else:
        signs = votes.sign().float()
    if center is None:
        return ops.weighted_sum([signs], [step], out_dtype=out_dtype, **passes)
    start = ops.weighted_sum(center if isinstance(center, RowTable) else [center], [1.0], **passes)
    return ops.weighted_sum([start, signs], [1.0, step], out_dtype=out_dtype, **passes)


def _columns(rows: Any, start: int, stop: int) -> Any:
    """Columns of a table, of tensors or of one tensor."""
    if isinstance(rows, RowTable):
        return rows.slice(start, stop)
    return rows[start:stop] if getattr(rows, "ndim", 2) == 1 else [row[start:stop] for row in rows]


def join(pieces: list[Any]) -> Any:
    """Pieces of a row, one after the other."""
    if len(pieces) == 1:
        return pieces[0]
    if isinstance(pieces[0], np.ndarray):
        return np.concatenate(pieces)
    import torch

    return torch.cat(pieces)
