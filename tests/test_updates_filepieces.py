"""Rows in files that lie in several formats: read as they lie, and no more of them than the columns asked for."""

from __future__ import annotations

import numpy as np
import pytest

import fedcore as fc
from fedcore.quantized import BLOCK, NESTED
from fedcore.rules.budget import COLUMN, GRAIN, SLOTS
from fedcore.rules.files import FileExecutor, budget_for
from fedcore.updates.filepieces import BEYOND, RATES, EncodedFileRows, file_rows
from fedcore.updates.filerows import Descriptors, FileRows

UNIT = BLOCK * NESTED
#: tensors of one element and of many, whose borders fall on blocks, inside them, and inside bytes of NF4
SHAPES = {"a": (3 * UNIT + 77,), "b": (1,), "c": (0,), "d": (63, 3), "e": (UNIT,), "f": (2 * UNIT + 129,), "g": (5,)}
D = sum(int(np.prod(shape)) for shape in SHAPES.values())


@pytest.fixture(scope="module")
def sent(tmp_path_factory) -> tuple[list[fc.Update | None], np.ndarray]:
    """Updates in files, one in each format, one in memory, and zeros; and what they decode to."""
    folder, updates, rows = tmp_path_factory.mktemp("sent"), [], []
    for i, format in enumerate((None, "float16", "bfloat16", "int8", "nf4", "int8")):
        rng = np.random.default_rng(i)
        tensors = {name: rng.standard_normal(shape, np.float32) for name, shape in SHAPES.items()}
        one = fc.Update.from_tensors(tensors, client_id=f"client-{i}")
        one = one if format is None else one.quantize(format)
        path = folder / f"{i}.safetensors"
        path.write_bytes(one.to_bytes())
        updates.append(one if i == 5 else fc.Update.open(path))
        rows.append(np.concatenate([tensor.ravel() for tensor in one.tensors.values()]))
    return [*updates, None], np.stack([*rows, np.zeros(D, np.float32)])


def rows_of(updates: list[fc.Update | None]) -> FileRows:
    layout = next(update.layout for update in updates if update is not None)
    [rows] = file_rows(updates, layout, [f"row {i}" for i in range(len(updates))])
    assert rows.tensors == tuple(SHAPES)
    return rows


def test_any_columns_have_the_bits_of_decoded_tensors_and_fit_their_room(sent):
    updates, expected = sent
    rows, rng = rows_of(updates), np.random.default_rng(0)
    assert isinstance(rows, EncodedFileRows)
    cuts = [(0, D), (0, 0), (D, D), (UNIT, 2 * UNIT), (UNIT - 1, UNIT + 1), (3 * UNIT + 76, 3 * UNIT + 79)]
    cuts += [tuple(sorted(rng.integers(0, D, 2).tolist())) for _ in range(60)]
    with Descriptors(rows, 3) as descriptors:
        for start, stop in cuts:
            buffers = np.full((rows.n, rows.room(stop - start)), 255, np.uint8)
            for row in range(rows.n):
                rows.fill(row, start, stop, buffers[row], descriptors)
            table = rows.table(list(buffers), range(rows.n), start, stop)
            assert (table.encoding is None, table.d, table.source) == (False, stop - start, "float32")
            for row in range(rows.n if stop > start else 0):
                assert table.columns(row, 0, table.d).tobytes() == expected[row, start:stop].tobytes(), (row, start)
            if stop > start:
                [one] = fc.ops.weighted_sums(table.take([4, 3]), [[2.0, -3.0]])
                assert one.tobytes() == fc.ops.weighted_sum(expected[[4, 3], start:stop], [2.0, -3.0]).tobytes()


@pytest.mark.parametrize(("row", "format"), [(1, "float16"), (3, "int8"), (4, "nf4")])
def test_no_more_is_read_than_the_blocks_that_hold_the_columns(sent, row, format):
    """What is read of a stretch that begins on a cut, and at most one block under one scale more elsewhere."""
    rows = rows_of(sent[0])
    unit = {"float16": 1, "int8": BLOCK, "nf4": UNIT}[format]
    for start, stop in ((0, UNIT), (UNIT, 3 * UNIT), (UNIT + 1, 2 * UNIT + 1), (2 * UNIT - 1, 3 * UNIT)):
        read = sum(size for _, _, size in rows.spans(row, start, stop))
        least = (stop - start) * RATES[format]
        assert least <= read <= least + (start % unit) * RATES[format] + BEYOND
    assert sum(size for _, _, size in rows.spans(row, 0, D)) == sent[0][row].layout.nbytes.sum()


def test_tiles_of_a_cohort_in_one_row_dtype_are_plain_and_of_others_lie_as_they_were_sent(sent):
    updates = sent[0]
    for some, encoded, itemsize in (
        ([updates[1]], False, 2),
        ([updates[0], None], False, 4),
        ([updates[3], updates[5]], True, 1.0625),
        ([updates[4]], True, RATES["nf4"]),
        ([updates[1], updates[2]], True, 2),
    ):
        given = [one for one in some if one is not None]
        references = {"reference": None} if None in some else {}
        executor = FileExecutor.from_files(
            fc.Cohort(given), references, [one.client_id for one in given], backend="c", threads=1
        )
        [part] = executor.parts
        assert part.itemsize == itemsize
        with executor.tiles(part, range(len(some)), "test") as tiles:
            for tile in tiles:
                assert (tile.rows.encoding is not None) == encoded
                assert tile.rows.nbytes <= len(some) * part.room(tile.rows.d)


@pytest.mark.parametrize("which", [(0,), (1,), (2,), (3,), (4,), (1, 2), (3, 4), (0, 4)])
@pytest.mark.parametrize("zeros", [False, True])
def test_the_least_budget_holds_the_narrowest_tiles_zeros_included(sent, which, zeros):
    """A row of zeros lies wider than one of NF4."""
    updates = [*(sent[0][k] for k in which), *([None] if zeros else [])]
    layout, rows = sent[0][which[0]].layout, rows_of(updates)
    budget = budget_for(layout, updates, None, 0, 1)
    assert budget.least - budget.held - GRAIN * COLUMN >= SLOTS * rows.n * rows.room(GRAIN)
    budget.total = budget.least
    assert budget.width(rows.n, rows.itemsize, rows.d) == min(GRAIN, rows.d)
