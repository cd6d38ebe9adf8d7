"""Update: tensors in, bytes and digests out, and every wrong argument named."""

import copy
import dataclasses
import json
import math
import os
import pickle
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

import fedcore
from fedcore.dtypes import BF16, bf16, bf16_bits
from fedcore.errors import DTypeError, LayoutError
from fedcore.updates import Layout, LoraPair, Update

A, B = "base_model.model.h.q.lora_A.weight", "base_model.model.h.q.lora_B.weight"
Q = "base_model.model.h.q"


def factors(rank: int = 2, dtype: object = np.float32, module: str = Q) -> dict[str, np.ndarray]:
    """A pair with d_in 3 and d_out 4."""
    a = np.arange(rank * 3).reshape(rank, 3).astype(dtype)
    return {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": np.ones((4, rank), dtype)}


BITS = {
    "float32": np.array([0, 0x80000000, 0x7F800000, 0xFFC12345, 1, 0x3F800001], np.uint32).view(np.float32),
    "float16": np.array([0, 0x8000, 0x7C00, 0xFE01, 1, 0x3C01], np.uint16).view(np.float16),
    "bfloat16": bf16(np.array([0, 0x8000, 0x7F80, 0xFFC1, 1, 0x3F81], np.uint16)),
}


@pytest.mark.parametrize("dtype", BITS)
@pytest.mark.parametrize("shape", [(6,), (2, 3), (1, 6, 1), (3, 0), ()])
def test_round_trip_bit_for_bit(dtype, shape):
    array = BITS[dtype][: math.prod(shape)].reshape(shape)
    update = Update.from_tensors({"x": array, "y": np.ones(1, np.float32)})
    for same in (update, Update.from_bytes(update.to_bytes()), Update.from_bytes(memoryview(update.to_bytes()))):
        assert same.tensors["x"].tobytes() == array.tobytes()
        assert same.tensors["x"].shape == shape
        assert same.layout.dtypes[same.layout.index["x"]] == dtype
        assert same.digest() == update.digest()


def test_everything_but_the_tensors_comes_back_too():
    config = {"r": 2, "lora_alpha": 3, "peft_type": "LORA", "target_modules": {"z", "q"}}
    update = Update.from_tensors(
        factors(), num_examples=12, client_id='Zoë\n"7"', scaling={Q: 1.5}, base="base", adapter_config=config
    )
    same = Update.from_bytes(update.to_bytes())
    for name in ("scaling", "num_examples", "client_id", "base", "adapter_config", "layout"):
        assert getattr(same, name) == getattr(update, name), name
    assert same.adapter_config["target_modules"] == ["q", "z"]
    assert Update.from_bytes(Update.from_tensors({"x": np.ones(1, np.float32)}).to_bytes()).base is None


def test_order_of_insertion_does_not_matter():
    tensors = {**factors(), **factors(3, module="base_model.model.h.a"), "head.weight": np.ones(2, np.float16)}
    scaling = {Q: 2.0, "base_model.model.h.a": 0.5}
    one = Update.from_tensors(tensors, scaling=scaling)
    other = Update.from_tensors(dict(reversed(tensors.items())), scaling=dict(reversed(scaling.items())))
    assert one.to_bytes() == other.to_bytes()
    assert one.digest() == other.digest()
    assert one.layout == other.layout
    assert one.layout.digest == other.layout.digest
    assert list(other.tensors) == sorted(tensors) == list(other.layout.names)
    assert list(other.modules) == sorted(scaling)


def test_the_same_update_gives_the_same_bytes_in_another_process():
    code = (
        "import numpy as np, fedcore, hashlib;"
        "u = fedcore.Update.from_tensors({'x': np.ones(3, np.float32)}, client_id='c', base='b',"
        " adapter_config={'target_modules': {'a', 'b', 'c', 'd'}, 'feedforward_modules': set('efghijkl')});"
        "print(hashlib.sha256(u.to_bytes()).hexdigest())"
    )
    found = set()
    for seed in "012":
        environment = os.environ | {"PYTHONHASHSEED": seed}
        ran = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, env=environment)
        found.add(ran.stdout)
    assert len(found) == 1


