"""Rows of int8 and nf4 under the Triton kernels: the bits of the decoded ones, tile by tile."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the Triton kernels take torch tensors")
triton = pytest.importorskip("triton", reason="Triton is not installed; fedcore[train] brings it")


import fedcore as fc  # noqa: E402
from fedcore.errors import ShapeError  # noqa: E402
from fedcore.kernels import fold  # noqa: E402

INTERPRETED = not isinstance(fold._fold_kernel, triton.JITFunction)
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, for the Inf and NaN that tests feed


@pytest.mark.parametrize("format", ["int8", "nf4", "mixed"])
@pytest.mark.parametrize("d", [0, 1, 65, 1025, 8192 + 77])
def test_encoded_rows_give_the_bits_of_the_decoded_ones(monkeypatch, format, d):
    """Tiles of 8192 columns, decoded by a kernel into fp32; the statistics go on from tile to tile."""
    if not INTERPRETED:
        pytest.skip("encoded rows lie in main memory, where Triton only runs interpreted")
    monkeypatch.setattr("fedcore.ops.tiles.BYTES", 1)
    rng = np.random.default_rng(d)
    given = [(rng.normal(size=d) * 10.0 ** rng.uniform(-3, 1)).astype(np.float32) for _ in range(5)]
    kinds = ("nf4", "int8", "float32", "float16", "nf4") if format == "mixed" else (format,) * 5
    found, decoded = [], []
    for row, kind in zip(given, kinds, strict=True):
        found.append(fc.Quantized.from_array(row, kind) if kind in ("int8", "nf4") else row.astype(kind))
        decoded.append(found[-1].to_float32() if kind in ("int8", "nf4") else found[-1].astype(np.float32))
    weights = [1.0, -2.0, 0.0, 3.5, 0.25]
    for out_dtype in ("float32", "bfloat16"):
        got = fc.ops.weighted_sum(found, weights, 3.0, out_dtype=out_dtype, backend="triton")
        expected = fc.ops.weighted_sum(decoded, weights, 3.0, out_dtype=out_dtype, backend="reference")
        assert got.tobytes() == expected.tobytes()
    for center, middle in ((None, None), (found[1], decoded[1]), (decoded[2], decoded[2])):
        got = fc.ops.squared_norms(found, center, backend="triton")
        assert got.tobytes() == fc.ops.squared_norms(decoded, middle, backend="reference").tobytes()
        got, exact = (
            fc.ops.gram(*given, backend=b)
            for given, b in (((found, center), "triton"), ((decoded, middle), "reference"))
        )
        size = exact.diagonal()[:, None] + exact.diagonal()[None, :]
        assert (np.abs(got - exact) <= fc.ops.gram_epsilon() / 4 * size).all()


def test_every_code_of_both_formats_decodes_to_the_definition():
    if not INTERPRETED:
        pytest.skip("encoded rows lie in main memory, where Triton only runs interpreted")
    every, size, rng = np.arange(256, dtype=np.uint8), 64 * 256, np.random.default_rng(0)
    scales = (rng.permutation(every), np.float32([0.37]), np.float32([1.03]))
    nf4 = fc.Quantized("nf4", (size,), np.tile(every, size // 512), scales)
    absmax = np.concatenate((rng.lognormal(size=250), [1e-45, 1e-40, 1e-38, 3e38, 0, 1])).astype(np.float32)
    int8 = fc.Quantized("int8", (size,), np.tile(every.view(np.int8), size // 256), (absmax,))
    for row in (nf4, int8):
        got = fc.ops.weighted_sum([row], [1.0], backend="triton")
        assert got.tobytes() == (row.to_float32() + np.float32(0)).tobytes()


def test_a_gpu_is_not_asked_to_read_across_element_boundaries():
    """The check that the launcher makes before a launch on a GPU; it looks at nothing but addresses."""
    from fedcore.kernels.decode import _check_aligned

    def check(address: int, scales: list[int], format: int) -> None:
        _check_aligned(torch.tensor([64, address]), torch.tensor([[64, s] for s in scales]), torch.tensor([0, format]))

    check(64 + 1, [65, 64, 64], 5)
    check(64 + 1, [64, 65, 65], 4)
    for address, scales, format in ((65, [0, 0, 0], 0), (65, [0, 0, 0], 1), (64, [65, 0, 0], 4), (64, [0, 66, 0], 5)):
        with pytest.raises(ShapeError, match="row 1: an array of it does not begin at a multiple"):
            check(address, scales, format)
