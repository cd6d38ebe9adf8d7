"""The Triton kernels against the NumPy definitions, under Triton's interpreter and, with `-m gpu`, on a GPU.

Sizes come from the kernels' constants: a tile of weighted_sum is 1024 columns, a block of squared_norms 4096 in 32
lanes and a program takes 16 of them, a block of gram 256 and a chunk 8192 columns, a tile 16 or 32 rows.
"""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the Triton kernels take torch tensors")
triton = pytest.importorskip("triton", reason="Triton is not installed; fedcore[train] brings it")

from triton_rows import DTYPES, make_rows, place, table  # noqa: E402

import fedcore as fc  # noqa: E402
from fedcore.dtypes import STORAGE, to_float64  # noqa: E402
from fedcore.errors import BackendError, ShapeError  # noqa: E402
from fedcore.kernels import fold, gram, rows, squared_norms, weighted_sum  # noqa: E402
from fedcore.ops.tensors import view_of_tensor  # noqa: E402
from fedcore.reference import gram as gram_definition  # noqa: E402
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


def check_gram(tensors, center=None) -> np.ndarray:
    """Assert the documented bound and symmetry; return the kernel's Gram matrix."""
    got = gram.gram(tensors, center).cpu().numpy()
    exact = gram_definition.gram(table(tensors), None if center is None else table([center]))
    diagonal = exact.diagonal()[:, None] + exact.diagonal()[None, :]
    assert (np.abs(got - exact) <= gram_definition.EPSILON / 4 * diagonal).all()
    np.testing.assert_array_equal(got, got.T)
    return got


def distances(matrix: np.ndarray) -> np.ndarray:
    return matrix.diagonal()[:, None] + matrix.diagonal()[None, :] - 2 * matrix


class TestGram:
    def test_constants_are_the_definitions(self):
        of_a_chain = gram_definition.BLOCK // gram_definition.CHAINS
        assert of_a_chain == gram.RUN
        assert (gram.BLOCK, gram.CHUNK) == (gram_definition.BLOCK, gram_definition.CHUNK)

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize(("n", "d"), [(5, 1), (2, 255), (1, 256), (16, 257), (17, 300), (33, 300), (2, 1025)])
    def test_bound(self, device, dtype, n, d):
        tensors = make_rows(n, d, dtype, device, seed=1)
        check_gram(tensors)
        check_gram(tensors, tensors[n // 2])

    def test_bound_over_full_and_cut_chunks(self, device):
        check_gram(make_rows(2, gram.CHUNK + 257, "float32", device))

    def test_no_columns(self, device):
        assert (check_gram(make_rows(3, 0, "float32", device)) == 0.0).all()

    @pytest.mark.parametrize("center_dtype", DTYPES)
    def test_center_of_another_dtype(self, device, center_dtype):
        check_gram(make_rows(3, 300, "bfloat16", device), make_rows(1, 300, center_dtype, device, seed=9)[0])

    @pytest.mark.parametrize("scale", [1e30, 1e-30, 1e-44, 1e38])
    def test_bound_holds_at_any_scale(self, device, scale):
        values = np.random.default_rng(2).uniform(-3, 3, (3, 300)) * scale
        tensors = [place(v, "float32", device) for v in values]
        assert (check_gram(tensors).diagonal() > 0).all()
        check_gram(tensors, tensors[1])

    def test_rows_of_different_scale_in_one_cohort(self, device):
        values = np.random.default_rng(2).normal(size=(6, 700))
        values *= np.array([1e30, 1e-30, 1.0, 1e-44, 0.0, 1e15])[:, None]
        values[2, :256] *= 1e-35  # one block of a row small, the next not
        tensors = [place(v, "float32", device) for v in values]
        got = check_gram(tensors)
        exact = np.array([to_float64(view_of_tensor(t.cpu())) for t in tensors])
        np.testing.assert_allclose(got.diagonal(), (exact**2).sum(1), rtol=1e-6)
        check_gram(tensors, tensors[0])

    def test_a_difference_beyond_fp32(self, device):
        tensors = [place(v, "float32", device) for v in ([3e38, 1.0, -2.0], [-3e38, 3.0, 1e-3], [-2e38, 0.0, 5.0])]
        assert np.isfinite(check_gram(tensors, tensors[0])).all()

    def test_a_small_difference_of_large_rows(self, device):
        """Rows that agree where they are large; what is left is far below 2⁻⁴⁰ and is neither lost nor flushed."""
        base = np.array([3e38] * 10 + [1e-38] * 300)
        tensors = [place(base, "float32", device), place(base * np.array([1.0] * 10 + [1.5] * 300), "float32", device)]
        got = check_gram(tensors, tensors[0])
        assert got[0].tolist() == [0.0, 0.0]
        assert got[1, 1] > 0

    def test_honest_pairs_beside_an_attacker(self, device):
        """Honest rows that differ by 1e-4 of their size, an attacker at +50: the honest distances stay good to 1e-6."""
        rng = np.random.default_rng(4)
        shared = rng.normal(size=3000)
        values = [shared * (1 + 1e-4 * rng.normal(size=3000)) for _ in range(5)] + [shared + 50.0]
        tensors = [place(v, "float32", device) for v in values]
        got = distances(check_gram(tensors, tensors[0]))
        x = np.array([to_float64(view_of_tensor(t.cpu())) for t in tensors])
        exact = ((x[:, None] - x[None]) ** 2).sum(-1)
        honest = ~np.eye(5, dtype=bool)
        np.testing.assert_allclose(got[:5, :5][honest], exact[:5, :5][honest], rtol=1e-6)

    def test_the_same_bits_whatever_the_partials_buffer(self, device, monkeypatch):
        monkeypatch.setattr(gram, "CHUNK", 256)
        tensors = make_rows(3, 5 * 256 + 7, "float32", device)
        whole = check_gram(tensors)
        monkeypatch.setattr(gram, "PARTIALS", 2 * 16 * 16 * 8)
        np.testing.assert_array_equal(whole, check_gram(tensors))

    def test_a_row_has_the_same_bits_beside_rows_that_need_scaling(self, device):
        tensors = make_rows(3, 600, "float32", device)
        alone = gram.gram(tensors[:2]).cpu().numpy()
        tensors[2].mul_(1e35)
        np.testing.assert_array_equal(alone, gram.gram(tensors).cpu().numpy()[:2, :2])

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    @pytest.mark.parametrize("center", [False, True])
    def test_a_bad_row_shows_on_its_diagonal_only(self, device, center, value):
        tensors = make_rows(3, 600, "float32", device)
        tensors[1][599] = value
        got = gram.gram(tensors, tensors[0] if center else None).cpu().numpy()
        assert np.isfinite(got.diagonal()).tolist() == [True, False, True]
        assert np.isfinite(got[0, 2])


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
