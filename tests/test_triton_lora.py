"""Triton kernels of LoRA factors against their definitions and documented bounds, interpreted and on a GPU."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the Triton kernels take torch tensors")
pytest.importorskip("triton", reason="Triton is not installed; fedcore[train] brings it")

from lora_factors import SHAPES, bound, dense, make_factors  # noqa: E402

import fedcore as fc  # noqa: E402
from fedcore.errors import NonFiniteError, RangeError  # noqa: E402
from fedcore.kernels import lora_delta_sum  # noqa: E402
from fedcore.ops.factors import tensor_of  # noqa: E402
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
