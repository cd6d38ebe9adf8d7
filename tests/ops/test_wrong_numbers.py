"""Numbers beside rows and factors: of any kind of array or tensor, and each wrong kind refused in one line by name."""

from __future__ import annotations

from decimal import Decimal

import ml_dtypes
import numpy as np
import pytest

import fedcore as fc
from fedcore.errors import DTypeError, FedcoreError, RangeError, ShapeError, WeightError

torch = pytest.importorskip("torch")

X = np.arange(20, dtype=np.float32).reshape(4, 5)
B, A = [X[:, :2].copy()] * 4, [X[:2].copy()] * 4
KEY, NONCE = bytes(32), bytes(12)


def added(signs):
    total = np.zeros(4, np.uint32)
    fc.ops.keystream_add(total, [KEY] * 4, NONCE, 0, signs)
    return total


#: what messages call the argument -> (what is called with it, numbers that it takes, as exact in bf16)
VECTORS = {
    "weights": (lambda w: fc.ops.weighted_sum(X, w), [1.0, 2.5, -3.0, 4.0]),
    "divisors": (lambda d: fc.ops.weighted_sums(X, np.ones((4, 4)), d), [1.0, 2.5, -3.0, 4.0]),
    "coefficients": (lambda c: fc.ops.lora_delta_sum(B, A, c), [1.0, 2.5, -3.0, 4.0]),
    "lora_delta_median: coefficients": (lambda c: fc.ops.lora_delta_median(B, A, c), [1.0, 2.5, -3.0, 4.0]),
    "module 0: coefficients": (lambda s: fc.ops.lora_gram([(B, A, s)]), [1.0, 2.5, -3.0, 4.0]),
    "lora_truncate: coefficients": (lambda c: fc.ops.lora_truncate(B, A, c, 1)[1].b, [1.0, 2.5, -3.0, 4.0]),
    "signs": (added, [1, -1, 1, 1]),
    "shamir_combine: points": (lambda p: fc.ops.shamir_combine(p, np.eye(4, 3, dtype=np.uint8)[:, None]), [1, 2, 3, 4]),
}
MATRICES = {
    "weights": (lambda w: fc.ops.weighted_sums(X, w), [[1.0, 2.5, -3.0, 4.0], [0.0, 0.0, 1.0, 2.0]]),
    "mix": (
        lambda m: fc.ops.squared_distances(X, [[0, 1]], mix=m),
        [[1.0, 2.5, -3.0, 4.0], [0.0, 0.0, 1.0, 2.0]],
    ),
    "pairs": (lambda p: fc.ops.squared_distances(X, p), [[0, 1], [1, 3]]),
}
CALLS = [(name.rpartition("_median: ")[2], *rest) for table in (VECTORS, MATRICES) for name, rest in table.items()]
IDS = [*VECTORS, *(f"{name} in rows" for name in MATRICES)]


@pytest.mark.parametrize(("name", "call", "numbers"), CALLS, ids=IDS)
def test_numbers_of_any_kind_count_alike(name, call, numbers):
    expected = call(numbers)
    whole = isinstance(np.ravel(numbers)[0].item(), int)
    given, array = torch.tensor(numbers), np.array(numbers)
    kinds = [array, tuple(numbers), given, given.clone()]
    if name == "pairs":
        kinds += [given.to(torch.int16)]
    elif name.endswith("points"):
        kinds += [given.to(torch.uint8)]
    else:
        kinds += [given.bfloat16(), given.half(), given.float().requires_grad_(), list(given.bfloat16())]
        kinds += [array.astype(ml_dtypes.bfloat16), np.vectorize(Decimal, otypes=[object])(array)]
    kinds += [[list(part) if part.ndim else part for part in given]] if whole else []
    for value in kinds:
        np.testing.assert_array_equal(call(value), expected)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype")
@pytest.mark.parametrize(("name", "call", "numbers"), CALLS, ids=IDS)
def test_wrong_kinds_are_refused_by_name(name, call, numbers):
    array, given = np.array(numbers), torch.tensor(numbers)
    mask = np.ma.masked_array(array, mask=np.zeros(array.shape, bool))
    mask[-1] = np.ma.masked
    plain = "a sparse, nested or lazily negated tensor"
    for value, words in (
        (mask, "got a masked array, whose masked elements no op leaves out"),
        ([*numbers[:-1], mask[-1]], "got a masked array, whose masked elements no op leaves out"),
        (given.to_sparse(), plain),
        (torch._neg_view(given), plain),
        (torch.nested.nested_tensor([given, given]), plain),
        (array.astype(complex), "got complex128, expected"),
        (given.to(torch.complex64), "got complex64, expected"),
        (array.astype(str), "got <U[0-9]+, expected"),
        ("abcd", "got str, expected"),
        ({1.0}, "got set, expected"),
        (given.float().to(torch.float8_e5m2), r"got torch\.float8_e5m2, expected"),
        (np.full(array.shape, None), "got (object|None at 0.*), expected"),
    ):
        with pytest.raises(DTypeError, match=f"^{name}: {words}") as error:
            call(value)
        assert "\n" not in str(error.value)
    with pytest.raises(ShapeError, match=f"^{name}: on meta, expected main memory"):
        call(given.to("meta"))
    with pytest.raises(ShapeError, match=f"^{name}: got lists of different lengths, expected .* one regular array"):
        call([[1, 2], [3]])


