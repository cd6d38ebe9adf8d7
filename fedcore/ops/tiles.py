"""Rows as the Triton kernels take them: whole where they lie as elements, else decoded a tile of columns at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from fedcore.backends import implementation
from fedcore.ops.rows import Rows, tensors_of
from fedcore.quantized import DYNAMIC_CODE, NF4_CODE
from fedcore.rowtable import RowTable

#: columns of a tile are a multiple of this, so that tiles add up like one pass
CHUNK = 1 << 13
#: bytes of a decoded tile: it stays in a GPU's second-level cache
BYTES = 16 << 20


def tiles_of(data: Rows, *more: Rows | None) -> Iterator[tuple[slice, list[Any]]]:
    """(columns, the rows of `data`, then those of `more`, as torch tensors of these columns), in column order.

    One tile of all columns where nothing is encoded; else tiles of at most BYTES, or CHUNK columns if that is more,
    which the next tile overwrites. There is at least one tile.
    """
    parts = [data, *(rows for rows in more if rows is not None)]
    if not any(_encoded(rows) for rows in parts):
        yield slice(0, data.d), [tensor for rows in parts for tensor in tensors_of(rows)]
        return
    import torch

    plain = [None if _encoded(rows) else tensors_of(rows) for rows in parts]
    count = sum(rows.n for rows in parts if _encoded(rows))
    width = max(BYTES // (4 * count * CHUNK), 1) * CHUNK
    buffer = torch.empty((count, min(width, data.d)), dtype=torch.float32)
    codes = torch.from_numpy(NF4_CODE), torch.from_numpy(DYNAMIC_CODE)
    for start in range(0, max(data.d, 1), width):
        columns, tensors, used = slice(start, min(start + width, data.d)), [], 0
        for rows, ready in zip(parts, plain, strict=True):
            if ready is not None:
                tensors += [tensor[columns] for tensor in ready]
                continue
            assert rows.table is not None
            space = buffer[used : used + rows.n, : columns.stop - columns.start]
            _decode(rows.table.slice(columns.start, columns.stop), codes, space)
            tensors += list(space)
            used += rows.n
        yield columns, tensors


def run_columns(op: str, name: str, data: Rows, arguments: tuple[Any, ...], target: Any, threads: int) -> bool:
    """Call a backend's (rows, *arguments, out, threads) -> suspect, whose columns do not depend on one another.

    `target` is (d,) or (m, d). True if any tile is suspect: the caller finds a culprit in the rows themselves.
    """
    work = implementation(op, name)
    if name != "triton":
        return work(data.table, *arguments, target, threads)
    found = []
    for columns, rows in tiles_of(data):
        # kernels write contiguous outputs: a tile of several rows of them is written apart
        part = target[..., columns]
        out = part.contiguous()
        found.append(work(rows, *arguments, out, threads))
        if out is not part:
            part.copy_(out)
    return any(found)


def _encoded(rows: Rows) -> bool:
    return rows.table is not None and rows.table.encoding is not None


def _decode(table: RowTable, codes: tuple[Any, Any], out: Any) -> None:
    """Decode all columns of a table into `out`, (n, d) fp32, segment by segment."""
    import torch

    encoding, scales = table.encoding, table.scales
    assert encoding is not None
    assert scales is not None
    for k, (start, stop) in enumerate(zip(table.starts[:-1].tolist(), table.starts[1:].tolist(), strict=True)):
        implementation("decode", "triton")(
            torch.from_numpy(table.pointers[k].view(np.int64)),
            torch.from_numpy(np.ascontiguousarray(scales[:, k]).view(np.int64)),
            torch.from_numpy(encoding.formats[k].astype(np.int32)),
            codes,
            torch.from_numpy(encoding.origins[k]),
            out[:, start:stop],
        )
