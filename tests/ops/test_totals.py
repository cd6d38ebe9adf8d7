"""Statistics that go on from a total: tiles of columns give the bits of one pass, and a Gram grows as rows arrive."""

from __future__ import annotations

import importlib
from itertools import pairwise

import numpy as np
import pytest
from inputs import make_rows, same_bits

import fedcore as fc
from fedcore import backends
from fedcore.dtypes import round_from_float64, to_float64
from fedcore.errors import DTypeError, ShapeError
from fedcore.rowtable import RowTable

WIDTH = 8192
PAIRS = np.array([[0, 1], [4, 2], [3, 3], [2, 0], [1, 4]])


def _implementations() -> list[str]:
    if backends.unavailable("c"):
        return ["reference"]
    from fedcore.native import isa_available

    return ["reference", *isa_available()]


@pytest.fixture(params=_implementations())
def function(request, monkeypatch):
    """(op) -> its function on the reference, then on every instruction set of the C kernels."""
    if request.param != "reference":
        monkeypatch.setenv("FEDCORE_ISA", request.param)
    package = "fedcore.reference" if request.param == "reference" else "fedcore.native"
    return lambda op: getattr(importlib.import_module(f"{package}.{op}"), op)


def tiles(rows: list[np.ndarray], widths: tuple[int, ...]) -> list[RowTable]:
    cuts = [*np.cumsum((0, *widths)), rows[0].size]
    return [RowTable.from_arrays([row[a:b] for row in rows]) for a, b in pairwise(cuts)]


@pytest.mark.parametrize("widths", [(WIDTH,), (2 * WIDTH, WIDTH), (3 * WIDTH, 0)])
@pytest.mark.parametrize("centered", [False, True])
def test_tiles_give_the_bits_of_one_pass(function, dtype, widths, centered):
    rows, middle = make_rows(5, 3 * WIDTH + 77, dtype), make_rows(1, 3 * WIDTH + 77, "float32", seed=5)
    whole = RowTable.from_arrays(rows)
    for op in ("gram", "squared_norms", "squared_distances"):
        one_pass = function(op)(*arguments(op, whole, RowTable.from_arrays(middle) if centered else None))
        total = np.zeros_like(one_pass)
        for tile, center in zip(tiles(rows, widths), tiles(middle, widths), strict=True):
            call = arguments(op, tile, center if centered else None)
            assert function(op)(*call, total=total, threads=2) is total
        assert same_bits(total, one_pass), op


def arguments(op: str, rows: RowTable, center: RowTable | None) -> tuple:
    return (rows, PAIRS) if op == "squared_distances" else (rows, center)


def test_a_total_is_added_to(function):
    table = RowTable.from_arrays(make_rows(5, 300, "float32"))
    for op in ("gram", "squared_norms", "squared_distances"):
        alone = function(op)(*arguments(op, table, None))
        assert same_bits(function(op)(*arguments(op, table, None), total=np.ones_like(alone)), 1.0 + alone)


@pytest.mark.parametrize("first", [0, 1, 7, 8, 15, 16, 17, 31, 32, 33, 40])
def test_later_rows_alone_are_formed(function, first):
    """Entries of two earlier rows are left as they were; the others are those of the whole matrix."""
    table = RowTable.from_arrays(make_rows(40, 9000, "float32"))
    center = RowTable.from_arrays(make_rows(1, 9000, "float16", seed=1))
    whole = function("gram")(table, center)
    before = np.full((40, 40), 0.5)
    got = function("gram")(table, center, total=before.copy(), first=first, threads=2)
    expected = whole + 0.5
    expected[:first, :first] = 0.5
    assert same_bits(got, expected)


