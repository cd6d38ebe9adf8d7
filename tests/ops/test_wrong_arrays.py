"""Arrays and tensors whose memory no kernel reads as it lies: each refused in one line that names it."""

from __future__ import annotations

import numpy as np
import pytest

import fedcore as fc
from fedcore.errors import DTypeError, ShapeError
from fedcore.rowtable import RowTable

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
    "weighted_sums": lambda rows: fc.ops.weighted_sums(rows, [[1.0] * 4] * 2),
    "squared_norms": lambda rows: fc.ops.squared_norms(rows),
    "squared_distances": lambda rows: fc.ops.squared_distances(rows, [[0, 1]]),
    "gram": lambda rows: fc.ops.gram(rows),
    "sign_counts": lambda rows: fc.ops.sign_counts(rows),
    "median": lambda rows: fc.ops.median(rows),
    "trimmed_mean": lambda rows: fc.ops.trimmed_mean(rows, 1),
    "mean_around_median": lambda rows: fc.ops.mean_around_median(rows, 1),
    "clip_noise_accumulate": lambda rows: fc.ops.clip_noise_accumulate(rows, 1.0),
    "Krum": lambda rows: fc.rules.Krum(1)(rows),
}
MASKED = "got a masked array, whose masked elements no op leaves out"


def masked(array):
    """With one element masked, the last."""
    return np.ma.masked_array(array, mask=np.arange(np.size(array)).reshape(np.shape(array)) == np.size(array) - 1)


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
    with torch.no_grad():  # as torch has it for what is written in place
        layer = torch.nn.Parameter(torch.ones(4, 5))
        fc.ops.lora_delta_sum([torch.ones(4, 1)], [torch.ones(1, 5)], [1.0], base=layer, out=layer)
    assert (layer == 2).all()
    fc.ops.weighted_sum(T, [1.0] * 4, out=out.detach())
    assert torch.equal(out.detach(), T.sum(0))


