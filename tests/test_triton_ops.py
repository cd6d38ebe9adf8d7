"""The Triton kernels of sums and norms against the NumPy definitions, and fc.ops with them, under Triton's interpreter
and, with `-m gpu`, on a GPU.

Sizes come from the kernels' constants: a tile of weighted_sum is 1024 columns, a block of squared_norms 4096 in 32
lanes and a program takes 16 of them.
"""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the Triton kernels take torch tensors")
triton = pytest.importorskip("triton", reason="Triton is not installed; fedcore[train] brings it")

from triton_rows import DTYPES, make_rows, place, table  # noqa: E402

import fedcore as fc  # noqa: E402
from fedcore.dtypes import STORAGE, to_float64  # noqa: E402
from fedcore.errors import BackendError  # noqa: E402
from fedcore.kernels import fold, rows, squared_norms, weighted_sum  # noqa: E402
from fedcore.ops.tensors import view_of_tensor  # noqa: E402
from fedcore.reference import squared_norms as squared_norms_definition  # noqa: E402
from fedcore.reference import weighted_sum as weighted_sum_definition  # noqa: E402
from fedcore.rowtable import RowTable  # noqa: E402

INTERPRETED = not isinstance(fold._fold_kernel, triton.JITFunction)
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, for the Inf and NaN that tests feed


def check_weighted_sum(tensors, weights, divisor, out_dtype: str) -> bool:
    """Run kernel and definition; assert equal bits and flags; return the flag."""
    weights = np.asarray(weights, np.float32)
    out = torch.full((len(tensors[0]),), float("nan"), dtype=getattr(torch, out_dtype), device=tensors[0].device)
    expected = np.empty(len(out), STORAGE[out_dtype])
    flag = weighted_sum.weighted_sum(tensors, weights, divisor, out)
    assert flag == weighted_sum_definition.weighted_sum(table(tensors), weights, divisor, expected)
    got = view_of_tensor(out.cpu())
    same = np.frombuffer(got.tobytes(), np.uint8) == np.frombuffer(expected.tobytes(), np.uint8)
    assert same.all(), f"first differing column {np.flatnonzero(~same)[0] // got.itemsize}"
    return bool(flag)