def test_a_gram_built_as_rows_arrive_has_the_bits_of_one_pass(compiled):
    """One row at a time, in an order of their own, each against the rows before it: an entry depends on its pair."""
    from fedcore.native.gram import gram

    rows, center = (
        make_rows(37, 9000, "float32", spread=1.0),
        RowTable.from_arrays(make_rows(1, 9000, "float32", seed=1)),
    )
    arrival, built = np.random.default_rng(0).permutation(37), np.zeros((37, 37))
    for k in range(37):
        part = np.zeros((k + 1, k + 1))
        part[:k, :k] = built[:k, :k]
        built[: k + 1, : k + 1] = gram(
            RowTable.from_arrays([rows[i] for i in arrival[: k + 1]]), center, total=part, first=k
        )
    whole = gram(RowTable.from_arrays(rows), center)
    assert same_bits(built, np.ascontiguousarray(whole[np.ix_(arrival, arrival)]))


def test_an_entry_does_not_depend_on_the_other_rows(compiled, dtype):
    """Neither on their values, however large or small, nor on their number."""
    from fedcore.native.gram import gram

    rows = make_rows(40, 9000, dtype, spread=1.0)
    scales = [1e-7, 3.0] if dtype == "float16" else [1e25, 1e-30]
    wild = [
        round_from_float64(to_float64(row) * scale, dtype) for row, scale in zip(rows[:20], scales * 10, strict=True)
    ]
    alone = gram(RowTable.from_arrays(rows[30:]))
    assert same_bits(np.ascontiguousarray(gram(RowTable.from_arrays(wild + rows[20:]))[30:, 30:]), alone)
    assert same_bits(np.ascontiguousarray(gram(RowTable.from_arrays(rows[29:]))[1:, 1:]), alone)


def frozen(shape: tuple[int, ...]) -> np.ndarray:
    """Zeros in memory that nobody may write to."""
    return np.frombuffer(bytes(8 * int(np.prod(shape)))).reshape(shape)


WRONG = {
    "its shape": (lambda shape: np.zeros((*shape[:-1], shape[-1] - 1)), ShapeError, "got shape"),
    "its dtype": (lambda shape: np.zeros(shape, np.float32), DTypeError, "got float32, expected a NumPy array of fl"),
    "a list": (lambda shape: np.zeros(shape).tolist(), DTypeError, "got list, expected a NumPy array of float64"),
    "read-only": (frozen, ShapeError, "read-only or with gaps"),
    "gaps": (lambda shape: np.zeros((*shape, 2))[..., 0], ShapeError, "read-only or with gaps"),
    "misaligned": (lambda shape: misaligned(np.zeros(shape)), ShapeError, "read-only or with gaps"),
}


def misaligned(array: np.ndarray) -> np.ndarray:
    """The same, a byte beside where its dtype wants to lie."""
    memory = np.zeros(array.nbytes + 1, np.uint8)
    copy = memory[1:].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


@pytest.mark.parametrize("wrong", sorted(WRONG))
@pytest.mark.parametrize("backend", ["reference", "c"])
def test_a_total_that_does_not_fit_is_refused_and_stays(compiled, wrong, backend):
    make, error, words = WRONG[wrong]
    rows = make_rows(3, 10, "float32")
    for op, shape, more in (
        (fc.ops.gram, (3, 3), ()),
        (fc.ops.squared_norms, (3,), ()),
        (fc.ops.squared_distances, (5,), ([[0, 1]] * 5,)),
    ):
        total = make(shape)
        with pytest.raises(error, match=f"total: .*{words}"):
            op(rows, *more, total=total, backend=backend)
        assert not np.any(total)


@pytest.mark.parametrize("first", [-1, 4, 1.5])
@pytest.mark.parametrize("backend", ["reference", "c"])
def test_a_first_row_that_is_none_is_refused(compiled, backend, first):
    with pytest.raises(ShapeError, match=f"first: got {first}, expected a whole number from 0 to 3"):
        fc.ops.gram(make_rows(3, 10, "float32"), first=first, backend=backend)


def test_pairs_and_mixtures_at_any_alignment(compiled):
    rows, mix = make_rows(5, 100, "float32"), np.random.default_rng(0).normal(size=(5, 5))
    expected = fc.ops.squared_distances(rows, PAIRS, mix=mix, backend="reference")
    got = fc.ops.squared_distances(rows, misaligned(PAIRS), mix=misaligned(mix), **compiled)
    assert same_bits(got, expected)
