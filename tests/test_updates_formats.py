"""Updates that travel in other formats: what the bytes are, what the engine makes of them, and every kind of damage."""

from __future__ import annotations

import json

import numpy as np
import pytest
from inputs import same_bits

import fedcore as fc
from fedcore.dtypes import round_from_float64, to_float64
from fedcore.errors import DTypeError, FormatError, LayoutError, NonFiniteError, RangeError
from fedcore.updates import Cohort, Update

FORMATS = ("int8", "nf4", "bfloat16", "float16")
A, B = "m.lora_A.weight", "m.lora_B.weight"


def make_update(i: int, dtype: str = "float32") -> Update:
    """Two factors and a dense tensor whose sizes are multiples of no block, a scalar, and one without elements."""
    rng = np.random.default_rng(i)
    shapes = {A: (4, 67), B: (35, 4), "head": (3, 411), "bias": (), "none": (0, 3)}
    tensors = {name: round_from_float64(rng.normal(size=shape), dtype) for name, shape in shapes.items()}
    return Update.from_tensors(tensors, client_id=f"client-{i}", scaling={"m": 2.0}, num_examples=10 + i)


def decoded(update: Update) -> Update:
    """The same update with what its tensors decode to, as plain fp32."""
    tensors = {name: to_float64(tensor).astype(np.float32) for name, tensor in update.tensors.items()}
    return Update.from_tensors(
        tensors, client_id=update.client_id, scaling=update.scaling, num_examples=update.num_examples
    )


@pytest.fixture(params=FORMATS)
def format(request) -> str:
    return request.param


def test_bytes_bring_back_what_was_quantised(format):
    update = make_update(0)
    sent = update.quantize(format)
    found = Update.from_bytes(sent.to_bytes())
    assert found.layout == sent.layout
    assert set(found.layout.formats) == {format}
    assert found.layout.dtypes == update.layout.dtypes
    assert (found.client_id, found.num_examples, found.scaling) == ("client-0", 10, {"m": 2.0})
    assert found.digest() == sent.digest() != update.digest()
    assert found.to_bytes() == sent.to_bytes()
    for name, tensor in update.tensors.items():
        assert found.tensors[name].shape == tensor.shape
        assert same_bits(found.tensors[name], sent.tensors[name])
        assert not found.tensors[name].flags.writeable
        if format in ("int8", "nf4"):
            again = fc.Quantized.from_array(tensor, format)
            assert same_bits(found.tensors[name], again.to_float32())
            assert found.stored(name).format == format
        else:
            assert same_bits(found.stored(name), round_from_float64(tensor.astype(np.float64), format))


def test_bytes_shrink_by_what_the_formats_promise():
    update = Update.from_tensors({"x": np.random.default_rng(0).normal(size=64 * 4096).astype(np.float32)})
    plain = len(update.to_bytes())
    ratios = {format: len(update.quantize(format).to_bytes()) / plain for format in FORMATS}
    assert ratios["float16"] == pytest.approx(1 / 2, abs=1e-3)
    assert ratios["bfloat16"] == pytest.approx(1 / 2, abs=1e-3)
    assert ratios["int8"] == pytest.approx(1 / 4 + 1 / 64, abs=1e-3)
    assert ratios["nf4"] == pytest.approx(1 / 8 + 1 / 256 + 1 / 64 / 256, abs=1e-3)