class TestWeightedSum:
    @pytest.mark.parametrize("out_dtype", ["float32", "float64", "float16", "bfloat16"])
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("n", [1, 2, 5, 33])
    def test_bits(self, device, n, dtype, out_dtype):
        for seed, d in enumerate((1, 1023, 1024, 1025, 3 * 1024 + 8)):
            tensors = make_rows(n, d, dtype, device, seed)
            weights = np.random.default_rng(seed).normal(size=n).astype(np.float32)
            check_weighted_sum(tensors, weights, None, out_dtype)
            check_weighted_sum(tensors, np.abs(weights), float(np.abs(weights).astype(np.float64).sum()), out_dtype)

    @pytest.mark.parametrize("out_dtype", ["float32", "float16", "bfloat16"])
    def test_bits_at_every_magnitude(self, device, out_dtype):
        """Products from subnormal to overflow of the output dtype."""
        tensors = make_rows(3, 4000, "float32", device, seed=7, spread=36.0)
        assert check_weighted_sum(tensors, [1.0, 0.3, -0.7], None, out_dtype) == (out_dtype == "float16")

    @pytest.mark.parametrize(
        ("dtype", "tiny"), [("float32", 2.0**-149), ("float16", 2.0**-24), ("bfloat16", 2.0**-133)]
    )
    def test_subnormal_elements_count(self, device, dtype, tiny):
        tensors = [place([tiny, -3 * tiny], dtype, device)] * 2
        assert not check_weighted_sum(tensors, [1.0, 2.0], None, "float64")
        assert (check_squared_norms(tensors, None) > 0).all()
        check_squared_norms(tensors, place([0.0, tiny], dtype, device))

    def test_no_columns(self, device):
        assert not check_weighted_sum(make_rows(3, 0, "float32", device), [1, 2, 3], 6.0, "float32")

    def test_all_weights_zero(self, device):
        assert not check_weighted_sum(make_rows(3, 1030, "float32", device), [0, 0, 0], None, "bfloat16")

    def test_a_row_of_weight_zero_is_not_read(self, device):
        tensors = make_rows(3, 1030, "float32", device)
        tensors[1].fill_(float("nan"))
        assert not check_weighted_sum(tensors, [1, 0, 2], 3.0, "float32")

    @pytest.mark.parametrize("column", [0, 1024, 1029])
    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    @pytest.mark.parametrize("out_dtype", ["float32", "float64", "float16", "bfloat16"])
    def test_not_finite_is_reported(self, device, out_dtype, value, column):
        tensors = make_rows(2, 1030, "float32", device)
        tensors[1][column] = value
        assert check_weighted_sum(tensors, [1.0, 1.0], None, out_dtype)

    def test_row_order(self, device):
        """fp64 from 0.0 in row order: 1e20 swallows the 1 that comes after it, not the one after its cancellation."""
        lost = [place([v], "float32", device) for v in (1e20, 1.0, -1e20)]
        kept = [place([v], "float32", device) for v in (1e20, -1e20, 1.0)]
        out = torch.empty(1, dtype=torch.float64, device=device)
        weighted_sum.weighted_sum(lost, np.ones(3, np.float32), None, out)
        assert out.item() == 0.0
        weighted_sum.weighted_sum(kept, np.ones(3, np.float32), None, out)
        assert out.item() == 1.0

    def test_more_than_fp32_accumulation(self, device):
        tensors = [place([v], "float32", device) for v in (1.0, 2.0**-40)]
        out = torch.empty(1, dtype=torch.float64, device=device)
        weighted_sum.weighted_sum(tensors, np.float32([1.0, 3.0]), None, out)
        assert out.item() == 1.0 + 3 * 2.0**-40

    # (out dtype, terms of the sum, the one correct rounding, whether it is not finite)
    ROUNDINGS = (
        ("bfloat16", (1.0, 2.0**-8), 1.0, False),  # a tie goes to even
        ("bfloat16", (1.0, 3 * 2.0**-8), 1.0 + 2.0**-6, False),
        ("bfloat16", (1.0, 2.0**-8, 2.0**-40), 1.0 + 2.0**-7, False),  # fp32 first would make it a tie
        ("bfloat16", (1.0, 3 * 2.0**-8, -(2.0**-40)), 1.0 + 2.0**-7, False),
        ("bfloat16", (-1.0, -(2.0**-8), -(2.0**-40)), -1.0 - 2.0**-7, False),
        ("bfloat16", (2.0**-134, 2.0**-149), 2.0**-133, False),  # subnormals: half of the smallest and a little more
        ("bfloat16", (2.0**-134,), 0.0, False),
        ("bfloat16", (2.0**127, 2.0**127, -(2.0**119), -(2.0**90)), 2.0**128 - 2.0**120, False),
        ("bfloat16", (2.0**127, 2.0**127, -(2.0**119)), float("inf"), True),
        ("float16", (1.0, 2.0**-11), 1.0, False),
        ("float16", (1.0, 2.0**-11, 2.0**-40), 1.0 + 2.0**-10, False),
        ("float16", (1.0, 3 * 2.0**-11, -(2.0**-40)), 1.0 + 2.0**-10, False),
        ("float16", (2.0**-25, 2.0**-70), 2.0**-24, False),
        ("float16", (2.0**-25,), 0.0, False),
        ("float16", (-(2.0**-25),), -0.0, False),
        ("float16", (65520.0, -(2.0**-30)), 65504.0, False),
        ("float16", (65520.0,), float("inf"), True),
        ("float16", (-1e30,), -float("inf"), True),
        ("float32", (2.0**-149,), 2.0**-149, False),  # fp32 subnormals survive, in and out
        ("float32", (2.0**-126, -(2.0**-149)), 2.0**-126 - 2.0**-149, False),
        ("float32", (1.0, 2.0**-24, 2.0**-50), 1.0 + 2.0**-23, False),
        ("float32", (2.0**127, 2.0**127), float("inf"), True),
        ("float64", (2.0**127, 2.0**127), 2.0**128, False),
    )

    @pytest.mark.parametrize(("out_dtype", "terms", "expected", "suspect"), ROUNDINGS)
    def test_one_rounding(self, device, out_dtype, terms, expected, suspect):
        """Expected values are by hand, so this holds the definition as well."""
        tensors = [place([v], "float32", device) for v in terms]
        assert check_weighted_sum(tensors, np.ones(len(terms)), None, out_dtype) == suspect
        out = np.empty(1, STORAGE[out_dtype])
        weighted_sum_definition.weighted_sum(table(tensors), np.ones(len(terms), np.float32), None, out)
        value = to_float64(out)[0]
        assert (value, np.signbit(value)) == (expected, np.signbit(expected))

    def test_division_is_correctly_rounded(self, device):
        """A product with 1/divisor differs from the quotient in some columns; the kernel has the quotient."""
        x = np.random.default_rng(3).normal(size=1500).astype(np.float32)
        out = torch.empty(len(x), dtype=torch.float64, device=device)
        divisor = 49.0
        weighted_sum.weighted_sum([place(x, "float32", device)], np.float32([1.0]), divisor, out)
        exact = x.astype(np.float64) / divisor
        assert (out.cpu().numpy() == exact).all()
        assert (exact != x.astype(np.float64) * (1.0 / divisor)).any()


def check_squared_norms(tensors, center) -> np.ndarray:
    got = squared_norms.squared_norms(tensors, center).cpu().numpy()
    expected = squared_norms_definition.squared_norms(table(tensors), None if center is None else table([center]))
    np.testing.assert_array_equal(got.view(np.int64), expected.view(np.int64))
    return got


