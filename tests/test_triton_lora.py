"""Triton kernels of LoRA factors against their definitions and documented bounds, interpreted and on a GPU."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the Triton kernels take torch tensors")
pytest.importorskip("triton", reason="Triton is not installed; fedcore[train] brings it")

from lora_factors import SHAPES, bound, dense, make_factors  # noqa: E402

import fedcore as fc  # noqa: E402
from fedcore.dtypes import round_from_float64  # noqa: E402
from fedcore.errors import NonFiniteError, RangeError  # noqa: E402
from fedcore.kernels import lora_blocks, lora_delta_sum  # noqa: E402
from fedcore.ops.tensors import tensor_of  # noqa: E402
from fedcore.reference import lora_blocks as lora_blocks_definition  # noqa: E402
from fedcore.reference import lora_delta_sum as lora_delta_sum_definition  # noqa: E402

DTYPES = ("float32", "float16", "bfloat16")
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, for the Inf and NaN that tests feed


def on(device, side) -> list:
    return [tensor_of(x).to(device) for x in side]


class TestLoraDeltaSum:
    def test_constants_are_the_definitions(self):
        assert lora_delta_sum.CHAIN == lora_delta_sum_definition.CHAIN

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("shape", SHAPES)
    def test_bound(self, device, shape, dtype):
        b, a = make_factors(*shape, dtype)
        c = np.linspace(-0.2, 1, len(b) + 1)[1:]
        base = np.random.default_rng(3).normal(size=shape[:2]).astype(np.float32)
        got = fc.ops.lora_delta_sum(
            on(device, b), on(device, a), c, base=tensor_of(base).to(device), out_dtype="float64", backend="triton"
        )
        assert (np.abs(got.cpu().numpy() - dense(b, a, c, base)) <= bound(b, a, c)).all()

    @pytest.mark.parametrize("out_dtype", ["float32", "float16", "bfloat16", "float64"])
    def test_exact_products_have_the_definitions_bits(self, device, out_dtype):
        """Small integers: every order gives the same sums, so that rounding and layout show alone."""
        rng = np.random.default_rng(1)
        b = [rng.integers(-8, 9, (70, r)).astype(np.float32) for r in (3, 0, 17)]
        a = [rng.integers(-8, 9, (r, 131)).astype(np.float32) for r in (3, 0, 17)]
        base = rng.integers(-99, 99, (70, 131)).astype(np.float32)
        for given in (None, tensor_of(base)):
            options = {"base": given, "out_dtype": out_dtype, "backend": "reference"}
            expected = fc.ops.lora_delta_sum(on("cpu", b), on("cpu", a), [1, 2, -3], **options)
            options |= {"base": None if given is None else given.to(device), "backend": "triton"}
            got = fc.ops.lora_delta_sum(on(device, b), on(device, a), [1, 2, -3], **options)
            assert got.dtype == expected.dtype
            assert torch.equal(got.cpu(), expected)

    def test_bad_values(self, device):
        b, a = ([x.copy() for x in side] for side in make_factors(9, 50, (3, 4), "float32"))
        with pytest.raises(RangeError, match="does not fit float16"):
            fc.ops.lora_delta_sum(on(device, b), on(device, a), [1e9, 1], out_dtype="float16", backend="triton")
        a[1][2, 49] = np.nan
        with pytest.raises(NonFiniteError, match=r"client 1: a holds nan at \(2, 49\)"):
            fc.ops.lora_delta_sum(on(device, b), on(device, a), [1, 1], backend="triton")
        assert torch.isfinite(fc.ops.lora_delta_sum(on(device, b), on(device, a), [1, 0], backend="triton")).all()


class TestLoraGram:
    def test_constants_are_the_definitions(self):
        assert lora_blocks.CHUNK == lora_blocks_definition.CHUNK

    @pytest.mark.parametrize(
        ("shape", "dtype"),
        [
            *((shape, dtype) for shape in ((7, 47, (3, 0, 1)), (3, 4, (0, 0))) for dtype in DTYPES),
            # more than a chunk, which takes the interpreter seconds: of either factor, in one dtype each
            ((1025, 9, (33,)), "bfloat16"),
            ((40, 1030, (31, 2)), "float32"),
        ],
    )
    def test_bound(self, device, shape, dtype):
        b, a = make_factors(*shape, dtype)
        expected = fc.ops.lora_blocks(b, a, backend="reference")
        found = fc.ops.lora_blocks(on(device, b), on(device, a), backend="triton")
        for got, exact, d in zip(found, expected, shape[:2], strict=True):
            size = np.sqrt(exact.diagonal())
            assert (np.abs(got - exact) <= 2 * (d + 1) * 2.0**-53 * size[:, None] * size[None, :]).all()
        scales = np.linspace(0.5, -2, len(b))
        got = fc.ops.lora_gram([(on(device, b), on(device, a), scales)] * 2, backend="triton")
        exact = fc.ops.lora_gram([(b, a, scales)] * 2, backend="c")
        np.testing.assert_allclose(got, exact, rtol=1e-11, atol=1e-11 * np.abs(exact).max())

    def test_fp64_factors_and_mixed_dtypes(self, device):
        b, a = make_factors(40, 50, (3, 4), "float32")
        given = [b[0], b[1].astype(np.float64)], [a[0].astype(np.float64), a[1].astype(np.float64) / 3]
        got = fc.ops.lora_gram([(on(device, given[0]), on(device, given[1]), None)], backend="triton")
        np.testing.assert_allclose(got, fc.ops.lora_gram([(*given, None)]), rtol=1e-12)
        given[1][1][3, 7] = np.nan
        with pytest.raises(NonFiniteError, match=r"client 1: a holds nan at \(3, 7\)"):
            fc.ops.lora_gram([(on(device, given[0]), on(device, given[1]), None)], backend="triton")


class TestLoraDeltaOrder:
    @pytest.mark.parametrize(("d_out", "n"), [(70, 5), (9, 4), (40, 35)])
    def test_bits_of_exact_products(self, device, monkeypatch, d_out, n):
        """Small integers have no rounding: the bits are the definition's, over rows that need several buffers."""
        monkeypatch.setattr("fedcore.kernels.lora_delta_median.PRODUCTS", 1)
        rng = np.random.default_rng(n)
        ranks = [int(rng.integers(0, 4)) for _ in range(n)]
        b = [rng.integers(-8, 9, (d_out, r)).astype(np.float32) for r in ranks]
        a = [rng.integers(-8, 9, (r, 67)).astype(np.float32) for r in ranks]
        c = np.where(np.arange(n) == 2, 0.0, rng.integers(1, 4, n))
        a[2] = a[2] * np.float32(np.nan)
        for call, options in ((fc.ops.lora_delta_median, {}), (fc.ops.lora_delta_trimmed_mean, {"f": 1})):
            expected = call(b=b, a=a, coefficients=c, **options, backend="c")
            got = call(b=on(device, b), a=on(device, a), coefficients=c, **options, backend="triton")
            np.testing.assert_array_equal(got.cpu().numpy(), expected)

    def test_bound_and_bad_values(self, device):
        b, a = ([x.copy() for x in side] for side in make_factors(20, 70, (16, 3, 40), "float32"))
        got = fc.ops.lora_delta_median(on(device, b), on(device, a), backend="triton").cpu().numpy()
        expected = fc.ops.lora_delta_median(b, a)
        size = np.max([2 * bound([x], [y], [1.0]) for x, y in zip(b, a, strict=True)], axis=0)
        assert (np.abs(got - expected) <= size + 2.0**-23 * np.abs(expected)).all()
        b[1][3, 2] = np.inf
        with pytest.raises(NonFiniteError, match=r"client 1: b holds inf at \(3, 2\)"):
            fc.ops.lora_delta_median(on(device, b), on(device, a), backend="triton")


