"""A caller's rounding and flush modes change no result of the compiled kernels, and are as they were afterwards."""

from __future__ import annotations

import ctypes
import ctypes.util
import platform

import numpy as np
import pytest
from inputs import make_rows

import fedcore as fc

UPWARD = {"x86_64": 0x800, "amd64": 0x800, "aarch64": 0x400000, "arm64": 0x400000}


CENTER = make_rows(1, 300_000, "float32", seed=5)[0]
WEIGHTS = np.linspace(0.1, 1.7, 3).astype(np.float32)


def results(rows, compiled) -> list[bytes]:
    return [
        fc.ops.weighted_sum(rows, WEIGHTS, 3.7, threads=2, **compiled).tobytes(),
        fc.ops.weighted_sum(rows, WEIGHTS, 3.7, out_dtype="bfloat16", **compiled).tobytes(),
        fc.ops.squared_norms(rows, CENTER, threads=2, **compiled).tobytes(),
        fc.ops.gram(rows, CENTER, threads=2, **compiled).tobytes(),
        fc.ops.squared_distances(rows, [[0, 1], [1, 2]], threads=2, **compiled).tobytes(),
        fc.ops.median(rows[:2], threads=2, **compiled).tobytes(),
        fc.ops.trimmed_mean(rows, 0, out_dtype="bfloat16", **compiled).tobytes(),
        fc.ops.mean_around_median(rows, 1, threads=2, **compiled).tobytes(),
    ]


def rows_of(kind: str) -> list[np.ndarray]:
    rows = make_rows(3, 300_000, "float32")
    if kind == "subnormal":
        rows = [row * np.float32(1e-41) for row in rows]
    return rows


@pytest.mark.parametrize("kind", ["normal", "subnormal"])
def test_another_rounding_mode(compiled, kind):
    libm = ctypes.CDLL(ctypes.util.find_library("m") or "libm.so.6")
    upward = UPWARD.get(platform.machine().lower())
    if upward is None:
        pytest.skip("the code of FE_UPWARD on this processor is not known to the test")
    rows, previous = rows_of(kind), libm.fegetround()
    expected = results(rows, compiled)
    assert libm.fesetround(upward) == 0
    try:
        got, mode = results(rows, compiled), libm.fegetround()
    finally:
        libm.fesetround(previous)
    assert got == expected
    assert mode == upward, "the caller's mode is restored"


@pytest.mark.parametrize("kind", ["normal", "subnormal"])
def test_flush_to_zero(compiled, kind):
    torch = pytest.importorskip("torch", reason="the caller's flush mode is set through torch")
    rows = rows_of(kind)
    expected = results(rows, compiled)
    assert torch.set_flush_denormal(True)
    try:
        got = results(rows, compiled)
    finally:
        torch.set_flush_denormal(False)
    assert got == expected