class TestSquaredNorms:
    def test_constants_are_the_definitions(self):
        assert squared_norms.BLOCK == squared_norms_definition.BLOCK
        assert squared_norms.LANES == squared_norms_definition.LANES

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize(("n", "d"), [(5, 1), (2, 31), (2, 32), (33, 33), (2, 4095), (1, 4096), (2, 4097)])
    def test_bits(self, device, dtype, n, d):
        tensors = make_rows(n, d, dtype, device, seed=1)
        check_squared_norms(tensors, None)
        check_squared_norms(tensors, tensors[-1])

    @pytest.mark.parametrize("d", [16 * 4096, 17 * 4096 + 5])
    def test_bits_over_several_programs(self, device, d):
        tensors = make_rows(2, d, "bfloat16", device)
        check_squared_norms(tensors, None)
        check_squared_norms(tensors, place(np.linspace(-1, 1, d), "float32", device))

    @pytest.mark.parametrize("center_dtype", DTYPES)
    def test_center_of_another_dtype(self, device, center_dtype):
        check_squared_norms(make_rows(2, 300, "float16", device), make_rows(1, 300, center_dtype, device, seed=9)[0])

    def test_a_difference_is_not_fused_into_its_square(self, device):
        """Differences of some 46 bits, whose squares are inexact: a fused multiply-add would give other bits."""
        rng = np.random.default_rng(5)
        tensors = [place(1.0 + rng.integers(1, 1 << 20, 4096) * 2.0**-20, "float32", device)]
        check_squared_norms(tensors, place(rng.normal(size=4096) * 2.0**-20, "float32", device))

    def test_no_columns(self, device):
        assert check_squared_norms(make_rows(3, 0, "float32", device), None).tolist() == [0.0, 0.0, 0.0]

    def test_extremes(self, device):
        values = [[2.0**-149] * 40, [3e38] * 40, [-3e38, 2.0**-140] * 20]
        tensors = [place(v, "float32", device) for v in values]
        assert (check_squared_norms(tensors, None) > 0).all()
        check_squared_norms(tensors, tensors[1])

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_only_the_bad_row_is_not_finite(self, device, value):
        tensors = make_rows(3, 4100, "float16", device)
        tensors[1][4099] = value
        assert np.isfinite(squared_norms.squared_norms(tensors).cpu().numpy()).tolist() == [True, False, True]


class TestPublicOps:
    """fc.ops with backend="triton": the wiring, with rows in several segments and NumPy or torch out."""

    def test_numpy_rows_in_segments(self):
        if not INTERPRETED:
            pytest.skip("kernels are compiled for the GPU here; NumPy rows need TRITON_INTERPRET=1")
        buffers = [np.random.default_rng(i).normal(size=50).astype(np.float32) for i in range(3)]
        offsets = np.array([[0, 4, 8], [100, 80, 60]])
        data = RowTable(buffers, offsets, np.array([7, 11]), "float32")
        for call in (
            lambda backend: fc.ops.weighted_sum(data, [1, 2, 3], 6.0, backend=backend),
            lambda backend: fc.ops.squared_norms(data, data.columns(0, 0, 18).copy(), backend=backend),
        ):
            np.testing.assert_array_equal(call("triton"), call("reference"))
        np.testing.assert_allclose(
            fc.ops.gram(data, backend="triton"), fc.ops.gram(data, backend="reference"), rtol=0, atol=1e-4
        )

    def test_tensors_stay_where_they_are(self, device):
        tensors = make_rows(3, 40, "bfloat16", device)
        result = fc.ops.weighted_sum(tensors, [1, 2, 3], out_dtype="bfloat16", backend="triton")
        assert (result.dtype, result.device.type) == (torch.bfloat16, device)
        assert fc.ops.squared_norms(tensors, tensors[0], backend="triton").device.type == device
        assert fc.ops.gram(tensors, tensors[0], backend="triton").shape == (3, 3)

    def test_the_culprit_is_named(self, device):
        tensors = make_rows(3, 40, "float32", device)
        tensors[2][5] = float("nan")
        with pytest.raises(fc.errors.NonFiniteError, match="row 2 holds nan at column 5"):
            fc.ops.weighted_sum(tensors, [1, 2, 3], backend="triton")
        with pytest.raises(fc.errors.RangeError, match="does not fit float16"):
            fc.ops.weighted_sum(tensors, [60000, 60000, 0], out_dtype="float16", backend="triton")


def test_interpreted_kernels_refuse_a_gpu():
    kernel = object()  # what is not a JITFunction is interpreted
    with pytest.raises(BackendError, match="unset it"):
        rows.check_device("gram", kernel, torch.device("cuda"))


def test_pieces_cover_the_columns_once():
    assert list(rows.pieces(0, 8)) == []
    assert list(rows.pieces(7, 8)) == [(0, 1, False)]
    assert list(rows.pieces(16, 8)) == [(0, 2, True)]
    assert list(rows.pieces(17, 8)) == [(0, 2, True), (2, 1, False)]


def test_rows_are_promised_to_be_aligned_where_all_of_them_are():
    """Vector loads of a GPU fail elsewhere; the interpreter shows nothing of it."""
    x = torch.zeros(64)
    x = x[-(x.data_ptr() // 4) % 4 :]
    for starts, aligned in (((0, 4, 8), True), ((0, 4, 9), False), ((2, 4, 8), False)):
        given = [x[start:] for start in starts]
        found, promised = rows.address_table(given)
        assert (found.tolist(), promised) == ([row.data_ptr() for row in given], aligned)
