"""Tensors and arguments that no update can be made of: each is named."""

import math

import numpy as np
import pytest
import safetensors.numpy

from fedcore.errors import DTypeError, FormatError, LayoutError, WeightError
from fedcore.updates import Update
from tests.test_updates_update import A, Q, factors

ROW = np.ones(2, np.float32)
MATRIX = np.ones((2, 2), np.float32)


@pytest.mark.parametrize(
    ("tensors", "error", "words"),
    [
        ({}, LayoutError, "got none"),
        ({"x": np.ones(2)}, DTypeError, "'x': got float64, expected one of float32, float16, bfloat16"),
        ({"x": [1, 2]}, DTypeError, "'x': got int64"),
        ({"x": np.array(["a"])}, DTypeError, "'x': got <U1"),
        ({"x": np.array([None])}, DTypeError, "'x': got object"),
        ({"x": np.ones(2, np.complex64)}, DTypeError, "'x': got complex64"),
        ({"__metadata__": ROW}, LayoutError, "'__metadata__': its name is reserved"),
        ({"": ROW}, LayoutError, "reserved or empty"),
        ({7: ROW}, LayoutError, "7: its name is of type int"),
        ({"x" * 600: ROW}, LayoutError, "has 600 characters"),
        ({"\udc00": ROW}, LayoutError, "lone surrogate"),
        ({"m.lora_A.weight": MATRIX}, LayoutError, "'m.lora_A.weight': its partner 'm.lora_B.weight' is missing"),
        ({"m.lora_B.weight": MATRIX}, LayoutError, "'m.lora_B.weight': its partner 'm.lora_A.weight' is missing"),
        (
            {
                "m.lora_A.weight": np.ones((2, 3, 3, 3), np.float32),
                "m.lora_B.weight": np.ones((4, 2, 1, 1), np.float32),
            },
            LayoutError,
            r"'m.lora_A.weight': got shape .*, expected a matrix, as .*; leave them out of the clients' target_modules",
        ),
        ({"m.lora_embedding_A": MATRIX, "m.lora_B.weight": MATRIX}, LayoutError, "its partner"),
        ({"m.lora_A.weight": ROW, "m.lora_B.weight": MATRIX}, LayoutError, r"'m.lora_A.weight': got shape \(2,\)"),
        (
            {"m.lora_A.weight": MATRIX, "m.lora_B.weight": MATRIX[:, :1]},
            LayoutError,
            "'m.lora_B.weight': has rank 1 .* expected 2 like 'm.lora_A.weight'",
        ),
        (
            {"m.lora_A.weight": MATRIX[:0], "m.lora_B.weight": MATRIX[:, :0]},
            LayoutError,
            r"'m.lora_A.weight': got shape \(0, 2\), expected a rank",
        ),
        ({"m.lora_A.weight": MATRIX, "m.lora_B.weight": MATRIX[:0]}, LayoutError, "'m.lora_B.weight': got shape"),
        ({"m.lora_magnitude_vector": ROW}, LayoutError, "'m.lora_magnitude_vector': .*DoRA"),
        ({"m.lora_magnitude_vector.weight": ROW}, LayoutError, "DoRA"),
        ({"m.lora_B.bias": ROW}, LayoutError, "'m.lora_B.bias': .*lora_bias=False"),
        ({"m.lora_E": ROW}, LayoutError, "'m.lora_E': .*AdaLoRA"),
        ({"m.lora_new": ROW}, LayoutError, "'m.lora_new': lora_new is not supported"),
        ({"lora_A.weight": MATRIX}, LayoutError, "expected <module>.lora_A.weight"),
        (
            {f"m.{x}": MATRIX for x in ("lora_A.weight", "lora_B.weight", "lora_embedding_A", "lora_embedding_B")},
            LayoutError,
            "'m' already has the factor",
        ),
    ],
)
def test_every_wrong_tensor_is_named(tensors, error, words):
    with pytest.raises(error, match=words) as caught:
        Update.from_tensors(tensors, scaling={"m": 1.0} if any("lora" in str(name) for name in tensors) else None)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"scaling": None}, LayoutError, f"module '{Q}': has no scale"),
        ({"scaling": {}}, LayoutError, f"'{A}': its module has no scale"),
        ({"scaling": {Q: 1.0, "n": 1.0}}, LayoutError, "module 'n' has no LoRA factors"),
        ({"scaling": {Q: 0.0}}, LayoutError, f"got 0.0 for module '{Q}'"),
        ({"scaling": {Q: math.nan}}, LayoutError, "got nan"),
        ({"scaling": {Q: math.inf}}, LayoutError, "got inf"),
        ({"scaling": {Q: "2"}}, LayoutError, "got '2'"),
        ({"num_examples": 0}, WeightError, "num_examples: got 0"),
        ({"num_examples": -1}, WeightError, "num_examples: got -1"),
        ({"num_examples": 1.5}, WeightError, "num_examples: got 1.5"),
        ({"num_examples": True}, WeightError, "num_examples: got True"),
        ({"client_id": 7}, LayoutError, "client_id: got 7"),
        ({"base": b"x"}, LayoutError, "base: got b'x'"),
        ({"base": "\ud800"}, LayoutError, "base: got"),
        ({"adapter_config": {"use_dora": True}}, LayoutError, "use_dora is not supported: DoRA"),
        (
            {"adapter_config": {"init_lora_weights": "LoRA_GA"}},
            LayoutError,
            "'LoRA_GA' is not .*path_initial_model",
        ),
        ({"adapter_config": {"lora_bias": True}}, LayoutError, "lora_bias is not supported"),
        ({"adapter_config": {"target_parameters": ["w"]}}, LayoutError, "target_parameters is not supported"),
        ({"adapter_config": {"peft_type": "ADALORA"}}, LayoutError, "got peft_type 'ADALORA', expected LORA"),
        ({"adapter_config": {"r": math.nan}}, LayoutError, "adapter_config: not JSON"),
        ({"adapter_config": {"r": object()}}, LayoutError, "adapter_config: not JSON"),
        ({"scaling": None, "adapter_config": {"lora_alpha": 4}}, LayoutError, "got r None"),
        ({"scaling": None, "adapter_config": {"r": 2}}, LayoutError, "got lora_alpha None"),
        (
            {"scaling": None, "adapter_config": {"r": 3, "lora_alpha": 4}},
            LayoutError,
            f"'{A}': has rank 2, adapter_config says 3",
        ),
    ],
)
def test_every_wrong_argument_is_named(arguments, error, words):
    with pytest.raises(error, match=words) as caught:
        Update.from_tensors(factors(), **({"scaling": {Q: 1.0}} | arguments))
    assert "\n" not in str(caught.value)


def test_from_bytes_names_the_message_and_the_tensor():
    data = safetensors.numpy.save({"m.lora_A.weight": MATRIX})
    with pytest.raises(FormatError, match=r"round 3, client 7: tensor 'm.lora_A.weight': its partner"):
        Update.from_bytes(data, source="round 3, client 7")
    with pytest.raises(FormatError, match=r"m: got memoryview .*contiguous bytes"):
        Update.from_bytes(memoryview(bytes(64))[::2], source="m")
