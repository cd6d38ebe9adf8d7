"""Rows in other formats: every op gives the bits of the same op on the decoded rows, on every ISA, from any piece."""

from __future__ import annotations

import numpy as np
import pytest
from inputs import make_rows, same_bits

import fedcore as fc
from fedcore.dtypes import to_float64
from fedcore.encoding import FORMATS, Encoding
from fedcore.errors import DTypeError, NonFiniteError, ShapeError
from fedcore.quantized import Quantized
from fedcore.rowtable import RowTable

#: around bytes, blocks, vectors, decoded stretches, the norm's block, gram's chunk and weighted_sum's tile
SIZES = (0, 1, 2, 15, 16, 17, 63, 64, 65, 127, 129, 1023, 1024, 1025, 4097, 8193, 32769, 32768 * 2 + 37)
WEIGHTS = (0.5, -2.0, 3.0, 0.0, 1.25, 7.0, -0.125)


def mixed(format: str, n: int, d: int, seed: int = 0) -> tuple[list, list[np.ndarray]]:
    """(rows in a format, some of other formats where it is 'mixed'; the fp32 rows that they decode to)."""
    given = make_rows(n, d, "float32", seed, spread=1.0)
    kinds = ["nf4", "float32", "int8", "bfloat16", "float16"] if format == "mixed" else [format]
    rows = []
    for i, row in enumerate(given):
        kind = kinds[i % len(kinds)]
        if kind in ("int8", "nf4"):
            rows.append(Quantized.from_array(row, kind))
        else:
            rows.append(make_rows(1, d, kind, seed + i, spread=1.0)[0])
    decoded = [row.to_float32() if isinstance(row, Quantized) else to_float64(row).astype(np.float32) for row in rows]
    return rows, decoded


@pytest.fixture(params=["int8", "nf4", "mixed"])
def format(request) -> str:
    return request.param


@pytest.mark.parametrize("d", SIZES)
def test_same_bits_as_on_decoded_rows(compiled, format, d):
    rows, decoded = mixed(format, 7, d)
    pairs = [[0, 1], [2, 6], [3, 3]]
    for threads in (1, 3):
        options = {"threads": threads, **compiled}
        for center, middle in ((None, None), (rows[4], decoded[4]), (decoded[0], decoded[0])):
            norms = fc.ops.squared_norms(rows, center, **options)
            assert same_bits(norms, fc.ops.squared_norms(decoded, middle, **options))
            assert same_bits(fc.ops.gram(rows, center, **options), fc.ops.gram(decoded, middle, **options))
        for out_dtype in ("float32", "bfloat16", "float64"):
            total = fc.ops.weighted_sum(rows, WEIGHTS, 3.7, out_dtype=out_dtype, **options)
            assert same_bits(total, fc.ops.weighted_sum(decoded, WEIGHTS, 3.7, out_dtype=out_dtype, **options))
        distances = fc.ops.squared_distances(rows, pairs, **options)
        assert same_bits(distances, fc.ops.squared_distances(decoded, pairs, **options))


@pytest.mark.parametrize("n", [1, 4, 5, 6, 17, 33])
def test_same_bits_for_every_group_of_rows(compiled, format, n):
    rows, decoded = mixed(format, n, 3000)
    weights = np.random.default_rng(2).normal(size=n)
    assert same_bits(fc.ops.weighted_sum(rows, weights, **compiled), fc.ops.weighted_sum(decoded, weights, **compiled))
    assert same_bits(fc.ops.gram(rows, **compiled), fc.ops.gram(decoded, **compiled))


def column_ops(rows, center=None, **options) -> list[np.ndarray]:
    """What each op whose columns do not depend on one another gives."""
    weights = np.random.default_rng(3).normal(size=(11, len(rows)))
    return [
        fc.ops.median(rows, **options),
        fc.ops.trimmed_mean(rows, 1, **options),
        fc.ops.mean_around_median(rows, 2, **options),
        fc.ops.weighted_sums(rows, weights, **options),
        fc.ops.weighted_sums(rows, weights[:2], **options),
        fc.ops.sign_counts(rows, center, **options),
    ]


@pytest.mark.parametrize(("n", "d"), [(5, 0), (5, 1), (5, 65), (5, 1025), (40, 5000)])
def test_same_bits_column_by_column(compiled, format, n, d):
    rows, decoded = mixed(format, n, d)
    for i, middle in ((None, None), (1, decoded[1])):
        found = column_ops(rows, None if i is None else rows[i], threads=2, **compiled)
        for one, other in zip(found, column_ops(decoded, middle, threads=2, **compiled), strict=True):
            assert same_bits(one, other)