def test_the_file_is_what_safetensors_and_bitsandbytes_read():
    """Names, dtypes and shapes as documented; the NF4 arrays are those of bitsandbytes."""
    safetensors = pytest.importorskip("safetensors", reason="reads the file")
    update = make_update(1)
    found = dict(safetensors.deserialize(update.quantize("nf4").to_bytes()))
    assert {name: (entry["dtype"], entry["shape"]) for name, entry in found.items() if name.startswith("head")} == {
        "head": ("U8", [617, 1]),
        "head.absmax": ("U8", [20]),
        "head.nested_absmax": ("F32", [1]),
        "head.nested_offset": ("F32", [1]),
    }
    eight = dict(safetensors.deserialize(update.quantize("int8").to_bytes()))
    assert {name: (entry["dtype"], entry["shape"]) for name, entry in eight.items() if name.startswith("head")} == {
        "head": ("I8", [3, 411]),
        "head.absmax": ("F32", [20]),
    }
    torch = pytest.importorskip("torch", reason="bitsandbytes works on torch tensors")
    functional = pytest.importorskip("bitsandbytes.functional", reason="bitsandbytes is not installed")
    given = torch.from_numpy(update.tensors["head"].copy())
    packed, state = functional.quantize_4bit(given, quant_type="nf4", compress_statistics=True, blocksize=64)
    assert bytes(found["head"]["data"]) == packed.numpy().tobytes()
    state.absmax = torch.frombuffer(bytearray(found["head.absmax"]["data"]), dtype=torch.uint8)
    state.state2.absmax = torch.frombuffer(bytearray(found["head.nested_absmax"]["data"]), dtype=torch.float32)
    state.offset = torch.frombuffer(bytearray(found["head.nested_offset"]["data"]), dtype=torch.float32)[0]
    theirs = functional.dequantize_4bit(packed, state).numpy()
    assert same_bits(theirs, Update.from_bytes(update.quantize("nf4").to_bytes()).tensors["head"])


@pytest.mark.parametrize("space", ["parameters", "delta"])
@pytest.mark.parametrize("rule", [fc.rules.Mean(), fc.rules.Krum(f=1), fc.rules.NormClipping(max_norm=20.0)])
@pytest.mark.parametrize("with_reference", [False, True])
def test_rules_see_the_decoded_updates(format, space, rule, with_reference):
    sent = [Update.from_bytes(make_update(i).quantize(format).to_bytes()) for i in range(6)]
    reference = make_update(99) if with_reference else None
    got = fc.aggregate(sent, rule, space=space, reference=reference)
    expected = fc.aggregate([decoded(update) for update in sent], rule, space=space, reference=reference)
    assert got.coefficients == expected.coefficients
    assert got.update.digest() == expected.update.digest()
    assert got.update.layout == make_update(0).layout


def test_clients_may_mix_formats_and_the_reference_may_be_quantised():
    formats = (None, "int8", "nf4", "bfloat16", "float16", "int8")
    sent = [make_update(i) if f is None else make_update(i).quantize(f) for i, f in enumerate(formats)]
    for reference in (None, make_update(99), make_update(99).quantize("nf4")):
        plain = None if reference is None else decoded(reference)
        for space in ("parameters", "delta"):
            got = fc.aggregate(sent, fc.rules.Krum(f=1), space=space, reference=reference)
            expected = fc.aggregate([decoded(u) for u in sent], fc.rules.Krum(f=1), space=space, reference=plain)
            assert got.update.digest() == expected.update.digest()