#: one number each: (what is called with it, a number that it takes, what it raises)
NUMBERS = {
    "divisor": (lambda d: fc.ops.weighted_sum(X, [1.0] * 4, d), 2.5, WeightError),
    "clip": (lambda c: fc.ops.clip_round(X[0], c).integers, 2.5, RangeError),
    "grid": (lambda g: fc.ops.clip_round(X[0], 32.0, g).integers, 0.25, RangeError),
    "mask_add: (got )?scale": (
        lambda s: fc.ops.mask_add(X[0], [], [], 32, scale=s, limit=1 << 20),
        2.5,
        RangeError,
    ),
    "lora_truncate: (got )?scale": (lambda s: fc.ops.lora_truncate(B, A, [1.0] * 4, 1, scale=s)[1].b, 2.5, WeightError),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_one_number_of_any_kind(name):
    call, number, error = NUMBERS[name]
    expected = call(number)
    given = torch.tensor(number)
    for value in (np.float16(number), np.array(number), given, given.bfloat16(), given.clone().requires_grad_()):
        np.testing.assert_array_equal(call(value), expected)
    wrong = (str(number), str(number).encode(), np.array(str(number)), 1j, np.complex64(number), 10**400, [1.0, 2.0])
    for value in (*wrong, torch.tensor(number + 1j), given.expand(2), {}):
        with pytest.raises(error, match=f"^{name}\\W"):
            call(value)
    with pytest.raises(DTypeError, match=f"^{name}: got a masked array"):
        call(np.ma.masked_array(number, mask=True))
    with pytest.raises(ShapeError, match=f"^{name}: on meta"):
        call(given.to("meta"))
    with pytest.raises(DTypeError, match=f"^{name}: a sparse, nested or lazily negated tensor"):
        call(torch._neg_view(given))


@pytest.mark.parametrize("divisor", [10**400, "5", [1.0, 2.0]])
def test_divisors_that_are_no_number_of_fp64(divisor):
    with pytest.raises(WeightError, match=r"divisor: got .* expected a number that fp64 holds"):
        fc.ops.weighted_sum(X, [1.0] * 4, divisor)


def test_weights_of_a_rule():
    weights = torch.tensor([1.0, 2.5, 3.0, 4.0], dtype=torch.bfloat16)
    expected = fc.rules.Mean()(X, weights=[1.0, 2.5, 3.0, 4.0])
    assert np.array_equal(fc.rules.Mean()(torch.from_numpy(X), weights=weights).numpy(), expected)
    with pytest.raises(DTypeError, match=r"^weights: got a masked array"):
        fc.rules.Mean()(X, weights=np.ma.masked_array([1.0] * 4, mask=[0, 1, 0, 0]))


@pytest.mark.parametrize("start", [0.0, "0", True, -8192, 100, 1 << 70])
def test_where_a_part_of_a_row_begins(start):
    total = fc.ops.ExactSum(3 * 8192)
    with pytest.raises(ShapeError, match=r"^start: got .*for 8192 columns, expected a multiple of 8192") as error:
        total.add(np.ones(8192, np.float32), start=start)
    assert len(str(error.value)) < 200
    assert not total.result().any()
    total.add(np.ones(8192, np.float32), start=np.int64(8192))
    assert total.result().sum() == 8192


def test_residues_that_overlap_what_they_are_added_to():
    words = np.arange(8, dtype=np.uint32)
    for part in (words.view(np.uint8)[:4], words.view(np.uint8)[-8:], torch.from_numpy(words.view(np.uint8))[8:12]):
        with pytest.raises(ShapeError, match="unpack_add: packed overlaps total; pass other memory"):
            fc.ops.unpack_add(part, 8, words)
    assert np.array_equal(words, np.arange(8))
    fc.ops.unpack_add(words.view(np.uint8)[:4], 8, words[1:])
    with pytest.raises(FedcoreError):
        fc.ops.unpack_add(memoryview(words), 8, words)
