"""gram with AMX: exact integers, so a NumPy oracle gives its bits; the bound at its worst; machines that refuse it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from inputs import BLOCKS, LANES, make_rows, same_bits

import fedcore as fc
from fedcore.dtypes import round_from_float64, to_float64
from fedcore.errors import NonFiniteError

BLOCK, CHUNK = 512, 8192


def amx_runs() -> bool:
    from fedcore import backends

    if backends.unavailable("c"):
        return False
    from fedcore.native import isa_available

    return "amx" in isa_available()


@pytest.fixture
def amx(monkeypatch) -> dict:
    if not amx_runs():
        pytest.skip("this machine, its kernel or the compiler lacks AMX")
    monkeypatch.setenv("FEDCORE_ISA", "amx")
    return {"backend": "c"}


def digits(block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Base-256 digits (3, n, columns), highest first, of rows rounded to integers, and the rows' units (n,)."""
    peak = np.abs(block).max(axis=1, initial=0.0) * np.float32(1 + 2.0**-7)
    exponent = np.where(peak > 0, np.frexp(peak.astype(np.float64))[1] - 1, 0)
    values = np.rint(np.ldexp(block.astype(np.float64), 22 - exponent[:, None])).astype(np.int64)
    assert np.abs(values).max(initial=0) <= 127 * 65793
    low = (values + 128) % 256 - 128
    middle = ((values - low) // 256 + 128) % 256 - 128
    return np.stack([(values - low - 256 * middle) // 65536, middle, low]), np.ldexp(1.0, exponent - 22)


def integer_gram(rows: list[np.ndarray], center: np.ndarray | None = None) -> np.ndarray:
    """The definition in fedcore/reference/gram.py, for rows whose fp32 differences are finite."""
    x = np.stack([to_float64(row).astype(np.float32) for row in rows])
    if center is not None:
        x = x - to_float64(center).astype(np.float32)
    total = np.zeros((len(rows), len(rows)))
    for chunk in range(0, x.shape[1], CHUNK):
        folded = np.zeros_like(total)
        for start in range(chunk, min(chunk + CHUNK, x.shape[1]), BLOCK):
            (a, b, c), unit = digits(x[:, start : min(start + BLOCK, chunk + CHUNK)])
            high = 256 * (a @ a.T) + a @ b.T + b @ a.T
            low = a @ c.T + c @ a.T + b @ b.T + ((b @ c.T + c @ b.T + 128) >> 8)
            assert np.abs(high).max() < 2**31
            folded += (high * 256 + low).astype(np.float64) * 65536 * np.multiply.outer(unit, unit)
        total += folded
    return total


@pytest.mark.parametrize("d", [*LANES, *BLOCKS, 48, 511, 512, 513, 8191, 8192, 16384 + 65])
def test_the_bits_are_those_of_the_integers(amx, dtype, d):
    rows, center = make_rows(20, d, dtype), make_rows(1, d, "float16", seed=4)[0]
    for middle in (None, center):
        assert same_bits(fc.ops.gram(rows, middle, **amx), integer_gram(rows, middle))


@pytest.mark.parametrize("n", [*range(1, 41), 100, 257])
def test_every_number_of_rows(amx, n):
    rows = make_rows(n, 600, "float32", spread=1.0)
    got = fc.ops.gram(rows, rows[0], threads=2, **amx)
    assert same_bits(got, integer_gram(rows, rows[0]))
    assert same_bits(got, np.ascontiguousarray(got.T))


def exact_gram(rows: list[np.ndarray]) -> np.ndarray:
    x = np.stack([to_float64(row) for row in rows])
    return x @ x.T


def error_over_bound(got: np.ndarray, exact: np.ndarray) -> float:
    size = exact.diagonal()[:, None] + exact.diagonal()
    return float(np.max(np.abs(got - exact)[size > 0] / (fc.ops.gram_epsilon() / 4 * size[size > 0]), initial=0.0))


def test_the_bound_where_rounding_is_worst(amx):
    """One peak a block and every other column rounded by half a unit, the same way: error and bound in one size."""
    unit = 2.0**-22
    rows = []
    for level in (3, 1001, 40_000, 1 << 17, 1 << 20, 3 << 20):
        row = np.full(4 * BLOCK, (level + 0.5 - 2.0**-7) * unit)
        row[::BLOCK] = 1.0
        rows += [row.astype(np.float32), (-row).astype(np.float32)]
    worst = error_over_bound(fc.ops.gram(rows, **amx), exact_gram(rows))
    assert 0.02 < worst < 0.5  # under 57 of 130, and rounding is what is seen
    top = [np.full(BLOCK, 2.0 - 2.0**-k, np.float32) for k in range(1, 24)]  # magnitudes on both sides of the margin
    assert error_over_bound(fc.ops.gram(top, **amx), exact_gram(top)) < 0.5


@pytest.mark.parametrize("scales", [(1e20, 1e-20), (1e-38, 1e-44), (3e38, 1e-3), (1.0, 1e-45)])
def test_the_bound_with_scales_mixed_inside_a_row_and_between_rows(amx, scales):
    rng = np.random.default_rng(0)
    mixed = [
        (rng.choice(scales, 1500) * rng.uniform(0.1, 1, 1500) * rng.choice([-1, 1], 1500)).astype(np.float32)
        for _ in range(9)
    ]
    apart = [(rng.normal(size=1500).clip(-1, 1) * scales[i % 2]).astype(np.float32) for i in range(9)]
    for rows in (mixed, apart, mixed + apart):
        got, exact = fc.ops.gram(rows, **amx), exact_gram(rows)
        assert error_over_bound(got, exact) < 1
        np.testing.assert_allclose(got.diagonal(), exact.diagonal(), rtol=2e-5)


def test_differences_that_overflow_fp32_are_formed_in_fp64(amx):
    big = [np.full(700, value, np.float32) for value in (3.3e38, -3.3e38, 1.0)]
    got = fc.ops.gram(big, big[1], **amx)
    exact = exact_gram([to_float64(row) - to_float64(big[1]) for row in big])
    assert error_over_bound(got, exact) < 1
    np.testing.assert_allclose(got, exact, rtol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_is_the_only_one_on_the_diagonal(amx, value):
    from fedcore.native.gram import gram
    from fedcore.ops.rows import as_rows

    rows = make_rows(40, 1500, "float32")
    rows[33][1499] = value
    diagonal = gram(as_rows(rows).table).diagonal()
    assert np.flatnonzero(~np.isfinite(diagonal)).tolist() == [33]
    with pytest.raises(NonFiniteError, match=r"row 33 holds .* at column 1499"):
        fc.ops.gram(rows, **amx)


def test_bf16_rows_are_exact_in_fp32(amx):
    """The dtype of the rows is no part of the result: bf16 rows and the same rows in fp32 give the same bits."""
    rows = make_rows(18, 1100, "bfloat16")
    same = [to_float64(row).astype(np.float32) for row in rows]
    assert same_bits(fc.ops.gram(rows, **amx), fc.ops.gram(same, **amx))
    assert same_bits(fc.ops.gram(same, round_from_float64(to_float64(same[0]), "bfloat16"), **amx),
                     fc.ops.gram(same, same[0], **amx))  # fmt: skip


REFUSE = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdarg.h>
#include <unistd.h>
#include <sys/syscall.h>
/* libc's syscall(), but for the request to use AMX tiles */
long syscall(long number, ...) {
    va_list list;
    va_start(list, number);
    long a = va_arg(list, long), b = va_arg(list, long), c = va_arg(list, long), d = va_arg(list, long),
         e = va_arg(list, long), f = va_arg(list, long);
    va_end(list);
    if (number == SYS_arch_prctl && a == 0x1023) return -1;
    return ((long (*)(long, ...))dlsym(RTLD_NEXT, "syscall"))(number, a, b, c, d, e, f);
}
"""
REFUSED = """
import numpy as np
import fedcore as fc
from fedcore.errors import BackendError
from fedcore.native import isa_available, isa_selected
import os
assert "amx" not in isa_available() and isa_selected() == "avx512", isa_available()
fc.ops.gram(np.ones((3, 700), np.float32))
os.environ["FEDCORE_ISA"] = "amx"
try:
    fc.ops.gram(np.ones((3, 700), np.float32))
except BackendError as error:
    print(error)
"""


def test_where_the_kernel_refuses_tiles_the_next_isa_runs(amx, tmp_path, monkeypatch):
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed: the refusing library needs it")
    monkeypatch.delenv("FEDCORE_ISA")
    source, library = tmp_path / "refuse.c", tmp_path / "refuse.so"
    source.write_text(REFUSE)
    subprocess.run(["gcc", "-shared", "-fPIC", str(source), "-o", str(library), "-ldl"], check=True)
    result = subprocess.run(
        [sys.executable, "-c", REFUSED], env={**os.environ, "LD_PRELOAD": str(library)}, capture_output=True, text=True
    )
    assert "got 'amx', expected one of ref, avx2, avx512" in result.stdout, result.stdout + result.stderr