LORA = {
    "lora_delta_sum": fc.ops.lora_delta_sum,
    "lora_delta_median": fc.ops.lora_delta_median,
    "lora_delta_trimmed_mean": lambda b, a, c, **out: fc.ops.lora_delta_trimmed_mean(b, a, 1, c, **out),
}
#: ops on factors whose results are new
OF_FACTORS = LORA | {
    "lora_gram": lambda b, a, c: fc.ops.lora_gram([(b, a, c)]),
    "lora_blocks": lambda b, a, c: fc.ops.lora_blocks(b, a),
    "lora_truncate": lambda b, a, c: fc.ops.lora_truncate(b, a, c, 1),
    "lora_truncate_modules": lambda b, a, c: fc.ops.lora_truncate_modules([(b, a, c)], 1),
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


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype")
@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("op", sorted(OF_FACTORS))
def test_factors_that_are_not_plain_memory(op, kind):
    make, error, words = KINDS[kind]
    a = [T.T.contiguous()] * 3
    with pytest.raises(error, match=f"(client|row) 1: b: {words}"):
        OF_FACTORS[op]([T, make(), T], a, [1.0] * 3)


@pytest.mark.parametrize("op", sorted(OF_FACTORS))
def test_masked_factors(op):
    b, a = [X] * 3, [np.ascontiguousarray(X.T)] * 3
    with pytest.raises(DTypeError, match=f"(client|row) 2: b: {MASKED}"):
        OF_FACTORS[op]([X, X, masked(X)], a, [1.0] * 3)
    with pytest.raises(DTypeError, match=f"(client|row) 0: a: {MASKED}"):
        OF_FACTORS[op](b, [masked(a[0]), *a[1:]], [1.0] * 3)


def test_stacked_factors_that_are_masked_or_not_plain():
    a = np.ascontiguousarray(X.T)
    with pytest.raises(DTypeError, match=f"lora_truncate: b: {MASKED}"):
        fc.ops.lora_truncate(masked(X), a, [1.0] * 5, 1)
    with pytest.raises(DTypeError, match="lora_truncate: a: a sparse, nested or lazily negated tensor"):
        fc.ops.lora_truncate(T, torch._neg_view(torch.from_numpy(a)), [1.0] * 5, 1)


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype")
def test_a_base_that_is_not_plain_memory(kind):
    make, error, words = KINDS[kind]
    with pytest.raises(error, match=f"base: {words}"):
        fc.ops.lora_delta_sum([torch.ones(4, 1)], [torch.ones(1, 5)], [1.0], base=make())


@pytest.mark.parametrize("op", sorted(OPS))
def test_masks_are_refused_by_row(op):
    other = masked(X)
    for rows, what in ((other, "rows"), ([X[0], other[1], X[2], X[3]], "row 1"), ([*X[:3], other[3]], "row 3")):
        with pytest.raises(DTypeError, match=f"^{what}: {MASKED}"):
            OPS[op](rows)


KEY, NONCE = bytes(32), bytes(12)
BYTES, WORDS, KEYS = np.zeros(4, np.uint8), np.zeros(4, np.uint32), np.zeros((1, 32), np.uint8)
OTHERS = {
    "out": lambda: fc.ops.weighted_sum(X, [1.0] * 4, out=masked(X[0])),
    "center": lambda: fc.ops.gram(X, masked(X[0])),
    "total": lambda: fc.ops.squared_norms(X, total=masked(np.zeros(4))),
    "row 0": lambda: fc.ops.ExactSum(5).add(masked(X[0])),
    "base": lambda: fc.ops.lora_delta_sum([X], [X.T.copy()], [1.0], base=masked(np.zeros((4, 4), np.float32))),
    "noise": lambda: fc.ops.clip_noise_accumulate(X, 1.0, noise=masked(np.zeros(5, np.int64))),
    "hadamard: x": lambda: fc.ops.hadamard(masked(X[0, :4]), 4),
    "values": lambda: fc.ops.keystream_add(masked(WORDS), [KEY], NONCE, 0, [1]),
    "keystream_add: keys": lambda: fc.ops.keystream_add(WORDS.copy(), masked(KEYS), NONCE, 0, [1]),
    "keystream: key": lambda: fc.ops.keystream(4, masked(KEYS[0]), NONCE, 0),
    "mask_add: values": lambda: fc.ops.mask_add(masked(WORDS), [], [], 32),
    "unmask_sum: total": lambda: fc.ops.unmask_sum(masked(WORDS), [], [], 32),
    "pack_bits: residues": lambda: fc.ops.pack_bits(masked(WORDS), 8),
    "pack_bits: out": lambda: fc.ops.pack_bits(WORDS, 8, masked(BYTES)),
    "unpack_add: packed": lambda: fc.ops.unpack_add(masked(BYTES), 8, WORDS.copy()),
    "unpack_add: total": lambda: fc.ops.unpack_add(BYTES, 8, masked(WORDS)),
    "shamir_split: secrets": lambda: fc.ops.shamir_split(masked(KEYS), 1, 2, KEY),
    "shamir_combine: shares": lambda: fc.ops.shamir_combine([1], masked(KEYS[None])),
}


@pytest.mark.parametrize("what", OTHERS)
def test_masks_are_refused_wherever_an_array_is_taken(what):
    with pytest.raises(DTypeError, match=f"^{what}: {MASKED}"):
        OTHERS[what]()


VECTORS = {
    "hadamard: x": lambda x: fc.ops.hadamard(x.float(), 4),
    "values": lambda x: fc.ops.keystream_add(x.int(), [KEY], NONCE, 0, [1]),
    "mask_add: values": lambda x: fc.ops.mask_add(x, [], [], 32, scale=1.0, limit=3),
    "unmask_sum: total": lambda x: fc.ops.unmask_sum(x, [], [], 32),
    "pack_bits: residues": lambda x: fc.ops.pack_bits(x, 32),
    "unpack_add: packed": lambda x: fc.ops.unpack_add(x, 32, torch.zeros(4, dtype=torch.uint32)),
    "unpack_add: total": lambda x: fc.ops.unpack_add(b"abcd", 8, x),
    "noise": lambda x: fc.ops.clip_noise_accumulate(T[:, :4].contiguous(), 1.0, noise=x),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype")
@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("what", VECTORS)
def test_vectors_that_are_not_plain_memory(what, kind):
    make, error, words = KINDS[kind]
    given = make() if kind in ("sparse", "nested") else make()[0, :4]
    if what in ("hadamard: x", "values") and kind == "negated":  # a conversion would make it plain
        given = torch._neg_view(torch.ones(4, dtype=torch.float32 if what == "hadamard: x" else torch.int32))
    elif what == "noise":
        given = torch._neg_view(torch.ones(4, dtype=torch.int64)) if kind == "negated" else given.long()
    with pytest.raises(error, match=f"^{what}: {words}"):
        VECTORS[what](given)


def test_vectors_of_a_dtype_that_numpy_does_not_have():
    given = torch.zeros(4, dtype=torch.bfloat16)
    with pytest.raises(DTypeError, match="mask_add: got bfloat16 as values, which NumPy does not have; convert it"):
        fc.ops.mask_add(given, [], [], 32, scale=1.0, limit=3)
    with pytest.raises(DTypeError, match="pack_bits: got bfloat16 as residues, which NumPy does not have"):
        fc.ops.pack_bits(given, 8)


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_vectors_whose_elements_straddle_words_are_refused(kind):
    given = np.frombuffer(bytearray(21), np.uint8)[1:].view(np.uint32)
    given = torch.frombuffer(bytearray(21), dtype=torch.uint32, offset=1) if kind == "torch" else given
    for refused in (
        lambda: fc.ops.mask_add(given, [], [], 32),
        lambda: fc.ops.unmask_sum(given, [], [], 32),
        lambda: fc.ops.pack_bits(given, 8),
        lambda: fc.ops.unpack_add(np.zeros(5, np.uint8), 8, given),
    ):
        with pytest.raises(ShapeError, match=r"got shape \(5,\) as .*, expected one dimension without gaps, aligned"):
            refused()
    with pytest.raises(ShapeError, match=r"values: got shape \(5,\), expected one dimension, contiguous.* aligned"):
        fc.ops.keystream_add(given, [bytes(32)], bytes(12), 0, [1])


def test_results_go_to_no_read_only_array():
    out = np.ones(5, np.float32)
    out.flags.writeable = False
    for write in (lambda: fc.ops.weighted_sum(X, [1.0] * 4, out=out), lambda: fc.ops.median(X, out=out)):
        with pytest.raises(ShapeError, match=r"^out: expected a contiguous, writable array"):
            write()
    assert (out == 1).all()


def test_tables_of_no_rows():
    empty = RowTable([], np.zeros((1, 0), np.int64), np.array([5]), "float32")
    for op in OPS:
        with pytest.raises(ShapeError, match=r"^rows: got none, expected an \(n, d\) array or a non-empty sequence"):
            OPS[op](empty)
    with pytest.raises(ShapeError, match="center: got 0 × 5, expected one row of 5 columns"):
        fc.ops.gram(X, empty)


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
