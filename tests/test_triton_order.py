"""Triton order statistics against their definitions, under the interpreter and, with `-m gpu`, on a GPU.

Up to 32 rows are sorted in registers; above that blocks of 64 rows, in tiles of 128 columns.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the Triton kernels take torch tensors")
pytest.importorskip("triton", reason="Triton is not installed; fedcore[train] brings it")

from triton_rows import DTYPES, OUT_DTYPES, check_kernel, make_rows, place, values  # noqa: E402

import fedcore as fc  # noqa: E402
from fedcore.errors import NonFiniteError, RangeError  # noqa: E402
from fedcore.kernels import mean_around_median, median, order, trimmed_mean  # noqa: E402
from fedcore.reference import mean_around_median as mean_around_median_definition  # noqa: E402
from fedcore.reference import median as median_definition  # noqa: E402
from fedcore.reference import trimmed_mean as trimmed_mean_definition  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, for the Inf and NaN that tests feed

OPS = {
    "median": (median.median, median_definition.median),
    "trimmed_mean": (trimmed_mean.trimmed_mean, trimmed_mean_definition.trimmed_mean),
    "mean_around_median": (mean_around_median.mean_around_median, mean_around_median_definition.mean_around_median),
}
every_op = pytest.mark.parametrize("op", sorted(OPS))
#: in registers and through the scratch buffer
both_ways = pytest.mark.parametrize("n", [7, 40])


def largest_f(op: str, n: int) -> int:
    return n - 1 if op == "mean_around_median" else (n - 1) // 2


def check(op: str, tensors, f: int, out_dtype: str = "float32") -> bool:
    """Assert that kernel and definition agree; return the flag."""
    return check_kernel(*OPS[op], tensors, () if op == "median" else (f,), (len(tensors[0]),), out_dtype)


def result(op: str, tensors, f: int, out_dtype: str = "float32") -> np.ndarray:
    """What the kernel writes, as fp64."""
    out = torch.empty(len(tensors[0]), dtype=getattr(torch, out_dtype), device=tensors[0].device)
    assert not OPS[op][0](tensors, *(() if op == "median" else (f,)), out)
    return values(out)


@every_op
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("n", "d"), [(1, 1), (2, 1025), (3, 511), (4, 512), (8, 513), (9, 100), (16, 65), (31, 257), (32, 300)]
)
def test_bits_in_registers(device, op, dtype, n, d):
    tensors = make_rows(n, d, dtype, device, seed=n)
    for f, out_dtype in zip((0, n // 5, largest_f(op, n)), OUT_DTYPES[n % 2 :], strict=False):
        check(op, tensors, f, out_dtype)


@every_op
@pytest.mark.parametrize(("n", "d", "dtype"), [
    (33, 1, "float32"), (63, 127, "bfloat16"), (64, 128, "float16"), (65, 129, "float32"), (129, 300, "bfloat16"),
])  # fmt: skip
def test_bits_through_scratch(device, op, n, d, dtype):
    """300 columns are more tiles than there are programs under the interpreter."""
    tensors = make_rows(n, d, dtype, device, seed=n)
    for f, out_dtype in zip((n // 5, largest_f(op, n)), OUT_DTYPES[n % 3 :], strict=False):
        check(op, tensors, f, out_dtype)


@every_op
def test_many_rows(device, op):
    """Ten blocks under the interpreter, which takes minutes for the 64 of 4096 rows."""
    n = 600 if device == "cpu" else 4096
    check(op, make_rows(n, 3, "float16", device), n // 8)


@every_op
@both_ways
def test_equal_values_and_signed_zeros(device, op, n):
    """Columns of few distinct values, zeros of both signs among them; a zero result is +0."""
    rng = np.random.default_rng(n)
    tensors = [place(rng.choice([-0.0, 0.0, 1.0, -1.0, 0.5], 200), "float32", device) for _ in range(n)]
    for row in tensors:
        row[:50] = -0.0
    check(op, tensors, n // 3)
    assert not np.signbit(result(op, tensors, n // 3)[:50]).any()


@every_op
@both_ways
def test_a_result_that_rounds_to_zero_is_positive(device, op, n):
    assert not np.signbit(result(op, [place([-(2.0**-30)], "float32", device)] * n, 1, "float16")).any()
    assert not np.signbit(result(op, [place([-(2.0**-149)], "float32", device)] * n, 1, "bfloat16")).any()


@every_op
@both_ways
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_magnitude(device, op, n, dtype):
    """From subnormal to the largest finite number, both signs, which pads must not displace."""
    bits = np.random.default_rng(n).integers(0, 1 << 16, (n, 200)).astype(np.uint16)
    shift = 16 if dtype == "float32" else 0
    kind = {"float32": torch.int32, "float16": torch.int16, "bfloat16": torch.int16}[dtype]
    signed = (bits.astype(np.int64) << shift).astype(np.int32 if shift else np.int16)
    rows = torch.tensor(signed, dtype=kind).view(getattr(torch, dtype))
    largest = torch.finfo(rows.dtype).max
    rows = torch.nan_to_num(rows, nan=largest, posinf=largest, neginf=-largest).to(device)
    check(op, list(rows), n // 4, "float64")


@every_op
@both_ways
@pytest.mark.parametrize("value", [float("nan"), -float("nan"), float("inf"), -float("inf")])
def test_not_finite_is_reported_wherever_it_sorts(device, op, n, value):
    for column in (0, 128, 130):
        tensors = make_rows(n, 131, "bfloat16", device)
        tensors[n // 2][column] = value
        assert check(op, tensors, n // 3)


@every_op
@both_ways
def test_a_result_that_does_not_fit_is_reported(device, op, n):
    tensors = [place([1.0, 1e6], "float32", device)] * n
    assert check(op, tensors, 1, "float16")
    assert not check(op, tensors, 1, "bfloat16")


@every_op
@both_ways
def test_the_order_of_the_rows_does_not_matter(device, op, n):
    tensors = make_rows(n, 150, "float32", device, spread=6.0)
    shuffled = [tensors[i] for i in np.random.default_rng(0).permutation(n)]
    np.testing.assert_array_equal(result(op, tensors, 2), result(op, shuffled, 2))


@pytest.mark.parametrize("op", ["trimmed_mean", "mean_around_median"])
@both_ways
def test_kept_values_are_added_in_ascending_order(device, op, n):
    """Of magnitudes so far apart that nearly every order of additions has bits of its own."""
    check(op, make_rows(n, 300, "float32", device, seed=n, spread=12.0), 1, "float64")


@both_ways
def test_what_was_trimmed_never_enters_the_sum(device, n):
    """An extreme that was added and subtracted again would leave nothing of the small ones."""
    rows = [[1e30]] + [[float(2**-i)] for i in range(n - 2)] + [[-1e30]]
    kept = sorted(value for (value,) in rows)[1:-1]
    expected = 0.0
    for value in kept:
        expected += value
    found = result("trimmed_mean", [place(row, "float32", device) for row in rows], 1, "float64")
    assert found[0] == expected / (n - 2)


@pytest.mark.parametrize("pad", [0, 40])
def test_a_tie_around_the_median_goes_to_the_smaller(device, pad):
    """−2, 0, 0, 2 with f = 1: −2 stays. Pairs of zeros bring the same columns above 32 rows."""
    rows = [place([v], "float32", device) for v in (2.0, 0.0, -2.0, *[0.0] * (1 + pad))]
    assert result("mean_around_median", rows, 1, "float64")[0] == -2.0 / (3 + pad)


@pytest.mark.parametrize(("n", "dtype"), [(5, "float16"), (15, "bfloat16"), (33, "float32")])
def test_what_is_closest_stays_where_more_than_half_is_left_out(device, n, dtype):
    """Columns of −1, 0 and 1: equal elements below the median, at equal distances from it, and closer ones above."""
    columns = np.random.default_rng(n).integers(-1, 2, (n, 60)).astype(float)
    for zeros in range(n):
        columns[:, zeros] = np.repeat([-1.0, 0.0, 1.0], [(n - zeros + 1) // 2, zeros, (n - zeros) // 2])
    tensors, middle = [place(row, dtype, device) for row in columns], np.median(columns, axis=0)
    for f in (n // 2 + 1, n - 1):
        check("mean_around_median", tensors, f, "float64")
        mean = fc.ops.mean_around_median(columns.astype(np.float32), f, out_dtype="float64", backend="reference")
        closest = np.sort(np.abs(columns - middle), axis=0)[: n - f].sum(0)
        assert (np.abs(mean - middle) * (n - f) <= closest).all()


@every_op
def test_no_columns(device, op):
    assert not check(op, make_rows(5, 0, "float32", device), 1)
    assert not check(op, make_rows(50, 0, "float32", device), 1)


@pytest.mark.parametrize("n", range(1, 12))
def test_the_network_sorts(n):
    """By the zero-one principle, all columns of zeros and ones."""
    columns = np.array(list(itertools.product((0, 1), repeat=n))).T
    for layer in order.exchange_layers(n):
        partner = list(layer)
        lower = np.arange(n) < partner
        same = np.arange(n) == partner
        swapped = columns[partner]
        low, high = np.minimum(columns, swapped), np.maximum(columns, swapped)
        columns = np.where(same[:, None], columns, np.where(lower[:, None], low, high))
    assert (np.diff(columns, axis=0) >= 0).all()


@every_op
def test_public_op(device, op):
    tensors = make_rows(6, 60, "bfloat16", device)
    arguments = () if op == "median" else (1,)
    found = getattr(fc.ops, op)(tensors, *arguments, out_dtype="bfloat16", backend="triton")
    expected = getattr(fc.ops, op)([t.cpu() for t in tensors], *arguments, out_dtype="bfloat16", backend="reference")
    assert (found.dtype, found.device.type) == (torch.bfloat16, device)
    np.testing.assert_array_equal(values(found), values(expected))
    big = [place([1e6] * 3, "float32", device)] * 4
    with pytest.raises(RangeError, match="does not fit float16"):
        getattr(fc.ops, op)(big, *arguments, out_dtype="float16", backend="triton")
    tensors[4][7] = float("nan")
    with pytest.raises(NonFiniteError, match="row 4 holds nan at column 7"):
        getattr(fc.ops, op)(tensors, *arguments, backend="triton")