def test_the_result_has_the_dtype_that_was_quantised(format):
    """bf16 updates as int8 are averaged from what they decode to, and the mean is rounded once, to bf16."""
    sent = [make_update(i, "bfloat16").quantize(format) for i in range(3)]
    got = fc.aggregate(sent, fc.rules.Mean(), space="parameters")
    assert set(got.update.layout.dtypes) == set(got.update.layout.formats) == {"bfloat16"}
    rows = [update.tensors["head"].reshape(-1) for update in sent]
    weights = [update.num_examples for update in sent]
    expected = fc.ops.weighted_sum(
        [to_float64(row).astype(np.float32) for row in rows], weights, sum(weights), out_dtype="bfloat16"
    )
    assert same_bits(got.update.tensors["head"].reshape(-1), expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_peft_directory_is_written_decoded(tmp_path, format, dtype):
    rng = np.random.default_rng(3)
    tensors = {A: rng.normal(size=(4, 67)), B: rng.normal(size=(35, 4))}
    update = Update.from_tensors({n: round_from_float64(t, dtype) for n, t in tensors.items()}, scaling={"m": 2.0})
    sent = update.quantize(format)
    sent.to_peft(tmp_path / "adapter")
    found = Update.from_peft(tmp_path / "adapter")
    assert set(found.layout.formats) == set(found.layout.dtypes) == {dtype}
    for name in (A, B):
        expected = round_from_float64(to_float64(sent.tensors[name]), dtype)
        assert same_bits(found.tensors[name].copy(), expected)


def test_a_quantised_file_is_read_from_a_peft_directory(tmp_path):
    update = make_update(2)
    update.to_peft(tmp_path / "a")
    (tmp_path / "a" / "adapter_model.safetensors").write_bytes(update.quantize("nf4").to_bytes())
    found = Update.from_peft(tmp_path / "a")
    assert same_bits(found.tensors[A], update.quantize("nf4").tensors[A])


def test_what_a_client_trained_to_nan_is_named_or_excluded():
    tensors = {name: np.array(tensor) for name, tensor in make_update(1).tensors.items()}
    tensors["head"][2, 7] = np.nan
    bad = Update.from_tensors(tensors, client_id="client-1", scaling={"m": 2.0}).quantize("int8")
    sent = [make_update(0).quantize("int8"), Update.from_bytes(bad.to_bytes()), make_update(2).quantize("int8")]
    with pytest.raises(NonFiniteError, match=r"client 'client-1': tensor 'head' holds NaN or Inf at element 768"):
        fc.aggregate(sent, fc.rules.Mean(), space="parameters")
    got = fc.aggregate(sent, fc.rules.Mean(), space="parameters", on_nonfinite="exclude")
    assert list(got.excluded) == ["client-1"]


def test_what_does_not_fit_is_refused_by_name():
    big = Update.from_tensors({"x": np.float32([1, 70000.0])})
    with pytest.raises(RangeError, match="tensor 'x': an element does not fit float16; choose another format"):
        big.quantize("float16")
    with pytest.raises(RangeError, match=r"tensor .x.: quantise: a magnitude of 3"):
        Update.from_tensors({"x": np.full(3, 3.4028235e38, np.float32)}).quantize("int8")
    with pytest.raises(DTypeError, match="format: got 'fp4', expected one of float32, float16, bfloat16, int8, nf4"):
        big.quantize("fp4")
    taken = Update.from_tensors({"x": np.zeros(3, np.float32), "x.absmax": np.zeros(3, np.float32)})
    with pytest.raises(LayoutError, match=r"'x\.absmax': is also the name of a scale array"):
        taken.quantize("int8")
    long = Update.from_tensors({"x" * 510: np.zeros(3, np.float32)})
    with pytest.raises(LayoutError, match="its name has 517 characters"):
        long.quantize("int8")


def test_quantising_again_goes_by_what_was_decoded():
    update = make_update(4)
    once = update.quantize("nf4")
    assert once.quantize("float32").digest() == decoded(once).digest()
    assert same_bits(once.quantize("int8").tensors["head"], decoded(once).quantize("int8").tensors["head"])


def tampered(format: str, change) -> bytes:
    """The bytes of a quantised update whose header went through `change`; data and lengths stay as they are."""
    data = make_update(0).quantize(format).to_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def said(header: dict) -> dict:
    return json.loads(header["__metadata__"]["fedcore.formats"])


def say(header: dict, name: str, **fields) -> None:
    entries = said(header)
    entries[name] = entries.get(name, {"format": "int8", "dtype": "float32", "shape": [1]}) | fields
    header["__metadata__"]["fedcore.formats"] = json.dumps(entries)


def forget(header: dict) -> None:
    del header["__metadata__"]["fedcore.formats"]


def rename(header: dict, old: str, new: str) -> None:
    header[new] = header.pop(old)


def shape(header: dict, name: str, to: list[int]) -> None:
    header[name]["shape"] = to


@pytest.mark.parametrize("format", ["int8", "nf4"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (forget, "got dtype '[IU]8', expected one of F32, F16, BF16"),
        (lambda h: rename(h, "head.absmax", "other"), "tensor 'head': its 'head.absmax' is missing"),
        (
            lambda h: shape(h, "head.absmax", [4, 5]),
            r"'head.absmax' is .* of shape \(4, 5\), expected .* of shape \(20,\)",
        ),
        (lambda h: say(h, "head", shape=[3, 412]), r"tensor 'head': 'head.*' is .*expected"),
        (lambda h: say(h, "head", shape=[3, 700]), r"tensor 'head': 'head.*' is .*expected"),
        (lambda h: say(h, "head", shape=[1 << 61]), "tensor 'head': got shape"),
        (lambda h: say(h, "head", shape=[1 << 40, 1 << 40]), "whose sizes overflow"),
        (lambda h: say(h, "head", shape=[-3, 411]), "tensor 'head': got shape"),
        (lambda h: say(h, "head", shape=[3.0, 411]), "tensor 'head': got shape"),
        (lambda h: say(h, "head", shape=[1] * 40), "tensor 'head': got shape"),
        (lambda h: say(h, "head", shape="x"), "tensor 'head': got shape"),
        (lambda h: say(h, "head", format="fp4"), "got 'fp4' for 'float32'"),
        (lambda h: say(h, "head", format=["int8"]), r"got \['int8'\] for 'float32'"),
        (lambda h: say(h, "head", format="float32"), "got 'float32' for 'float32'"),
        (lambda h: say(h, "head", dtype="float64"), "for 'float64'"),
        (lambda h: say(h, "head", dtype={}), "expected a format of"),
        (lambda h: say(h, "head", more=1), "expected exactly the fields format, dtype, shape"),
        (lambda h: say(h, "head", format="bfloat16"), "tensor 'head': 'head' is .*expected BF16"),
        (lambda h: say(h, "other"), "tensor 'other': its 'other' is missing"),
        (lambda h: say(h, ""), "its name is reserved or empty"),
        (lambda h: say(h, "head.absmax", shape=[20]), "is also the name of a scale array"),
        (lambda h: h["__metadata__"].update({"fedcore.formats": "[1]"}), "got a JSON list, expected an object"),
        (lambda h: h["__metadata__"].update({"fedcore.formats": "{"}), "not valid JSON"),
        (lambda h: h["__metadata__"].update({"fedcore.formats": '{"head": 3}'}), "expected exactly the fields"),
        (lambda h: h["__metadata__"].update({"fedcore.formats": "\ud800"}), "not valid JSON"),
    ],
)
def test_headers_that_lie_are_refused(format, change, words):
    with pytest.raises(FormatError, match=words) as caught:
        Update.from_bytes(tampered(format, change), source="message of client 'x'")
    assert str(caught.value).startswith("message of client 'x': ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("format", FORMATS)
def test_truncated_at_any_byte_is_refused(format):
    data = make_update(0).quantize(format).to_bytes()
    for cut in (*range(0, 300, 37), len(data) // 2, len(data) - 700, len(data) - 1):
        with pytest.raises(FormatError):
            Update.from_bytes(data[:cut])


@pytest.mark.parametrize(("format", "array"), [("int8", "absmax"), ("nf4", "nested_absmax"), ("nf4", "nested_offset")])
def test_negative_magnitudes_are_refused_by_name(format, array):
    data = bytearray(make_update(0).quantize(format).to_bytes())
    length = int.from_bytes(data[:8], "little")
    begin = 8 + length + json.loads(data[8 : 8 + length])[f"head.{array}"]["data_offsets"][0]
    data[begin + 3] |= 0x80
    with pytest.raises(FormatError, match=rf"message: tensor 'head': 'head.{array}' is -.* at 0, expected no negative"):
        Update.from_bytes(bytes(data))


def test_digests_of_plain_updates_do_not_know_of_formats():
    """What a ledger holds of an update in its own dtypes stays what it was."""
    update = Update.from_tensors({"a": np.arange(3, dtype=np.float32)})
    assert update.quantize("float32").digest() == update.digest()
    assert update.quantize("float32").to_bytes() == update.to_bytes()
    assert b"fedcore.formats" not in update.to_bytes()


def test_tables_of_one_plain_format_need_no_decoding():
    cohort = Cohort([make_update(i).quantize("bfloat16") for i in range(3)])
    [(_, table)] = cohort.tables()
    assert (table.dtype, table.encoding, table.source) == ("bfloat16", None, "float32")
    [(_, encoded)] = Cohort([make_update(i).quantize("nf4") for i in range(3)]).tables()
    assert (encoded.dtype, encoded.source) == ("float32", "float32")
    assert encoded.encoding is not None
    assert encoded.nbytes < 3 * encoded.d * 0.7
