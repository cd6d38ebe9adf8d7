"""Cohort: order, agreement, and one pointer table without a copy."""

import dataclasses
import time

import numpy as np
import pytest

import fedcore as fc
from fedcore.dtypes import bf16
from fedcore.errors import LayoutError, ShapeError
from fedcore.updates import Cohort, Update
from fedcore.updates.bases import BaseIdentity
from fedcore.updates.taken import FROM_BASE


def update(client: str, scale: float = 1.0, base: str | None = None, rank: int = 2, **more: np.ndarray) -> Update:
    """A client with one pair, one bf16 and one fp16 tensor; its values tell the client."""
    value = ord(client[0]) if client else 0
    tensors = {
        "m.lora_A.weight": np.full((rank, 3), value, np.float32),
        "m.lora_B.weight": np.full((4, rank), value + 0.5, np.float32),
        "half": np.full(3, value, np.float16),
        "brain": bf16(np.full(2, value, np.uint16)),
    } | more
    return Update.from_tensors(
        {name: array for name, array in tensors.items() if array is not None},
        scaling={"m": scale}, client_id=client, base=base, num_examples=value + 1,
    )  # fmt: skip


def test_order_is_by_client_id():
    cohort = Cohort([update("b"), update("c2"), update("c10"), update("a")])
    assert cohort.client_ids == ("a", "b", "c10", "c2")
    assert cohort.num_examples.tolist() == [98, 99, 100, 100]
    assert cohort.num_examples.dtype == np.int64
    assert (len(cohort), cohort[0].client_id, cohort[-1].client_id) == (4, "a", "c2")
    assert [u.client_id for u in cohort[1:3]] == ["b", "c10"]
    assert [u.client_id for u in Cohort(iter([update("b"), update("a")]))] == ["a", "b"]


def test_wrong_cohorts_are_refused():
    with pytest.raises(ShapeError, match="got no update"):
        Cohort([])
    with pytest.raises(LayoutError, match="client 'b': sent two updates"):
        Cohort([update("b"), update("a"), update("b")])
    with pytest.raises(LayoutError, match="client '': sent two updates"):
        Cohort([update(""), update("")])
    with pytest.raises(LayoutError, match="got a str at 1, expected Update"):
        Cohort([update("a"), "b"])


EXTRA = {"more": np.ones(1, np.float32)}


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (update("c", half=None), "tensor 'half' is missing"),
        (update("c", half=None, brain=None), r"tensor 'brain' is missing \(and 1 more\)"),
        (update("c", **EXTRA), "tensor 'more' is extra"),
        (update("c", half=np.ones(4, np.float16)), r"tensor 'half' has shape \(4,\), expected \(3,\)"),
        (update("c", half=np.ones(3, np.float32)), "tensor 'half' is float32, expected float16"),
        (update("c", rank=3), r"tensor 'm.lora_A.weight' has shape \(3, 3\), expected \(2, 3\)"),
        (update("c", scale=2.0), "module 'm' has scale 2, expected 1"),
    ],
)
def test_the_first_client_that_differs_is_named(wrong, words):
    cohort = Cohort([wrong, update("b"), update("a"), update("d", scale=9.0)])
    with pytest.raises(LayoutError, match=f"client 'c': {words}.* like client 'a'") as caught:
        cohort.check_same_layout()
    assert "\n" not in str(caught.value)
    if "scale" not in words:
        with pytest.raises(LayoutError, match="client 'c': "):
            cohort.tables()


def test_base_models_must_agree_where_they_are_known():
    Cohort([update("a"), update("b", base="x"), update("c", base="x")]).check_same_layout()
    cohort = Cohort([update("a"), update("b", base="x"), update("c", base="y")])
    for check in (cohort.check_same_base, cohort.check_same_layout):
        with pytest.raises(LayoutError, match="client 'c': its base model is 'y', expected 'x' like client 'b'"):
            check()


def test_a_base_known_by_digest_agrees_with_one_known_by_name_alone():
    """Neither is known to be another: a digest is no name."""
    config = {"base_model_name_or_path": "some/model"}
    tensors = {"x": np.ones(2, np.float32)}
    known, named = (
        Update.from_tensors(tensors, client_id=client, base=base, adapter_config=config)
        for client, base in (("a", "ab" * 32), ("b", None))
    )
    assert (BaseIdentity.of(known).digest, BaseIdentity.of(known).name) == ("ab" * 32, "some/model")
    Cohort([known, named]).check_same_base()


@pytest.mark.parametrize(
    ("key", "one", "other"),
    [
        ("trainable_token_indices", [5], [7]),
        ("alora_invocation_tokens", [1, 2], None),
        ("layer_replication", [[0, 4], [2, 5]], [[0, 3], [1, 5]]),
        *(("init_lora_weights", name, True) for name in (*FROM_BASE, "pissa_niter_4", "OLoRA")),
        ("init_lora_weights", "pissa_niter_4", "pissa_niter_16"),
    ],
)
def test_settings_that_give_tensors_their_meaning_must_agree(key, one, other):
    def client(name, value):
        config = {"r": 2, "lora_alpha": 2, "target_modules": ["m"], key: value}
        return dataclasses.replace(update(name), adapter_config=config)

    silent = update("b")
    Cohort([client("a", one), silent, client("c", one)]).check_same_layout()
    words = f"client 'c': adapter_config has {key} .* like client 'a'"
    with pytest.raises(LayoutError, match=words):
        Cohort([client("a", one), silent, client("c", other)]).check_same_layout()
    with pytest.raises(LayoutError, match=words):
        fc.aggregate([client("c", other), client("a", one)], fc.rules.Mean(), space="parameters")


