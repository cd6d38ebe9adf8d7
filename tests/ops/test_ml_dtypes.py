"""`ml_dtypes.bfloat16` arrays: what is written to one is a number, and the same one on every backend."""

from __future__ import annotations

import numpy as np
import pytest

import fedcore as fc
from fedcore import backends

ml_dtypes = pytest.importorskip("ml_dtypes", reason="checks ml_dtypes.bfloat16 arrays")

BF = ml_dtypes.bfloat16
ROWS = np.array([[1, 2], [3, 4], [5, 8]], BF)
B = [np.array([[c], [1], [2]], BF) for c in (1, 2, 3)]
A = [np.array([[1, 3]], BF)] * 3
#: op -> (how to call it, its result)
OPS = {
    "median": (lambda **to: fc.ops.median(ROWS, **to), [3, 4]),
    "trimmed_mean": (lambda **to: fc.ops.trimmed_mean(ROWS, 1, **to), [3, 4]),
    "mean_around_median": (lambda **to: fc.ops.mean_around_median(ROWS, 1, **to), [2, 3]),
    "weighted_sum": (lambda **to: fc.ops.weighted_sum(ROWS, [1, 2, 3], 2, **to), [11, 17]),
    "weighted_sums": (lambda **to: fc.ops.weighted_sums(ROWS, [[0, 1, 0], [1, 1, -1]], **to), [[3, 4], [-1, -2]]),
    "clip_noise_accumulate": (lambda **to: fc.ops.clip_noise_accumulate(ROWS, 16, **to).sum, [9, 14]),
    "lora_delta_sum": (lambda **to: fc.ops.lora_delta_sum(B, A, [1, 1, 1], **to), [[6, 18], [3, 9], [6, 18]]),
    "lora_delta_sum on a base": (
        lambda **to: fc.ops.lora_delta_sum(B, A, [1, 1, 1], base=np.full((3, 2), 0.5, BF), **to),
        [[6.5, 18.5], [3.5, 9.5], [6.5, 18.5]],
    ),
    "lora_delta_median": (lambda **to: fc.ops.lora_delta_median(B, A, **to), [[2, 6], [1, 3], [2, 6]]),
    "lora_delta_trimmed_mean": (lambda **to: fc.ops.lora_delta_trimmed_mean(B, A, 1, **to), [[2, 6], [1, 3], [2, 6]]),
}


@pytest.fixture(params=["reference", "c"])
def backend(request) -> str:
    if request.param == "c" and backends.unavailable("c"):
        pytest.skip(f"the C kernels are not built: {backends.unavailable('c')}")
    return request.param


@pytest.mark.parametrize("op", OPS)
def test_new_results(op, backend):
    run, expected = OPS[op]
    got = run(out_dtype="bfloat16", backend=backend)
    assert got.dtype == BF
    assert got.astype(np.float64).tolist() == expected


@pytest.mark.parametrize("op", OPS)
def test_results_in_memory_of_the_caller(op, backend):
    run, expected = OPS[op]
    out = np.zeros(np.shape(expected), BF)
    assert run(out=out, backend=backend) is out
    assert out.astype(np.float64).tolist() == expected


def test_results_of_float32_rows_in_memory_of_the_caller(backend):
    out = np.zeros(2, BF)
    fc.ops.weighted_sum(ROWS.astype(np.float32), [1, 1, 1], out=out, backend=backend)
    assert out.astype(np.float64).tolist() == [9, 14]


def test_a_base_that_is_written_in_place(backend):
    weight = np.full((3, 2), 0.5, BF)
    assert fc.ops.lora_delta_sum(B, A, [1, 1, 1], base=weight, out=weight, backend=backend) is weight
    assert weight.astype(np.float64).tolist() == [[6.5, 18.5], [3.5, 9.5], [6.5, 18.5]]
