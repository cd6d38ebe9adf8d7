"""bf16 subnormals in every Triton kernel that reads rows: as numbers, where they lie and decoded beside encoded rows.

The interpreter's own conversion from bf16 misreads them; a GPU's does not.
"""

from __future__ import annotations

import numpy as np
import pytest
from inputs import from_bits

torch = pytest.importorskip("torch", reason="the Triton kernels take torch tensors")
triton = pytest.importorskip("triton", reason="Triton is not installed; fedcore[train] brings it")

import fedcore as fc  # noqa: E402
from fedcore.dtypes import to_float64  # noqa: E402

#: every one of both signs, the zeros and the smallest normal numbers
BITS = [sign | bits for sign in (0, 0x8000) for bits in range(0x90)]
#: of the same size, for the rows beside them
NORMAL = np.linspace(2.0**-126, 2.0**-125, len(BITS)).astype(np.float32)
PAIR = [(0, 1)]
CALLS = {
    "weighted_sum": lambda rows, **on: fc.ops.weighted_sum(rows, [1, -2, 3], out_dtype="float64", **on),
    "weighted_sums": lambda rows, **on: fc.ops.weighted_sums(rows, np.eye(3), out_dtype="float64", **on),
    "median": lambda rows, **on: fc.ops.median(rows, out_dtype="float64", **on),
    "trimmed_mean": lambda rows, **on: fc.ops.trimmed_mean(rows, 1, out_dtype="float64", **on),
    "mean_around_median": lambda rows, **on: fc.ops.mean_around_median(rows, 2, out_dtype="float64", **on),
    "squared_norms": lambda rows, **on: fc.ops.squared_norms(rows, rows[1], **on),
    "squared_distances": lambda rows, **on: fc.ops.squared_distances(rows, PAIR, **on),
    "sign_counts": lambda rows, **on: fc.ops.sign_counts(rows, rows[2], **on),
}


def subnormal_rows() -> list[np.ndarray]:
    """Three rows of the same bits in different orders."""
    return [from_bits(np.roll(BITS, shift).tolist(), "bfloat16") for shift in (0, 5, 77)]


def placed(rows: list[np.ndarray], device: str) -> list:
    return [torch.from_numpy(row.view(np.int16)).view(torch.bfloat16).to(device) for row in rows]


def as_array(found) -> np.ndarray:
    return found.cpu().numpy() if isinstance(found, torch.Tensor) else np.asarray(found)


@pytest.mark.parametrize("op", CALLS)
def test_bits(device, op):
    rows = subnormal_rows()
    found = as_array(CALLS[op](placed(rows, device), backend="triton"))
    expected = as_array(CALLS[op](rows, backend="reference"))
    assert np.count_nonzero(expected)
    assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("op", CALLS)
@pytest.mark.parametrize("format", ["int8", "nf4"])
def test_bits_beside_encoded_rows(device, op, format):
    if device != "cpu":
        pytest.skip("encoded rows lie in main memory, where Triton only runs interpreted")
    rows = [fc.Quantized.from_array(NORMAL, format), *subnormal_rows()[1:]]
    found = CALLS[op](rows, backend="triton")
    for backend in ("reference", "c"):
        expected = CALLS[op](rows, backend=backend)
        assert np.asarray(found).tobytes() == np.asarray(expected).tobytes(), backend


@pytest.mark.parametrize("centred", [False, True])
def test_gram(device, centred):
    rows = subnormal_rows()
    found = as_array(fc.ops.gram(placed(rows, device), *placed(rows[2:], device)[:centred], backend="triton"))
    x = np.array([to_float64(row) for row in rows])
    x -= x[2] * centred
    exact = x @ x.T
    size = exact.diagonal()[:, None] + exact.diagonal()[None, :]
    assert (exact.diagonal()[:2] > 0).all()
    assert (np.abs(found - exact) <= fc.ops.gram_epsilon("triton") / 4 * size).all()