def test_the_digest_is_of_content_and_not_of_the_sender():
    update = Update.from_tensors(factors(), scaling={Q: 2.0}, client_id="a", num_examples=3)
    assert update.digest() == Update.from_tensors(factors(), scaling={Q: 2.0}, client_id="b", base="x").digest()
    changed = factors()
    changed[B] = changed[B].copy()
    changed[B][3, 1] = np.nextafter(np.float32(1), np.float32(2))
    others = [
        Update.from_tensors(changed, scaling={Q: 2.0}),
        Update.from_tensors(factors(), scaling={Q: math.nextafter(2.0, 3)}),
        Update.from_tensors(factors(dtype=np.float16), scaling={Q: 2.0}),
        Update.from_tensors(factors(module=Q + "2"), scaling={Q + "2": 2.0}),
    ]
    assert len({update.digest(), *(other.digest() for other in others)}) == 5


def test_an_update_is_a_copy_and_cannot_be_written():
    array = np.ones(3, np.float32)
    update = Update.from_tensors({"x": array})
    array[0] = 7
    assert update.tensors["x"].tolist() == [1, 1, 1]
    data = bytearray(update.to_bytes())
    for one in (update, Update.from_bytes(memoryview(data))):
        with pytest.raises(ValueError, match="read-only"):
            one.tensors["x"][0] = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        update.client_id = "b"
    assert dataclasses.replace(update, client_id="b").digest() == update.digest()


def test_strides_byte_order_and_ml_dtypes():
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    update = Update.from_tensors({
        "strided": values[::2, ::-1],
        "big": values.astype(">f4"),
        "ml": values.astype(ml_dtypes.bfloat16)[:, 1],
        "ours": values.astype(ml_dtypes.bfloat16).view(BF16).T,
    })  # fmt: skip
    np.testing.assert_array_equal(update.tensors["strided"], values[::2, ::-1])
    np.testing.assert_array_equal(update.tensors["big"], values)
    assert bf16_bits(update.tensors["ml"]).tolist() == [0x3F80, 0x40A0, 0x4110]
    assert update.tensors["ml"].dtype == BF16
    assert bf16_bits(update.tensors["ours"])[1].tolist() == [0x3F80, 0x40A0, 0x4110]


