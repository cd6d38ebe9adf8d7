"""Triton clip_round and clip_noise_accumulate against their definitions, interpreted and on a GPU."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the Triton kernels take torch tensors")
pytest.importorskip("triton", reason="Triton is not installed; fedcore[train] brings it")

from triton_rows import DTYPES, OUT_DTYPES, check_kernel, make_rows, place, table  # noqa: E402

import fedcore as fc  # noqa: E402
from fedcore.dtypes import STORAGE  # noqa: E402
from fedcore.errors import RangeError  # noqa: E402
from fedcore.kernels import clip_noise_accumulate, clip_round  # noqa: E402
from fedcore.ops.tensors import view_of_tensor  # noqa: E402
from fedcore.reference import clip_noise_accumulate as accumulate_definition  # noqa: E402
from fedcore.reference import clip_round as round_definition  # noqa: E402
from fedcore.reference import squared_norms as norms_definition  # noqa: E402

SIZES = (0, 1, 1023, 1024, 1025, 3 * 1024 + 8)


def scales_of(tensors, clip: float) -> tuple[np.ndarray, float]:
    rows = table(tensors)
    grid = fc.ops.clip_grid(clip, rows.d)
    return round_definition.clip_scales(norms_definition.squared_norms(rows), clip, grid, rows.d), grid


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", SIZES)
def test_rounded_rows(device, d, dtype):
    for seed, clip in ((1, 0.01), (2, 1e5)):
        tensors = make_rows(1, d, dtype, device, seed)
        scale = float(scales_of(tensors, clip)[0][0])
        out, expected = torch.full((d,), 77, dtype=torch.int32, device=device), np.empty(d, np.int32)
        squares = clip_round.clip_round(tensors, scale, out)
        assert squares == round_definition.clip_round(table(tensors), scale, expected)
        assert out.tolist() == expected.tolist()


def test_ties_go_to_even(device):
    values = [0.5, 1.5, 2.5, -0.5, -1.5, 2.0**-149, -(2.0**30), 2.0**30]
    out = torch.empty(len(values), dtype=torch.int32, device=device)
    clip_round.clip_round([place(values, "float32", device)], 1.0, out)
    assert out.tolist() == [0, 2, 2, 0, -2, 0, -(1 << 30), 1 << 30]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "d"), [(1, 1), (5, 1023), (4, 1024), (9, 3 * 1024 + 8), (3, 0)])
def test_sums(device, n, d, dtype):
    tensors = make_rows(n, d, dtype, device, seed=n)
    scales, grid = scales_of(tensors, 30.0)
    noise = torch.from_numpy(np.random.default_rng(d).integers(-(10**6), 10**6, d)).to(device)
    for out_dtype in OUT_DTYPES:
        for drawn, divisor in ((None, None), (noise, 7.5)):

            def kernel(rows, out, drawn=drawn, divisor=divisor):
                return clip_noise_accumulate.clip_noise_accumulate(rows, scales, grid, drawn, divisor, out)

            def definition(rows, out, drawn=drawn, divisor=divisor):
                held = None if drawn is None else drawn.cpu().numpy()
                return accumulate_definition.clip_noise_accumulate(rows, scales, grid, held, divisor, out)

            assert not check_kernel(kernel, definition, tensors, (), (d,), out_dtype)


def test_noise_and_sums_out_of_range_are_reported(device):
    tensors = make_rows(2, 1030, "float32", device)
    scales, grid = scales_of(tensors, 30.0)
    for wrong in (1 << 50, -(1 << 50) - 1, np.iinfo(np.int64).min):
        noise = torch.zeros(1030, dtype=torch.int64, device=device)
        noise[1027] = wrong
        out = torch.empty(1030, device=device)
        assert clip_noise_accumulate.clip_noise_accumulate(tensors, scales, grid, noise, None, out)
    out = torch.empty(1030, dtype=torch.float16, device=device)
    assert clip_noise_accumulate.clip_noise_accumulate(tensors, scales, grid, None, 1e-9, out)


def test_public_functions(device):
    rows = make_rows(4, 2000, "float16", device)
    rows[2][1999] = float("nan")
    noise = torch.arange(2000, dtype=torch.int64, device=device) - 1000
    arrays = [view_of_tensor(row.cpu()).copy() for row in rows]
    expected = fc.ops.clip_noise_accumulate(arrays, 2.0, None, noise.cpu().numpy(), 8.0, backend="reference")
    got = fc.ops.clip_noise_accumulate(rows, 2.0, None, noise, 8.0, backend="triton")
    drawn = fc.ops.clip_noise_accumulate(rows, 2.0, None, lambda at, n: noise[at : at + n], 8.0, backend="triton")
    assert torch.equal(drawn.sum, got.sum)
    assert got.sum.cpu().numpy().tobytes() == expected.sum.tobytes()
    assert got.squared_norms.tobytes() == expected.squared_norms.tobytes()
    for row, array in zip(rows, arrays, strict=True):
        one, other = (
            fc.ops.clip_round(row, 2.0, backend="triton"),
            fc.ops.clip_round(array, 2.0, backend="reference"),
        )
        assert one.integers.tolist() == other.integers.tolist()
        assert one[1:] == other[1:]
    with pytest.raises(RangeError, match="noise: it leaves the range"):
        fc.ops.clip_noise_accumulate(rows, 2.0, None, noise + (1 << 50), backend="triton")


def test_encoded_rows():
    rows = [fc.Quantized.from_array(view_of_tensor(row), "nf4") for row in make_rows(3, 9000, "float32", "cpu")]
    plain = [row.to_float32() for row in rows]
    noise = np.arange(9000)
    got = fc.ops.clip_noise_accumulate(rows, 2.0, None, noise, backend="triton").sum
    assert got.tobytes() == fc.ops.clip_noise_accumulate(plain, 2.0, None, noise, backend="reference").sum.tobytes()
    assert got.dtype == STORAGE["float32"]
    one = fc.ops.clip_round(rows[0], 2.0, backend="triton")
    assert one.integers.tolist() == fc.ops.clip_round(plain[0], 2.0, backend="reference").integers.tolist()
