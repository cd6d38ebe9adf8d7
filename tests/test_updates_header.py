"""Safetensors bytes: read as the library writes them, written as it reads them, and nothing hostile gets by."""

import json
import tracemalloc

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcore.errors import FormatError
from fedcore.updates import Cohort, Update
from fedcore.updates.header import LONGEST_HEADER, header_length
from fedcore.updates.layout import LONGEST_NAME, MOST_DIMENSIONS

F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def message(header: object, data: bytes = bytes(8), pad: int = 0) -> bytes:
    """A safetensors message with this header, right or wrong, as JSON or as the bytes given."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += b" " * pad
    return len(text).to_bytes(8, "little") + text + data


def lora_message() -> bytes:
    """A valid message with a pair, a dense tensor, all three dtypes and all the metadata."""
    tensors = {
        "m.lora_A.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        "m.lora_B.weight": np.arange(8, dtype=np.float16).reshape(4, 2),
        "head": np.arange(3, dtype=np.uint16).view([("bfloat16", "<u2")]),
    }
    config = {"r": 2, "lora_alpha": 4, "peft_type": "LORA", "target_modules": ["m"]}
    update = Update.from_tensors(tensors, scaling={"m": 2.0}, client_id="c", num_examples=7, adapter_config=config)
    return update.to_bytes()


def test_what_the_library_writes_is_read_without_a_copy():
    arrays = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.arange(4, dtype=np.float16)}
    data = safetensors.numpy.save(arrays, metadata={"format": "np"})
    update = Update.from_bytes(data)
    assert list(update.tensors) == ["a", "b"]
    for name, array in arrays.items():
        np.testing.assert_array_equal(update.tensors[name], array)
        assert np.shares_memory(update.tensors[name], np.frombuffer(data, np.uint8))


@pytest.mark.parametrize("pad", range(8))
def test_offsets_of_any_alignment_are_read(pad):
    data = np.arange(2, dtype=np.float32).tobytes()
    update = Update.from_bytes(message({"x": F32}, data, pad))
    np.testing.assert_array_equal(update.tensors["x"], [0, 1])
    [(_, table)] = Cohort([update]).tables()
    np.testing.assert_array_equal(table.columns(0, 0, 2), [0, 1])


def test_what_is_written_is_aligned_and_the_library_reads_it():
    data = lora_message()
    loaded = safetensors.deserialize(data)
    assert {name: tensor["dtype"] for name, tensor in loaded} == {
        "m.lora_A.weight": "F32",
        "m.lora_B.weight": "F16",
        "head": "BF16",
    }
    update = Update.from_bytes(data)
    assert {name: bytes(tensor["data"]) for name, tensor in loaded} == {
        name: array.tobytes() for name, array in update.tensors.items()
    }
    assert all(start % np.dtype(array.dtype).itemsize == 0
               for start, array in zip(update.offsets, update.tensors.values(), strict=True))  # fmt: skip


@pytest.mark.parametrize("length", range(1, 9))
def test_a_header_of_any_length_ends_where_data_are_aligned(length):
    tensors = {"n" * length: np.ones(3, np.float16), "w": np.ones(2, np.float32)}
    data = Update.from_tensors(tensors).to_bytes()
    assert int.from_bytes(data[:8], "little") % 8 == 0
    update = Update.from_bytes(data)
    for start, array in zip(update.offsets, update.tensors.values(), strict=True):
        assert start % array.itemsize == 0


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ({}, "has no tensor"),
        ([], "got a JSON list"),
        (b"{", "not valid JSON"),
        (b"\xff{}", "not valid JSON"),
        (b'{"x":' + b"[" * 100_000, "nested too deeply|not valid JSON"),
        (b'{"x": NaN}', "NaN is not a JSON number"),
        (b'{"x": 1, "x": 2}', "'x' occurs 2 times"),
        (b'{"x": {"dtype": "F32", "dtype": "F16"}}', "'dtype' occurs 2 times"),
        (b'{"x": ' + b"9" * 5000 + b"}", "not valid JSON|expected exactly"),
        ({"__metadata__": {"a": 1}, "x": F32}, "__metadata__ must map strings to strings"),
        ({"__metadata__": [], "x": F32}, "__metadata__ must map"),
        ({"x": []}, "'x': expected exactly the fields"),
        ({"x": {"dtype": "F32", "shape": [2]}}, "'x': expected exactly the fields"),
        ({"x": F32 | {"more": 1}}, "'x': expected exactly the fields"),
        ({"x": F32 | {"dtype": "F64", "shape": [1]}}, "'x': got dtype 'F64', expected one of F32, F16, BF16"),
        ({"x": F32 | {"dtype": "I32"}}, "'x': got dtype 'I32'"),
        ({"x": F32 | {"dtype": 7}}, "'x': got dtype 7"),
        ({"x": F32 | {"dtype": []}}, "'x': got dtype"),
        ({"x": F32 | {"shape": 2}}, "'x': got shape 2"),
        ({"x": F32 | {"shape": [-2]}}, r"'x': got shape \[-2\]"),
        ({"x": F32 | {"shape": [2.0]}}, r"'x': got shape \[2.0\]"),
        ({"x": F32 | {"shape": [True]}}, r"'x': got shape \[True\]"),
        ({"x": F32 | {"shape": [2**64]}}, "'x': got shape"),
        ({"x": F32 | {"shape": [1] * (MOST_DIMENSIONS + 1)}}, "'x': got shape"),
        ({"x": F32 | {"shape": [2**62, 2**62, 0], "data_offsets": [0, 0]}}, "'x': .*overflow"),
        ({"x": F32 | {"shape": [2**32, 2**32]}}, "'x': .*overflow"),
        ({"x": F32 | {"shape": [3]}}, "'x': has 8 bytes, expected 12"),
        ({"x": F32 | {"data_offsets": [0]}}, "'x': got data_offsets"),
        ({"x": F32 | {"data_offsets": [0, "8"]}}, "'x': got data_offsets"),
        ({"x": F32 | {"data_offsets": [-8, 0]}}, "'x': got data_offsets"),
        ({"x": F32 | {"data_offsets": [0, 2**63]}}, "'x': got data_offsets"),
        ({"x": F32 | {"data_offsets": [8, 0]}}, "'x': data_offsets .* end before they begin"),
        ({"x": F32 | {"data_offsets": [8, 16]}}, "'x': ends at byte 16 of 8 bytes of data; it is truncated"),
        ({"x": F32, "y": F32}, "'y': starts at byte 0, expected 8: it overlaps"),
        ({"x": F32 | {"shape": [1], "data_offsets": [4, 8]}}, "'x': starts at byte 4, expected 0: it leaves a hole"),
        ({"x": F32 | {"shape": [1], "data_offsets": [0, 4]}}, "has 4 bytes after its last tensor"),
        ({"": F32}, "reserved or empty"),
        ({"\ud800": F32}, "lone surrogate"),
        ({"x" * (LONGEST_NAME + 1): F32}, f"has {LONGEST_NAME + 1} characters"),
    ],
)
def test_each_wrong_header_is_refused_in_one_line_that_names_it(header, words):
    with pytest.raises(FormatError, match=words) as caught:
        Update.from_bytes(message(header), source="from client 7")
    text = str(caught.value)
    assert text.startswith("from client 7: ")
    assert "\n" not in text
    assert len(text) < 700


def test_the_longest_name_and_the_most_dimensions_are_taken():
    shape = [1] * (MOST_DIMENSIONS - 1) + [2]
    update = Update.from_bytes(message({"x" * LONGEST_NAME: F32 | {"shape": shape}}))
    assert {name: array.shape for name, array in update.tensors.items()} == {"x" * LONGEST_NAME: tuple(shape)}


@pytest.mark.parametrize("length", [9, 2**20, 2**32, 2**63, 2**64 - 1])
def test_a_claimed_length_allocates_nothing(length):
    data = length.to_bytes(8, "little") + b"{" * 8 if length == 9 else length.to_bytes(8, "little") + bytes(52)
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match=f"claims a header of {length} bytes"):
            Update.from_bytes(data)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def test_a_header_above_the_formats_limit_is_not_read(tmp_path):
    assert header_length(LONGEST_HEADER.to_bytes(8, "little"), 1 << 40, "x") == LONGEST_HEADER
    path = tmp_path / "sparse.safetensors"
    with open(path, "wb") as file:
        file.write((LONGEST_HEADER + 1).to_bytes(8, "little"))
        file.truncate(LONGEST_HEADER + 100)
    for opened in (Update.open, lambda path: Update.from_bytes(np.memmap(path, np.uint8, "r"))):
        with pytest.raises(
            FormatError, match=f"claims a header of {LONGEST_HEADER + 1} bytes .*at most {LONGEST_HEADER} "
        ):
            opened(path)


def test_a_huge_claimed_shape_allocates_nothing():
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match="'x': ends at byte"):
            Update.from_bytes(message({"x": {"dtype": "F16", "shape": [2**40], "data_offsets": [0, 2**41]}}, b""))
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("size", range(8))
def test_bytes_shorter_than_a_length_are_refused(size):
    with pytest.raises(FormatError, match=f"has {size} bytes, expected at least 8"):
        Update.from_bytes(bytes(size))


def test_a_name_with_a_line_break_stays_on_one_line():
    with pytest.raises(FormatError) as caught:
        Update.from_bytes(message({"a\nb": F32 | {"dtype": "I8"}}))
    assert "\n" not in str(caught.value)
    assert r"'a\nb'" in str(caught.value)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("{", "not valid JSON"),
        ("[]", "got a JSON list"),
        ("\ud800", "not valid JSON"),
        ('{"version": 2}', "version 2, expected 1"),
        ("{}", "version None"),
        ('{"version": 1, "else": 1}', "'else': 1"),
        ('{"version": 1, "num_examples": "9"}', "'num_examples': '9'"),
        ('{"version": 1, "num_examples": 0}', "num_examples: got 0"),
        ('{"version": 1, "num_examples": true}', "num_examples: got True"),
        ('{"version": 1, "num_examples": 9223372036854775807}', "expected a whole number from 1 to"),
        ('{"version": 1, "client_id": null}', "'client_id': None"),
        ('{"version": 1, "client_id": "\\ud800"}', "client_id: got .*valid Unicode"),
        ('{"version": 1, "base": 1}', "'base': 1"),
        ('{"version": 1, "scaling": {"m": 1.0}}', "scaling: module 'm' has no LoRA factors"),
        ('{"version": 1, "adapter_config": {"r": 1e999}}', "adapter_config: not JSON"),
        ('{"version": 1, "adapter_config": {"r": ' + "[" * 40 + "]" * 40 + "}}", "nested more than"),
    ],
)
def test_wrong_metadata_of_ours_is_refused(said, words):
    with pytest.raises(FormatError, match=words) as caught:
        Update.from_bytes(message({"__metadata__": {"fedcore": said}, "x": F32}))
    assert "\n" not in str(caught.value)


def check_everything(data: bytes) -> None:
    """Refused by FormatError, or an update on which everything works."""
    try:
        update = Update.from_bytes(data)
    except FormatError:
        return
    again = Update.from_bytes(update.to_bytes())
    assert again.digest() == update.digest()
    assert again.layout == update.layout
    assert sum(array.nbytes for array in update.tensors.values()) <= len(data)
    assert len(update.modules) * 2 + len(update.dense) == len(update.layout)


@given(st.integers(0, len(lora_message()) - 1))
@settings(max_examples=150, deadline=None)
def test_every_truncation_is_refused(size):
    with pytest.raises(FormatError):
        Update.from_bytes(lora_message()[:size])


@given(st.lists(st.tuples(st.integers(0, len(lora_message()) - 1), st.integers(0, 255)), min_size=1, max_size=3))
@settings(max_examples=500, deadline=None)
def test_flipped_bytes_give_a_format_error_or_a_valid_update(flips):
    data = bytearray(lora_message())
    for position, value in flips:
        data[position] = value
    check_everything(bytes(data))


@given(st.dictionaries(
    st.sampled_from(["__metadata__", "x", "m.lora_A.weight", "m.lora_B.weight", "m.lora_magnitude_vector"]),
    st.fixed_dictionaries({
        "dtype": st.sampled_from(["F32", "F16", "BF16", "F64", None]),
        "shape": st.lists(st.integers(-1, 3) | st.booleans() | st.just(2**63), max_size=3),
        "data_offsets": st.lists(st.sampled_from([0, 2, 4, 8, -1, 2**64]), max_size=3),
    }) | st.none() | st.integers() | st.text(max_size=3),
))  # fmt: skip
@settings(max_examples=300, deadline=None)
def test_any_header_gives_a_format_error_or_a_valid_update(header):
    check_everything(message(header))


def test_an_empty_tensor_may_be_named_before_the_one_that_it_lies_behind():
    for where in (0, 8):
        empty = {"e": {"dtype": "F32", "shape": [0], "data_offsets": [where, where]}}
        for header in (empty | {"x": F32}, {"x": F32} | empty):
            assert Update.from_bytes(message(header)).tensors["e"].shape == (0,)
