"""The Triton mask_add, pack_bits and unpack_add against their definitions, under Triton's interpreter and, with
`-m gpu`, on a GPU."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the Triton kernels take torch tensors")
pytest.importorskip("triton", reason="Triton is not installed; fedcore[train] brings it")

import fedcore as fc  # noqa: E402
from fedcore.errors import NonFiniteError  # noqa: E402
from fedcore.kernels import chacha20  # noqa: E402

KEYS, SIGNS = [bytes(range(7, 39)), bytes(range(90, 122))], [1, -1]
WIDTHS = (1, 17, 26, 32, 33, 64)


def residues(bits: int, length: int) -> np.ndarray:
    drawn = np.random.default_rng(bits).integers(0, 1 << 64, length, np.uint64)
    return (drawn & np.uint64((1 << bits) - 1)).astype(np.uint32 if bits <= 32 else np.uint64)


def run(op, device: str, values: np.ndarray, *arguments, **settings) -> np.ndarray:
    """An op on Triton, from an array on the CPU and from a tensor on a GPU."""
    given = values if device == "cpu" else torch.from_numpy(values).to(device)
    found = op(given, *arguments, backend="triton", **settings)
    return found if device == "cpu" else found.cpu().numpy()


@pytest.mark.parametrize("bits", [26, 33])
def test_masks(device, bits):
    for length, keys in ((0, KEYS), (1, []), (chacha20.LANES * (16 if bits <= 32 else 8), KEYS)):  # two programs
        values, signs = residues(bits, length), SIGNS[: len(keys)]
        expected = fc.ops.mask_add(values, keys, signs, bits, counter=5, backend="reference")
        assert (run(fc.ops.unmask_sum, device, values, keys, signs, bits, counter=5) == expected).all()
    wide = np.array([0, -1, 1 << 40, -(1 << 63)], np.int64)
    expected = fc.ops.mask_add(wide, [], [], bits, backend="reference")
    assert (run(fc.ops.mask_add, device, wide, [], [], bits) == expected).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("bits", [8, 32, 64])
def test_quantising(device, dtype, bits):
    limit = min(((1 << bits) - 1) // 2, 1 << 53)
    special = [
        *(np.arange(-9, 9) / 2),
        0.0,
        -0.0,
        1e-40,
        0.5,
        1.5,
        -2.5,
        2.0**51 + 0.5,
        2.0**52 + 1,
        1e30,
        -1e30,
        limit,
        -limit,
        limit - 0.5,
        0.49999997,
    ]
    drawn = np.random.default_rng(3).normal(size=300) * 2.0 ** np.random.default_rng(4).integers(-3, 50, 300)
    for scale, values in ((1.0, special), (3.0000000001, drawn)):
        x = np.array(values, dtype)
        expected = fc.ops.mask_add(x, [], [], bits, scale=scale, limit=limit, backend="reference")
        assert (run(fc.ops.mask_add, device, x, [], [], bits, scale=scale, limit=limit) == expected).all()
    for value in (np.nan, np.inf, -np.inf):
        x[17] = value
        with pytest.raises(NonFiniteError, match=f"mask_add: values hold {value} at index 17"):
            run(fc.ops.mask_add, device, x, [], [], bits, scale=1, limit=limit)


@pytest.mark.parametrize("bits", [*WIDTHS, 3, 8, 57, 58, 63])
def test_packing(device, bits):
    for length in (0, 1, 7, 1100):
        values = residues(bits, length)
        expected = fc.ops.pack_bits(values, bits, backend="reference")
        assert (run(fc.ops.pack_bits, device, values, bits) == expected).all()
        total = residues(bits, length + 3)[::-1].copy()
        wanted = fc.ops.unpack_add(expected, bits, total.copy(), 3, backend="reference")
        if device != "cpu":
            expected, total = torch.from_numpy(expected).to(device), torch.from_numpy(total).to(device)
        found = fc.ops.unpack_add(expected, bits, total, 3, backend="triton")
        assert (np.asarray(found if device == "cpu" else found.cpu()) == wanted).all()