@pytest.mark.parametrize(
    ("begun", "one", "other"),
    [
        ("loftq", {"loftq_config": {"loftq_bits": 4, "loftq_iter": 5}}, {"loftq_config": {"loftq_bits": 4}}),
        ("loftq", {"loftq_config": {"loftq_bits": 4, "loftq_iter": 1}}, {"loftq_config": {"loftq_bits": 2}}),
        ("corda", {"corda_config": {"corda_method": "kpm"}}, {}),
    ],
)
def test_what_else_the_rest_of_the_base_depends_on_must_agree(begun, one, other):
    def client(name, more):
        config = {"r": 2, "lora_alpha": 2, "target_modules": ["m"], "init_lora_weights": begun} | more
        return dataclasses.replace(update(name), adapter_config=config)

    Cohort([client("a", one), client("b", one)]).check_same_layout()
    with pytest.raises(LayoutError, match=f"client 'c': adapter_config has {begun}_config .* like client 'a'"):
        Cohort([client("a", one), client("c", other)]).check_same_layout()
    plain = [dataclasses.replace(u, adapter_config=u.adapter_config | {"init_lora_weights": True})
             for u in (client("a", one), client("c", other))]  # fmt: skip
    Cohort(plain).check_same_layout()


def test_paths_of_a_machine_do_not_tell_two_of_corda_apart():
    def client(name):
        config = {"r": 2, "lora_alpha": 2, "init_lora_weights": "corda", "corda_config": {"cache_file": name}}
        return dataclasses.replace(update(name), adapter_config=config)

    Cohort([client("a"), client("c")]).check_same_layout()


def test_tables_are_one_per_dtype_in_canonical_order_and_copy_nothing():
    cohort = Cohort([update("b"), Update.from_bytes(b"".join([update("a").to_bytes()]))])
    found = {table.dtype: (names, table) for names, table in cohort.tables()}
    assert [table.dtype for _, table in cohort.tables()] == ["bfloat16", "float16", "float32"]
    names, table = found["float32"]
    assert names == ("m.lora_A.weight", "m.lora_B.weight")
    assert (table.n, table.d, table.lengths.tolist()) == (2, 14, [6, 8])
    for row, client in enumerate(cohort):
        for k, name in enumerate(names):
            np.testing.assert_array_equal(table.segment(row, k), client.tensors[name].ravel())
            assert int(table.pointers[k, row]) == client.tensors[name].ctypes.data
    assert found["bfloat16"][0] == ("brain",)
    assert found["float16"][1].columns(1, 0, 3).tolist() == [98.0] * 3


def test_tables_of_some_names():
    # ranks differ, so the factors have no table, but the dense tensors have
    cohort = Cohort([update("a"), update("b", rank=5, **EXTRA)])
    assert [names for names, _ in cohort.tables(["half", "brain"])] == [("brain",), ("half",)]
    assert cohort.tables(("half",))[0][1].columns(1, 0, 1)[0] == 98
    assert cohort.tables([]) == []
    shifted = Cohort([update("a"), update("b", aaa=np.full(2, 7, np.float16), rank=5)])
    assert shifted.tables(["half"])[0][1].columns(1, 0, 3).tolist() == [98.0] * 3
    with pytest.raises(LayoutError, match=r"client 'b': tensor 'm.lora_A.weight' has shape"):
        cohort.tables(["m.lora_A.weight"])
    with pytest.raises(LayoutError, match="'none': not among the 4 tensors"):
        cohort.tables(["none"])
    with pytest.raises(LayoutError, match="client 'b': tensor 'half' is missing"):
        Cohort([update("a"), update("b", half=None)]).tables(["half"])
    same = Cohort([update("a"), update("b")])
    assert [names for names, _ in same.tables(["m.lora_B.weight", "half"])] == [("half",), ("m.lora_B.weight",)]
    assert same.tables(["m.lora_B.weight"])[0][1].columns(1, 0, 1)[0] == 98.5


def test_one_pointer_table_takes_little_time():
    clients, layers = 32, 224
    tensors = {f"m.{i}.lora_{x}.weight": np.ones((1, 1), np.float32) for i in range(layers) for x in "AB"}
    scaling = {f"m.{i}": 1.0 for i in range(layers)}
    data = [Update.from_tensors(tensors, scaling=scaling, client_id=f"{c:02}").to_bytes() for c in range(clients)]
    best = 1.0
    for _ in range(7):
        updates = [Update.from_bytes(message) for message in data]
        start = time.perf_counter()
        [(names, table)] = Cohort(updates).tables()
        best = min(best, time.perf_counter() - start)
    assert table.pointers.shape == (len(names), clients) == (2 * layers, clients)
    each = best / table.pointers.size
    assert each < 2e-6, f"{each * 1e6:.2f} µs per tensor and client, expected at most 0.5 on an idle machine"
