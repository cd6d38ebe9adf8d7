"""What every order statistic must hold to, checked for one op at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
import pytest
from inputs import from_bits, make_rows, same_bits

import fedcore as fc
from fedcore.dtypes import bf16_bits, to_float64
from fedcore.errors import DTypeError, NonFiniteError, RangeError, ShapeError
from fedcore.rowtable import RowTable

OUT = ("float32", "float64", "float16", "bfloat16")
#: every leaf, the merges around it, and sizes far apart
FEW = (*range(1, 41), 63, 64, 65, 66, 100)
MANY = (129, 257, 1000, 1025)
#: lanes of every ISA and dtype, the driver's tile, its items
WIDTHS = (0, 1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 511, 512, 513, 1023, 1025, 8193)
#: Inf, −Inf, NaN of both signs, quiet and signalling
NON_FINITE = {
    "float32": (0x7F800000, 0xFF800000, 0x7FC00000, 0xFFC00000, 0x7F800001, 0xFFFFFFFF),
    "float16": (0x7C00, 0xFC00, 0x7E00, 0xFE00, 0x7C01, 0xFFFF),
    "bfloat16": (0x7F80, 0xFF80, 0x7FC0, 0xFFC0, 0x7F81, 0xFFFF),
}


def call(op: str, rows, f: int | None, **options) -> np.ndarray:
    return getattr(fc.ops, op)(rows, *([] if f is None else [f]), **options)


def check_same_bits(op: str, rows, f: int | None, compiled: dict, out_dtypes: Iterable[str] = OUT, threads=1) -> None:
    for out_dtype in out_dtypes:
        expected = by_definition(op, rows, f, out_dtype)
        got = call(op, rows, f, out_dtype=out_dtype, threads=threads, **compiled)
        assert same_bits(got, expected), (op, f, out_dtype, len(rows))


#: what the definition gives, by what it is asked: each ISA and thread count compares with the same
KNOWN: dict[tuple, np.ndarray] = {}


def by_definition(op: str, rows: list[np.ndarray], f: int | None, out_dtype: str) -> np.ndarray:
    """The NumPy reference's result, computed once for the same bits."""
    bits = hashlib.sha256(b"".join(row.tobytes() for row in rows)).digest()
    asked = (op, f, out_dtype, len(rows), rows[0].dtype.str, bits)
    if asked not in KNOWN:
        KNOWN[asked] = call(op, rows, f, out_dtype=out_dtype, backend="reference")
    return KNOWN[asked]