def test_an_exact_sum_of_encoded_rows(compiled, format):
    rows, decoded = mixed(format, 5, 5000)
    one, other = fc.ops.ExactSum(5000, **compiled), fc.ops.ExactSum(5000, **compiled)
    for row, wide in zip(rows, decoded, strict=True):
        one.add(RowTable.from_arrays([row]), 3.0)
        other.add(wide, 3.0)
    assert same_bits(one.result(), other.result())


def test_reference_decodes_too(format):
    rows, decoded = mixed(format, 5, 5000)
    for op in (fc.ops.squared_norms, fc.ops.gram):
        assert same_bits(op(rows, backend="reference"), op(decoded, backend="reference"))
    weights = WEIGHTS[:5]
    expected = fc.ops.weighted_sum(decoded, weights, backend="reference")
    assert same_bits(fc.ops.weighted_sum(rows, weights, backend="reference"), expected)


def test_every_code_of_both_formats(compiled):
    """All 256 bytes in payload and absmax; −128 too, which no quantiser here writes."""
    every, rng = np.arange(256, dtype=np.uint8), np.random.default_rng(0)
    size = 64 * 256
    nested, offset = np.float32([0.37]), np.float32([1.03])
    nf4 = Quantized("nf4", (size,), np.tile(every, size // 512), (rng.permutation(every), nested, offset))
    absmax = rng.lognormal(size=256).astype(np.float32)
    int8 = Quantized("int8", (size,), np.tile(every.view(np.int8), size // 256), (absmax,))
    for row in (nf4, int8):
        assert same_bits(fc.ops.weighted_sum([row], [1.0], **compiled), row.to_float32() + np.float32(0))


def test_subnormal_and_huge_scales(compiled):
    absmax = np.float32([1e-45, 1e-40, 3e38, 0.0, 127.0])
    codes = np.random.default_rng(0).integers(-127, 128, 64 * 5).astype(np.int8)
    row = Quantized("int8", (320,), codes, (absmax,))
    assert same_bits(fc.ops.weighted_sum([row], [1.0], **compiled), row.to_float32() + np.float32(0))
    assert same_bits(fc.ops.gram([row, row], **compiled), fc.ops.gram([row.to_float32()] * 2, **compiled))


@pytest.mark.parametrize("offset", [0, 1, 3, 5])
def test_pieces_at_any_alignment_cut_anywhere(compiled, format, offset):
    """A row in three tensors of formats of their own, at odd addresses, of which a range of columns counts."""
    lengths = (1000, 65, 2049)
    parts = [mixed(format, 4, length, seed=k) for k, length in enumerate(lengths)]
    table, decoded = (
        assembled([rows for rows, _ in parts], offset),
        [np.concatenate([found[i] for _, found in parts]) for i in range(4)],
    )
    for low, high in ((0, 3114), (1, 3113), (63, 1066), (999, 1001), (1010, 1050), (1064, 3000), (1500, 1500)):
        cut, expected = table.slice(low, high), [row[low:high] for row in decoded]
        if high == low:
            assert (cut.n, cut.d) == (4, 0)
            continue
        assert same_bits(fc.ops.weighted_sum(cut, WEIGHTS[:4], **compiled), fc.ops.weighted_sum(expected, WEIGHTS[:4]))
        assert same_bits(fc.ops.squared_norms(cut, **compiled), fc.ops.squared_norms(expected))
        assert same_bits(cut.take([2]).columns(0, 0, cut.d), expected[2])
        again = cut.slice(1, cut.d)
        assert same_bits(fc.ops.gram(again, **compiled), fc.ops.gram([row[1:] for row in expected], **compiled))


def assembled(segments: list[list], offset: int) -> RowTable:
    """One buffer a row, in which the arrays of its segments follow each other at odd addresses."""
    n = len(segments[0])
    lengths = [rows[0].size for rows in segments]
    offsets, scales = np.zeros((len(segments), n), np.int64), np.zeros((3, len(segments), n), np.int64)
    formats, buffers = np.zeros((len(segments), n), np.uint8), []
    for i in range(n):
        blob = b"\xff" * offset
        for k, rows in enumerate(segments):
            row = rows[i]
            arrays = (row.payload, *row.scales) if isinstance(row, Quantized) else (row,)
            name = row.format if isinstance(row, Quantized) else {4: "float32"}.get(row.itemsize)
            formats[k, i] = FORMATS[name or ("float16" if row.dtype == np.float16 else "bfloat16")]
            starts = []
            for array in arrays:
                starts.append(len(blob))
                blob += array.tobytes() + b"\xff"
            offsets[k, i], scales[: len(starts) - 1, k, i] = starts[0], starts[1:]
        buffers.append(blob)
    encoding = Encoding(formats, scales, np.zeros(formats.shape, np.int64))
    return RowTable(buffers, offsets, np.array(lengths), "float32", encoding)


def test_plain_rows_follow_encoded_ones(compiled):
    rows, decoded = mixed("nf4", 3, 500)
    plain = make_rows(2, 500, "bfloat16")
    both = RowTable.from_arrays(rows).extend(RowTable.from_arrays(plain))
    expected = [*decoded, *(to_float64(row).astype(np.float32) for row in plain)]
    assert same_bits(fc.ops.gram(both, **compiled), fc.ops.gram(expected, **compiled))
    other_way = RowTable.from_arrays(plain).extend(RowTable.from_arrays(rows)).take([2, 3, 4, 0, 1])
    assert same_bits(fc.ops.gram(other_way, **compiled), fc.ops.gram(expected, **compiled))
    with pytest.raises(ShapeError, match="cannot follow"):
        both.extend(RowTable.from_arrays(make_rows(1, 499, "float32")))


@pytest.mark.parametrize("scale", [np.nan, np.inf])
def test_scales_that_are_not_finite_are_named_with_row_and_column(compiled, scale):
    rows, _ = mixed("int8", 3, 1000)
    absmax = rows[1].scales[0].copy()
    absmax[5] = scale
    rows[1] = Quantized("int8", (1000,), rows[1].payload, (absmax,))
    for work in (
        lambda: fc.ops.weighted_sum(rows, [1, 1, 1], **compiled),
        lambda: fc.ops.squared_norms(rows, **compiled),
        lambda: fc.ops.gram(rows, **compiled),
    ):
        with pytest.raises(NonFiniteError, match=r"row 1 holds .* at column 32\d") as caught:
            work()
        assert caught.value.row == 1
    quantised, _ = mixed("nf4", 2, 1000)
    nested = Quantized("nf4", (1000,), quantised[0].payload, (*quantised[0].scales[:2], np.float32([scale])))
    with pytest.raises(NonFiniteError, match=r"row 0 holds .* at column 0"):
        fc.ops.squared_norms([nested, quantised[1]], **compiled)


def test_tables_that_leave_their_buffers_are_refused():
    row = Quantized.from_array(make_rows(1, 200, "float32")[0], "nf4")
    buffer, starts = row.joined()
    formats, origins = np.full((1, 1), FORMATS["nf4"], np.uint8), np.zeros((1, 1), np.int64)

    def table(payload=starts[0], scales=starts[1:], length=200, origin=0, size=buffer.size):
        encoding = Encoding(formats, np.array(scales, np.int64).reshape(3, 1, 1), origins + origin)
        return RowTable([buffer[:size]], np.array([[payload]]), np.array([length]), "float32", encoding)

    assert table().columns(0, 0, 200).size == 200
    for at, words in ((0, "absmax of segment 0 of row 0"), (1, "nested absmax of"), (2, "offset of")):
        for bad in (-1, buffer.size, 1 << 62):
            with pytest.raises(ShapeError, match=f"{words}.* ends past its buffer"):
                table(scales=[bad if k == at else start for k, start in enumerate(starts[1:])])
    for bad in ({"payload": -1}, {"payload": buffer.size}, {"length": 1 << 62}, {"length": -1}, {"origin": 1 << 62}):
        with pytest.raises(ShapeError, match="segment 0 of row 0 ends past its buffer"):
            table(**bad)
    with pytest.raises(ShapeError, match="ends past its buffer"):
        table(size=buffer.size - 8)
    unknown = Encoding(np.full((1, 1), 3, np.uint8), np.zeros((3, 1, 1), np.int64), origins)
    with pytest.raises(DTypeError, match="a format is unknown"):
        RowTable([buffer], np.zeros((1, 1)), np.array([8]), "float32", unknown)
    with pytest.raises(DTypeError, match="got float16 with an encoding, expected float32"):
        RowTable([buffer], np.zeros((1, 1)), np.array([8]), "float16", table().encoding)


def test_output_over_the_scales_is_refused():
    row = Quantized.from_array(make_rows(1, 64 * 64, "float32")[0], "int8")
    buffer, starts = row.joined()
    inside = buffer[starts[1] : starts[1] + 256].view(np.float32)
    table = RowTable.from_arrays([row, row]).slice(0, 64)
    with pytest.raises(ShapeError, match="out: it overlaps row 0"):
        fc.ops.weighted_sum(table, [1, 1], out=inside)


def test_rows_of_other_shapes_are_named():
    row = Quantized.from_array(np.zeros((4, 5), np.float32), "int8")
    with pytest.raises(ShapeError, match=r"row 0: got shape \(4, 5\), expected \(20,\)"):
        fc.ops.squared_norms([row])
    with pytest.raises(DTypeError, match="row 1: got float64"):
        fc.ops.squared_norms([Quantized.from_array(np.zeros(5, np.float32), "int8"), np.zeros(5)])