class TestLoraDeltaHalf:
    """lora_delta_sum of factors of one 16-bit dtype, which are multiplied as they are."""

    def given(self, d_out, d_in, ranks, dtype, seed=0):
        rng = np.random.default_rng(seed)
        b = [
            round_from_float64(rng.normal(size=(d_out, r)) * np.exp(rng.normal(size=(d_out, r))), dtype) for r in ranks
        ]
        a = [round_from_float64(rng.normal(size=(r, d_in)), dtype) for r in ranks]
        return b, a

    @pytest.mark.parametrize("dtype", DTYPES[1:])
    @pytest.mark.parametrize(
        "shape", [(7, 47, (3, 0, 1)), (9, 49, (16, 16)), (66, 128, (16, 32)), (5, 40, (200, 56, 1, 30)), (3, 4, (1,))]
    )
    def test_bound(self, device, monkeypatch, shape, dtype):
        """The bound of the other kernel and 4 u more; that one is not called."""
        monkeypatch.setattr(lora_delta_sum, "_of_one_dtype", None)
        b, a = self.given(*shape, dtype)
        c = np.linspace(-0.2, 1, len(b) + 1)[1:]
        base = np.random.default_rng(3).normal(size=shape[:2]).astype(np.float32)
        got = fc.ops.lora_delta_sum(
            on(device, b), on(device, a), c, base=tensor_of(base).to(device), out_dtype="float64", backend="triton"
        )
        size = np.max([bound(b, a, c)], 0)
        terms = min(sum(shape[2]), 256)
        assert (np.abs(got.cpu().numpy() - dense(b, a, c, base)) <= size * (terms + 6) / (terms + 2)).all()

    @pytest.mark.parametrize("out_dtype", ["float32", "bfloat16"])
    def test_exact_products_have_the_definitions_bits(self, device, out_dtype):
        rng = np.random.default_rng(1)
        for ranks in ((3, 0, 17), (16, 16, 240, 32)):
            b = [rng.integers(-8, 9, (70, r)).astype(np.float16) for r in ranks]
            a = [rng.integers(-8, 9, (r, 131)).astype(np.float16) for r in ranks]
            options, c = {"out_dtype": out_dtype}, [1, 2, -3, 0][: len(ranks)]
            expected = fc.ops.lora_delta_sum(on("cpu", b), on("cpu", a), c, **options, backend="c")
            got = fc.ops.lora_delta_sum(on(device, b), on(device, a), c, **options, backend="triton")
            assert torch.equal(got.cpu(), expected)

    @pytest.mark.parametrize(("size", "c"), [(1e25, 1e-15), (1e18, 1e-42)], ids=["overflow", "small coefficient"])
    def test_what_needs_the_coefficient_first_is_left_to_the_other_kernel(self, device, size, c):
        b = [round_from_float64(np.full((4, 2), size), "bfloat16")]
        a = [round_from_float64(np.full((2, 5), size), "bfloat16")]
        got = fc.ops.lora_delta_sum(on(device, b), on(device, a), [c], backend="triton")
        np.testing.assert_allclose(got.cpu(), dense(b, a, [c]), rtol=1e-5)
        a[0] = round_from_float64(np.full((2, 5), np.nan), "bfloat16")
        with pytest.raises(NonFiniteError, match="client 0: a holds nan"):
            fc.ops.lora_delta_sum(on(device, b), on(device, a), [1.0], backend="triton")