def hard_rows(n: int, d: int, dtype: str, seed: int = 0) -> list[np.ndarray]:
    """Ties, duplicated rows, both zeros, subnormals and numbers near the greatest, each where another might hide it."""
    rng = np.random.default_rng(seed)
    exponents, mantissa = {"float32": (255, 23), "float16": (31, 10), "bfloat16": (255, 7)}[dtype]
    wild = rng.integers(0, exponents, (n, d)) << mantissa | rng.integers(0, 1 << mantissa, (n, d))
    few = np.array([0, 1, 2, (1 << mantissa) - 1, exponents // 2 << mantissa, (exponents << mantissa) - 1])
    bits = np.where(rng.random((n, d)) < 0.5, wild, rng.choice(few, (n, d)))
    bits |= rng.integers(0, 2, (n, d)) << (31 if dtype == "float32" else 15)
    rows = [from_bits(row.tolist(), dtype) for row in bits]
    return [rows[int(rng.integers(0, i + 1))] if rng.random() < 0.2 else row for i, row in enumerate(rows)]


def check_permutation(op: str, f: int | None, n: int, dtype: str, compiled: dict) -> None:
    rows = make_rows(n, 100, dtype, seed=n)
    expected = call(op, rows, f, out_dtype="float64", **compiled)
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(n)
        assert same_bits(call(op, [rows[i] for i in order], f, out_dtype="float64", **compiled), expected)


def check_segments_and_alignment(op: str, f: int | None, n: int, dtype: str, compiled: dict) -> None:
    """Rows at odd addresses, in pieces as short as one column, give the bits of the rows in one piece."""
    rows = make_rows(n, 1700, dtype, seed=3)
    expected = call(op, rows, f, **compiled)
    size = rows[0].itemsize
    lengths = np.array([1, 0, 3, 33, 620, 43, 1000])
    for shift in (0, 1, 3):
        buffers, offsets = [], np.zeros((len(lengths), n), np.int64)
        for i, row in enumerate(rows):
            raw, blob, column = row.tobytes(), bytearray(), 0
            for k, length in enumerate(lengths):
                blob += bytes(shift)
                offsets[k, i] = len(blob)
                blob += raw[column * size : (column + int(length)) * size]
                column += int(length)
            buffers.append(bytes(blob))
        table = RowTable(buffers, offsets, lengths, dtype)
        assert same_bits(call(op, table, f, threads=2, **compiled), expected), shift


def check_output(op: str, f: int | None, compiled: dict) -> None:
    """Any alignment of `out`, and one large enough to bypass the cache."""
    rows = make_rows(3, (4 << 20) // 4 + 77, "float32", spread=0.1)
    expected = call(op, rows, f, backend="reference")
    for start in (0, 1, 4):
        out = np.full(expected.size + 8, 7, np.float32)
        view = out[start : start + expected.size]
        assert call(op, rows, f, out=view, threads=2, **compiled) is view
        assert same_bits(view.copy(), expected)
        assert (out[:start] == 7).all()
        assert (out[start + expected.size :] == 7).all()


def check_zeros_are_positive(op: str, f: int | None, n: int, dtype: str, compiled: dict) -> None:
    """A zero result is +0, whether it was −0 or a negative number too small for the output."""
    sign = 0x80000000 if dtype == "float32" else 0x8000
    for rows in ([from_bits([sign] * 70, dtype)] * n, [from_bits([sign, 0] * 35, dtype)] * n):
        for out_dtype in OUT:
            got = call(op, rows, f, out_dtype=out_dtype, **compiled)
            assert not to_float64(got).any()
            assert not np.signbit(to_float64(got)).any()
    if dtype == "float16":
        return  # fp16 has no number that a narrower output would lose
    tiny = [from_bits([sign | 1] * 70, dtype)] * n
    got = call(op, tiny, f, out_dtype="float16", **compiled)
    assert not got.view(np.uint16).any()


def check_subnormals(op: str, f: int | None, n: int, dtype: str, compiled: dict) -> None:
    rows = [from_bits([1 + (i * 7) % n] * 70, dtype) for i in range(n)]
    check_same_bits(op, rows, f, compiled)
    got = call(op, rows, f, out_dtype=dtype, **compiled)
    bits = bf16_bits(got) if dtype == "bfloat16" else got.view(np.uint32 if dtype == "float32" else np.uint16)
    assert (bits > 0).all()


def check_non_finite_is_named(op: str, f: int | None, n: int, dtype: str, compiled: dict) -> None:
    """One bad element among n rows, anywhere, is found and named, also where it would not have counted."""
    rows = make_rows(n, 100, dtype)
    for turn, bits in enumerate(NON_FINITE[dtype]):
        for column in (0, 31, 64, 99):
            row = (turn * 7 + column) % n
            bad = rows[row].copy()
            bad[column] = from_bits([bits], dtype)[0]
            with pytest.raises(NonFiniteError, match=rf"{op}: row {row} holds .* at column {column}") as caught:
                call(op, [*rows[:row], bad, *rows[row + 1 :]], f, **compiled)
            assert (caught.value.row, caught.value.column) == (row, column)


def check_non_finite_at_every_row(op: str, f: int | None, n: int, dtype: str, compiled: dict) -> None:
    rows = make_rows(n, 64, dtype)
    for row in range(n):
        for bits in NON_FINITE[dtype][:3]:
            bad = rows[row].copy()
            bad[row % 64] = from_bits([bits], dtype)[0]
            with pytest.raises(NonFiniteError, match=rf"row {row} holds .* at column {row % 64};"):
                call(op, [*rows[:row], bad, *rows[row + 1 :]], f, **compiled)


def check_bad_arguments(op: str, f: int | None) -> None:
    rows = make_rows(3, 10, "float32")
    with pytest.raises(ShapeError, match="out: it overlaps row 2"):
        call(op, rows, f, out=rows[2])
    with pytest.raises(ShapeError, match=r"out: got shape \(9,\)"):
        call(op, rows, f, out=np.empty(9, np.float32))
    with pytest.raises(RangeError, match="threads: got 0"):
        call(op, rows, f, threads=0)
    with pytest.raises(DTypeError, match="expected one of"):
        call(op, rows, f, out_dtype="int8")
    with pytest.raises(ShapeError, match="got none"):
        call(op, [], f)


def check_flush_mode(op: str, f: int | None, compiled: dict) -> None:
    """A caller that flushes subnormals changes no bit, and finds its mode as it was."""
    torch = pytest.importorskip("torch", reason="the caller's flush mode is set through torch")
    rows = [from_bits([1 + i, 0x80000003 + i, 0x7FFFFF - i, 5] * 300, "float32") for i in range(5)]
    expected = call(op, rows, f, **compiled)
    assert torch.set_flush_denormal(True)
    try:
        got = call(op, rows, f, threads=2, **compiled)
        still_flushing = bool(torch.tensor([1e-42]) * 1.0 == 0)
    finally:
        torch.set_flush_denormal(False)
    assert same_bits(got, expected)
    assert np.abs(to_float64(got)).min() > 0
    assert still_flushing


def check_torch(op: str, f: int | None) -> None:
    torch = pytest.importorskip("torch", reason="checks torch inputs")
    rows = torch.randn(4, 1000).bfloat16()
    got = call(op, rows, f, out_dtype=torch.float32)
    assert got.dtype == torch.float32
    plain = [fc.bf16(row.view(torch.int16).numpy().view(np.uint16)) for row in rows]
    assert same_bits(got.numpy(), call(op, plain, f, backend="reference"))