def test_torch_tensors():
    torch = pytest.importorskip("torch", reason="torch is an optional dependency")
    x = torch.arange(6, dtype=torch.float32).reshape(2, 3).requires_grad_()
    update = Update.from_tensors({"x": x, "t": x.detach().T, "b": x.detach().bfloat16(), "h": x.detach().half()})
    assert update.layout.dtypes == ("bfloat16", "float16", "float32", "float32")
    assert update.tensors["t"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert bf16_bits(update.tensors["b"])[0].tolist() == [0, 0x3F80, 0x4000]
    module = torch.nn.ParameterDict({"x": x})  # no Mapping
    assert Update.from_tensors(module).digest() == Update.from_tensors({"x": x}).digest()
    assert update.with_tensors(module).digest() == update.digest()
    with torch.no_grad():
        x.add_(1)
    assert update.tensors["x"].tolist() == [[0, 1, 2], [3, 4, 5]]
    loaded = pytest.importorskip("safetensors.torch", reason="needs torch").load(update.to_bytes())
    assert {name: tensor.dtype for name, tensor in loaded.items()} == {
        "x": torch.float32, "t": torch.float32, "b": torch.bfloat16, "h": torch.float16,
    }  # fmt: skip
    assert torch.equal(loaded["b"], x.detach().sub(1).bfloat16())
    for wrong, words in (
        (torch.zeros(2, dtype=torch.float64), "'x': got torch.float64"),
        (torch.zeros(2, dtype=torch.int64), "'x': got torch.int64"),
        (torch.zeros(2, device="meta"), "'x': lies on meta, expected the CPU"),
        (torch.zeros(2).to_sparse(), "'x': has layout torch.sparse_coo"),
    ):
        with pytest.raises(DTypeError, match=words):
            Update.from_tensors({"x": wrong})


def test_the_numpy_loader_of_the_library_reads_it():
    update = Update.from_tensors({"x": BITS["float32"], "h": BITS["float16"]}, client_id="c")
    loaded = safetensors.numpy.load(update.to_bytes())
    assert {name: array.tobytes() for name, array in loaded.items()} == {
        name: array.tobytes() for name, array in update.tensors.items()
    }


def test_pairs_and_dense():
    embedding = "base_model.model.embed"
    tensors = {
        **factors(3),
        f"{embedding}.lora_embedding_A": np.ones((2, 50), np.float32),
        f"{embedding}.lora_embedding_B": np.ones((8, 2), np.float32),
        "base_model.model.head.weight": np.ones((5, 8), np.float32),
        "base_model.model.explora_A.weight": np.ones(1, np.float32),
    }
    update = Update.from_tensors(tensors, scaling={Q: 2, embedding: np.float32(0.5)})
    assert update.modules == {
        embedding: LoraPair(f"{embedding}.lora_embedding_A", f"{embedding}.lora_embedding_B", 2, 50, 8, 0.5),
        Q: LoraPair(A, B, 3, 3, 4, 2.0),
    }
    assert update.dense == ("base_model.model.explora_A.weight", "base_model.model.head.weight")
    assert all(type(scale) is float for scale in update.scaling.values())


def test_modules_are_sorted_by_module_and_not_by_tensor():
    # "." sorts after "-", so the tensors of a-b come before those of a
    update = Update.from_tensors(factors(module="a") | factors(module="a-b"), scaling={"a": 1.0, "a-b": 1.0})
    assert update.layout.names[0] == "a-b.lora_A.weight"
    assert list(update.modules) == list(update.scaling) == ["a", "a-b"]


def test_a_full_model_is_dense():
    update = Update.from_tensors({"w": np.ones((2, 2), np.float32), "b": np.ones(2, np.float16)})
    assert (update.modules, update.dense, update.scaling) == ({}, ("b", "w"), {})


def test_with_tensors_replaces_what_is_named_and_keeps_who_sent_it():
    config = {"r": 2, "lora_alpha": 3}
    first = Update.from_tensors(
        factors() | {"head": np.ones(2, np.float32)},
        num_examples=5,
        client_id="c",
        base="m",
        scaling={Q: 1.5},
        adapter_config=config,
    )
    second = first.with_tensors({B: np.full((4, 2), 7, np.float32)})
    kept = ("scaling", "num_examples", "client_id", "base", "adapter_config", "counted", "layout")
    assert all(getattr(second, field) == getattr(first, field) for field in kept)
    assert (second.tensors[B] == 7).all()
    assert second.tensors[A].tobytes() == first.tensors[A].tobytes()
    assert (second.tensors["head"] == 1).all()
    assert first.with_tensors({}).digest() == first.digest() != second.digest()
    renamed = first.with_tensors({}, client_id="d", num_examples=2)
    assert (renamed.client_id, renamed.num_examples) == ("d", 2)
    silent = Update.from_bytes(safetensors.numpy.save({"w": np.ones(2, np.float32)}))
    assert not silent.counted
    assert not silent.with_tensors({}).counted
    assert silent.with_tensors({}, num_examples=1).counted
    with pytest.raises(LayoutError, match="tensor 'hat': not in the update"):
        first.with_tensors({"hat": np.ones(2, np.float32)})


def test_layout():
    layout = Layout.from_entries([("b", (2, 3), "float32"), ("a", (), "bfloat16")])
    assert (layout.names, layout.sizes.tolist(), layout.nbytes.tolist()) == (("a", "b"), [1, 6], [2, 24])
    assert layout.select(["b"]) == Layout(("b",), ((2, 3),), ("float32",))
    with pytest.raises(LayoutError, match="'c': not among the 2 tensors"):
        layout.select(["c"])
    with pytest.raises(LayoutError, match="'a': given twice"):
        Layout.from_entries([("a", (), "float32")] * 2)
    assert layout.difference(layout.select(["a", "b"])) is None
    others = [
        Layout(("b", "a"), layout.shapes, layout.dtypes),
        Layout(layout.names, ((), (3, 2)), layout.dtypes),
        Layout(layout.names, layout.shapes, ("float16", "float32")),
        layout.select(["a"]),
    ]
    assert len({one.digest for one in (layout, *others)}) == 5
    assert layout.digest == Layout.from_entries([("a", (), "bfloat16"), ("b", (2, 3), "float32")]).digest


@given(st.dictionaries(
    st.text(min_size=1, max_size=8).filter(lambda s: "lora_" not in s),
    st.tuples(st.sampled_from(["float32", "float16", "bfloat16"]), st.lists(st.integers(0, 3), max_size=3)),
    min_size=1, max_size=6,
))  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_any_tensors_come_back(specification):
    tensors = {
        name: np.resize(BITS[dtype], math.prod(shape)).reshape(shape) for name, (dtype, shape) in specification.items()
    }
    update = Update.from_bytes(Update.from_tensors(tensors).to_bytes())
    assert list(update.tensors) == sorted(tensors)
    for name, array in tensors.items():
        assert update.tensors[name].tobytes() == array.tobytes()
        assert update.tensors[name].shape == array.shape
    safetensors.deserialize(update.to_bytes())


def test_the_metadata_is_json_under_one_key():
    update = Update.from_tensors({"x": np.ones(2, np.float32)}, client_id="c", num_examples=3, base="b")
    data = update.to_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert header["__metadata__"]["format"] == "pt"
    assert json.loads(header["__metadata__"]["fedcore"]) == {
        "version": 1, "client_id": "c", "num_examples": 3, "base": "b", "scaling": {}, "adapter_config": {},
    }  # fmt: skip
    assert fedcore.Update is Update


def test_scales_are_read_only_and_copied_like_a_dict():
    update = Update.from_tensors(factors(), scaling={Q: 2.0}, client_id="a")
    digest = update.digest()
    made = [
        update,
        Update.from_bytes(update.to_bytes()),
        dataclasses.replace(update, scaling={Q: 2.0}),
        update.with_tensors({}),
        update.quantize("int8"),
        pickle.loads(pickle.dumps(update)),
        copy.deepcopy(update),
    ]
    for one in made:
        for change in (
            lambda scaling: scaling.__setitem__(Q, 9.0),
            lambda scaling: scaling.__delitem__(Q),
            lambda scaling: scaling.update({Q: 9.0}),
            lambda scaling: scaling.setdefault("n", 9.0),
            lambda scaling: scaling.__ior__({Q: 9.0}),
            lambda scaling: scaling.pop(Q),
            lambda scaling: scaling.popitem(),
            lambda scaling: scaling.clear(),
        ):
            with pytest.raises(TypeError, match="scaling: an update's scales are read-only; make another"):
                change(one.scaling)
        assert one.scaling == {Q: 2.0}
    assert update.digest() == digest
    for same in (pickle.loads(pickle.dumps(update.scaling)), copy.copy(update.scaling), copy.deepcopy(update.scaling)):
        assert same == update.scaling
        with pytest.raises(TypeError, match="read-only"):
            same[Q] = 9.0
    free = dict(update.scaling) | {Q: 3.0}
    assert (free, json.dumps(update.scaling)) == ({Q: 3.0}, json.dumps({Q: 2.0}))


NUMBERS = {
    "mantissa": st.floats(1.0, 2.0, exclude_max=True),
    "power": st.integers(-60, 60),
    "rank": st.integers(1, 600),
}


@settings(deadline=None, max_examples=300)
@given(**NUMBERS, rslora=st.booleans())
def test_a_config_says_the_scale_bit_for_bit_where_an_alpha_does(mantissa, power, rank, rslora):
    scale = math.ldexp(mantissa, power)
    divisor = math.sqrt(rank) if rslora else float(rank)
    update = Update.from_tensors(factors(rank), scaling={Q: scale}, adapter_config={"use_rslora": rslora})
    said = Update.from_tensors(update.tensors, adapter_config=update.adapter_config).scaling[Q]
    near, every = scale * divisor, []
    for away in (-math.inf, math.inf):
        alpha = near
        for _ in range(4):
            every.append(alpha)
            alpha = math.nextafter(alpha, away)
    assert said == scale or (all(alpha / divisor != scale for alpha in every) and abs(said - scale) <= math.ulp(scale))


@settings(deadline=None, max_examples=300)
@given(alpha=st.integers(1, 1 << 20), rank=st.integers(1, 600), rslora=st.booleans())
def test_a_whole_alpha_comes_back(alpha, rank, rslora):
    scale = alpha / (math.sqrt(rank) if rslora else rank)
    update = Update.from_tensors(factors(rank), scaling={Q: scale}, adapter_config={"use_rslora": rslora})
    assert (update.adapter_config["r"], update.adapter_config["lora_alpha"]) == (rank, alpha)
    assert type(update.adapter_config["lora_alpha"]) is int
    assert Update.from_tensors(update.tensors, adapter_config=update.adapter_config).scaling == {Q: scale}


def test_masked_arrays_are_refused():
    masked = np.ma.masked_array(np.ones(3, np.float32), mask=[0, 1, 0])
    with pytest.raises(DTypeError, match=r"^tensor 'x': is a masked array, .*pass \.filled\(value\)$"):
        Update.from_tensors({"w": np.ones(3, np.float32), "x": masked})
    for rows, what in (
        ([np.ones(3, np.float32), masked], "row 1"),
        (np.ma.masked_array(np.eye(2, dtype="f4")), "rows"),
    ):
        with pytest.raises(DTypeError, match=f"^{what}: got a masked array"):
            fedcore.ops.median(rows)
