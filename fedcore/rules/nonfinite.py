"""Which rows hold NaN or Inf, all of them from one pass: what leaves them out together starts again once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedcore.errors import NonFiniteError
from fedcore.ops.rows import as_rows, raise_first_nonfinite
from fedcore.ops.squared_norms import run_statistic
from fedcore.rules.rows import RowExecutor


def nonfinite_rows(executor: RowExecutor, rows: Sequence[int]) -> dict[int, NonFiniteError]:
    """row -> the error that names its first element that is not finite, in the order in which a pass meets them.

    A row is suspect where its squared norm over a tile, which in fp64 no finite numbers overflow, is not finite; then
    its elements are looked at, and they decide.
    """
    found: dict[int, NonFiniteError] = {}
    for part in executor.parts:
        with executor.tiles(part, rows, "exclusion") as tiles:
            for tile in tiles:
                data = as_rows(tile.rows)
                norms = run_statistic("squared_norms", data, None, executor.backend, executor.threads)
                norms = np.asarray(norms.cpu() if hasattr(norms, "cpu") else norms)
                for place in np.flatnonzero(~np.isfinite(norms)).tolist():
                    if rows[place] in found:
                        continue
                    try:
                        with executor.naming(part, rows, tile.start):
                            raise_first_nonfinite(data, np.array([place]))
                    except NonFiniteError as error:
                        found[error.row] = error
    return found
