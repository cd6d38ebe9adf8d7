"""Arrays and tensors whose memory no kernel reads as it lies: each refused in one line that names it."""

from __future__ import annotations

import numpy as np
import pytest

import fedcore as fc
from fedcore.errors import DTypeError, ShapeError, WeightError

torch = pytest.importorskip("torch")

X = np.arange(20, dtype=np.float32).reshape(4, 5)
T = torch.from_numpy(X)
KINDS = {
    "on meta": (lambda: T.to("meta"), ShapeError, "on meta, expected main memory or a GPU"),
    "sparse": (lambda: T.to_sparse(), DTypeError, "a sparse, nested or lazily negated tensor"),
    "negated": (lambda: torch._neg_view(T), DTypeError, "a sparse, nested or lazily negated tensor"),
    "nested": (lambda: torch.nested.nested_tensor(list(T)), DTypeError, "a sparse, nested or lazily negated tensor"),
}
OPS = {
    "weighted_sum": lambda rows: fc.ops.weighted_sum(rows, [1.0] * 4),
    "gram": lambda rows: fc.ops.gram(rows),
    "median": lambda rows: fc.ops.median(rows),
    "Krum": lambda rows: fc.rules.Krum(1)(rows),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype")
@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("op", sorted(OPS))
def test_tensors_that_are_not_plain_memory(op, kind):
    make, error, words = KINDS[kind]
    with pytest.raises(error, match=f"rows: {words}"):
        OPS[op](make())


@pytest.mark.parametrize("kind", ["negated", "on meta"])
def test_rows_weights_and_results_that_are_not_plain_memory(kind):
    make, error, words = KINDS[kind]
    with pytest.raises(error, match=f"row 1: {words}"):
        fc.ops.median([T[0], make()[1], T[2]])
    with pytest.raises(error, match=f"weights: {words}"):
        fc.ops.weighted_sum(T, make()[:, 0])
    with pytest.raises(error, match=f"out: {words}"):
        fc.ops.weighted_sum(T, [1.0] * 4, out=make()[0])


def test_a_result_that_requires_gradients_is_refused_and_stays():
    out = torch.zeros(5, requires_grad=True)
    with pytest.raises(DTypeError, match=r"out: requires gradients, which pass no kernel; pass out.detach\(\)"):
        fc.ops.weighted_sum(T, [1.0] * 4, out=out)
    assert not out.any()
    fc.ops.weighted_sum(T, [1.0] * 4, out=out.detach())
    assert torch.equal(out.detach(), T.sum(0))


LORA = {
    "lora_delta_sum": fc.ops.lora_delta_sum,
    "lora_delta_median": fc.ops.lora_delta_median,
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype")
@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("op", sorted(LORA))
def test_factors_and_their_results_that_are_not_plain_memory(op, kind):
    make, error, words = KINDS[kind]
    b, a = [T, T, T], [T.T.contiguous()] * 3
    with pytest.raises(error, match=f"client 1: b: {words}"):
        LORA[op]([T, make(), T], a, [1.0] * 3)
    with pytest.raises(error, match=f"out: {words}"):
        LORA[op](a, b, [1.0] * 3, out=make())
    with pytest.raises(DTypeError, match=r"out: requires gradients"):
        LORA[op](b, a, [1.0] * 3, out=torch.zeros(4, 4, requires_grad=True))


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype")
def test_a_base_that_is_not_plain_memory(kind):
    make, error, words = KINDS[kind]
    with pytest.raises(error, match=f"base: {words}"):
        fc.ops.lora_delta_sum([torch.ones(4, 1)], [torch.ones(1, 5)], [1.0], base=make())


def test_masks_are_refused_by_row():
    masked = np.ma.masked_array(X, mask=X > 12)
    for rows, what in ((masked, "rows"), ([X[0], masked[1], X[2]], "row 1"), ([*X[:3], masked[3]], "row 3")):
        with pytest.raises(DTypeError, match=f"^{what}: got a masked array, whose masked elements no op leaves out"):
            fc.ops.weighted_sum(rows, [1.0] * len(rows))


def test_weights_of_bf16_count():
    weights = torch.tensor([1.0, 2.5, -3.0, 4.0], dtype=torch.bfloat16)
    expected = fc.ops.weighted_sum(X, [1.0, 2.5, -3.0, 4.0])
    assert np.array_equal(fc.ops.weighted_sum(X, weights), expected)
    assert np.array_equal(fc.ops.weighted_sum(T, weights).numpy(), expected)
    assert np.array_equal(fc.rules.Mean()(T, weights=weights.abs()), fc.rules.Mean()(X, weights=[1.0, 2.5, 3.0, 4.0]))


@pytest.mark.parametrize("divisor", [10**400, "5", [1.0, 2.0]])
def test_divisors_that_are_no_number_of_fp64(divisor):
    with pytest.raises(WeightError, match=r"divisor: got .* expected a number that fp64 holds"):
        fc.ops.weighted_sum(X, [1.0] * 4, divisor)


def test_what_is_no_row_is_named():
    with pytest.raises(ShapeError, match=r"rows: got generator, expected an \(n, d\) array"):
        fc.ops.median(row for row in X)
    with pytest.raises(ShapeError, match="rows: got none, expected"):
        fc.ops.median([])
    with pytest.raises(ShapeError, match=r"center: got shape \(1, 5\), expected one row of 5 columns"):
        fc.ops.gram(X, X[:1])
    with pytest.raises(ShapeError, match="center: got list, expected one row of 5 columns"):
        fc.ops.gram(X, [0.0] * 5)
    with pytest.raises(DTypeError, match="center: got float64, expected one of float32"):
        fc.ops.gram(X, X[0].astype(np.float64))
    with pytest.raises(DTypeError, match="dtype: got None, expected one of float32"):
        fc.ops.weighted_sum(X, [1.0] * 4, out_dtype=None)
