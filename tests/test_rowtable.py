"""RowTable: rows in segments, wherever they lie."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fedcore as fc
from fedcore.dtypes import BF16, STORAGE, bf16_bits
from fedcore.encoding import FORMATS, Encoding
from fedcore.errors import DTypeError, ShapeError
from fedcore.rowtable import RowTable


def unaligned(values: np.ndarray, offset: int) -> bytes:
    """A buffer that holds the values from an odd byte on."""
    return b"\xff" * offset + values.tobytes() + b"\xff"


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_segments_are_views_at_any_alignment(dtype):
    values = np.arange(12, dtype=np.uint16).view(BF16) if dtype == "bfloat16" else np.arange(12).astype(dtype)
    item = STORAGE[dtype].itemsize
    buffers = [unaligned(values, 1), unaligned(values, 3)]
    offsets = np.array([[1 + 4 * item, 3 + 4 * item], [1, 3]])
    table = RowTable(buffers, offsets, np.array([8, 4]), dtype)
    assert (table.n, table.d, table.nbytes) == (2, 12, 24 * item)
    for row in range(2):
        assert table.segment(row, 0).tobytes() == values[4:].tobytes()
        assert table.segment(row, 1).tobytes() == values[:4].tobytes()
        assert table.segment(row, 0).ctypes.data == int(table.pointers[0, row])


@given(
    lengths=st.lists(st.integers(0, 5), min_size=1, max_size=5),
    cut=st.tuples(st.integers(0, 25), st.integers(0, 25)),
)
def test_columns_are_those_of_the_joined_row(lengths, cut):
    whole = np.arange(sum(lengths), dtype=np.float32)
    starts = np.concatenate(([0], np.cumsum(lengths)[:-1]))
    order = np.arange(len(lengths))[::-1]  # segments lie in the buffer in another order than they count
    where, parts, position = np.zeros(len(lengths), np.int64), [], 0
    for k in order:
        where[k], position = position, position + lengths[k] * 4
        parts.append(whole[starts[k] : starts[k] + lengths[k]])
    table = RowTable([np.concatenate(parts)], where[:, None], np.array(lengths), "float32")
    start, stop = sorted(min(c, len(whole)) for c in cut)
    np.testing.assert_array_equal(table.columns(0, start, stop), whole[start:stop])
    np.testing.assert_array_equal(table.sample([(start, stop), (0, start)]), [[*whole[start:stop], *whole[:start]]])


def test_columns_inside_one_segment_are_not_copied():
    row = np.arange(10, dtype=np.float32)
    assert np.shares_memory(RowTable.from_arrays([row]).columns(0, 2, 5), row)


def test_take_and_extend_keep_order():
    rows = [np.full(3, i, np.float32) for i in range(4)]
    table = RowTable.from_arrays(rows)
    assert [table.take([2, 0]).columns(i, 0, 1)[0] for i in range(2)] == [2, 0]
    both = table.take([1]).extend(table.take(np.array([3])))
    assert [both.columns(i, 0, 1)[0] for i in range(both.n)] == [1, 3]
    assert both.pointers[0, 1] == rows[3].ctypes.data


def test_extend_refuses_other_segments_and_dtypes():
    table = RowTable.from_arrays([np.zeros(4, np.float32)])
    with pytest.raises(ShapeError, match=r"3 columns of float32 .* cannot follow 4 .*; expected the same segments"):
        table.extend(RowTable.from_arrays([np.zeros(3, np.float32)]))
    with pytest.raises(ShapeError, match="4 columns of float16"):
        table.extend(RowTable.from_arrays([np.zeros(4, np.float16)]))


@pytest.mark.parametrize(
    ("offset", "length"), [(0, 5), (4, 4), (1, 4), (-1, 1), (0, -1), (0, 2**62), (2**62, 2**62), (2**63 - 1, 0)]
)
def test_a_segment_outside_its_buffer_is_refused(offset, length):
    with pytest.raises(ShapeError, match=r"segment 1 of row 0 .* 16 bytes"):
        RowTable([bytes(16)] * 2, np.array([[0, 0], [offset, 0]]), np.array([1, length]), "float32")


def test_the_row_outside_its_buffer_is_named():
    with pytest.raises(ShapeError, match=r"segment 0 of row 1 .* 15 bytes; give all of it"):
        RowTable([bytes(16), bytes(15)], np.zeros((1, 2), np.int64), np.array([4]), "float32")


def test_every_wrong_row_is_named():
    good = np.zeros(4, np.float32)
    with pytest.raises(ShapeError, match="got none"):
        RowTable.from_arrays([])
    with pytest.raises(ShapeError, match=r"row 1: got shape \(3,\), expected \(4,\)"):
        RowTable.from_arrays([good, np.zeros(3, np.float32)])
    with pytest.raises(ShapeError, match=r"row 0: got shape \(2, 2\)"):
        RowTable.from_arrays([np.zeros((2, 2), np.float32)])
    with pytest.raises(DTypeError, match="row 1: got float16, expected float32"):
        RowTable.from_arrays([good, np.zeros(4, np.float16)])
    with pytest.raises(ShapeError, match="row 1: its elements are not contiguous"):
        RowTable.from_arrays([good, np.zeros(8, np.float32)[::2]])
    with pytest.raises(DTypeError, match="got float64"):
        RowTable.from_arrays([np.zeros(4)])
    with pytest.raises(ShapeError, match=r"offsets of shape \(1, 2\), expected \(1, 1\)"):
        RowTable([good], np.zeros((1, 2), np.int64), np.array([4]), "float32")


def test_empty_and_readonly_rows():
    assert RowTable.from_arrays([np.empty(0, np.float32)]).d == 0
    row = np.zeros(3, np.uint16).view(BF16)
    row.flags.writeable = False
    table = RowTable.from_arrays([row])
    assert table.dtype == "bfloat16"
    assert bf16_bits(table.columns(0, 0, 3)).tolist() == [0, 0, 0]


@given(
    lengths=st.lists(st.integers(0, 5), min_size=1, max_size=6),
    cut=st.tuples(st.integers(0, 30), st.integers(0, 30)),
    again=st.tuples(st.integers(0, 30), st.integers(0, 30)),
)
def test_a_slice_has_the_columns_of_the_rows_and_of_a_slice(lengths, cut, again):
    rows = [np.arange(sum(lengths), dtype=np.float32) + 100 * i for i in range(3)]
    offsets = 4 * np.concatenate(([0], np.cumsum(lengths)[:-1]))
    table = RowTable(rows, np.repeat(offsets[:, None], 3, 1), np.array(lengths), "float32")
    for bounds in (cut, again):
        start, stop = sorted(min(c, table.d) for c in bounds)
        expected = [table.columns(i, start, stop) for i in range(3)]
        table = table.slice(start, stop)
        assert (table.n, table.d) == (3, stop - start)
        for i in range(3):
            np.testing.assert_array_equal(table.columns(i, 0, table.d), expected[i])
            for k in np.flatnonzero(table.lengths):
                assert np.shares_memory(table.segment(i, k), rows[i])
                assert table.segment(i, k).ctypes.data == int(table.pointers[k, i])


def test_a_slice_is_read_by_the_kernels_at_any_alignment():
    import fedcore as fc

    values = np.random.default_rng(0).normal(size=(2, 50)).astype(np.float32)
    buffers = [unaligned(values[0], 1), unaligned(values[1], 3)]
    table = RowTable(buffers, np.array([[1, 3], [1 + 80, 3 + 80]]), np.array([20, 30]), "float32").slice(7, 43)
    got = fc.ops.weighted_sum(table, [1, 2], out_dtype="float64")
    np.testing.assert_array_equal(got, values[0, 7:43].astype(float) + 2 * values[1, 7:43].astype(float))


@pytest.mark.parametrize("bounds", [(-1, 2), (2, 1), (0, 4), (4, 4)])
def test_a_slice_outside_the_columns_is_refused(bounds):
    table = RowTable.from_arrays([np.zeros(3, np.float32)])
    with pytest.raises(ShapeError, match=rf"got columns {bounds[0]}:{bounds[1]}, expected a range within 0:3"):
        table.slice(*bounds)


@pytest.mark.parametrize("shape", [(1, 5), (4, 7), (3, 0), (2, 4096)])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_matrix_is_the_table_of_its_rows(shape, dtype):
    matrix = np.arange(np.prod(shape), dtype=dtype).reshape(shape)
    one, many = RowTable.from_matrix(matrix), RowTable.from_arrays(list(matrix))
    assert (one.n, one.d, one.dtype, one.nbytes) == (many.n, many.d, many.dtype, many.nbytes)
    if matrix.size:
        assert np.array_equal(one.pointers, many.pointers)
    last = shape[0] - 1
    for table in (one, one.take([last]), one.slice(shape[1] // 2, shape[1]), one.extend(many)):
        columns = matrix[:, shape[1] // 2 :] if table.d < shape[1] else matrix
        assert np.array_equal(table.columns(table.n - 1, 0, table.d), columns[last])
    wide = np.arange(2 * np.prod(shape), dtype=dtype).reshape(shape[0], -1)[:, : shape[1]]
    assert np.array_equal(RowTable.from_matrix(wide).columns(last, 0, shape[1]), wide[last])


def test_tensors_that_numpy_does_not_know_are_refused_by_name():
    torch = pytest.importorskip("torch", reason="they are torch's")
    ones = torch.ones(3, 4)
    for tensor in (ones.to(torch.float8_e4m3fn), ones.to(torch.complex64), ones.to(torch.int32)):
        with pytest.raises((DTypeError, ShapeError)):
            fc.ops.median(tensor)
    assert fc.ops.median(ones.to(torch.bfloat16)).tolist() == [1, 1, 1, 1]


def test_bytes_of_pieces_follow_their_format_and_saturate():
    formats = np.array([[FORMATS[name] for name in ("float32", "int8", "nf4")]], np.uint8)
    encoding = Encoding(formats, np.zeros((3, 1, 3), np.int64), np.array([[0, 64, 1]], np.int64))
    found = [np.where(used, size, 0)[0].tolist() for used, size in encoding.parts(np.array([65]))]
    assert found == [[260, 129, 33], [0, 12, 2], [0, 0, 4], [0, 0, 4]]
    absurd = encoding._replace(origins=np.full((1, 3), (1 << 63) - 1 - (1 << 60)))
    for _, size in absurd.parts(np.array([(1 << 63) - 1])):
        assert (size > 0).all()
    assert absurd.parts(np.array([(1 << 63) - 1]))[0][1].tolist() == [[1 << 62, 1 << 60, 1 << 59]]
