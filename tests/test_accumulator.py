"""Aggregation on arrival: the bits of the exact sum in every order; checks and report of `aggregate`."""

from __future__ import annotations

import dataclasses
import gc
import itertools
import weakref
from fractions import Fraction

import numpy as np
import pytest
from inputs import from_bits, make_rows, same_bits

import fedcore as fc
from fedcore.dtypes import round_from_float64, to_float64
from fedcore.errors import (
    BackendError,
    DTypeError,
    LayoutError,
    NonFiniteError,
    RangeError,
    RuleError,
    ShapeError,
    WeightError,
)
from fedcore.rules import Krum, Mean, NormClipping

SHAPES = {"m.lora_A.weight": (4, 30), "m.lora_B.weight": (50, 4), "head": (7,), "norm": (3,)}
DTYPES = {"m.lora_A.weight": "float32", "m.lora_B.weight": "bfloat16", "head": "float16", "norm": "float32"}


def update(client: str, seed: int, examples: int = 5, spread: float = 1.0, **options) -> fc.Update:
    options = {"scaling": {"m": 2.0}} | options
    tensors = {
        name: make_rows(1, int(np.prod(shape)), DTYPES[name], seed + 7 * k, spread)[0].reshape(shape)
        for k, (name, shape) in enumerate(SHAPES.items())
    }
    return fc.Update.from_tensors(
        tensors | options.pop("tensors", {}), num_examples=examples, client_id=client, **options
    )


def cohort(n: int = 9) -> list[fc.Update]:
    return [update(f"client-{i:02d}", seed=100 * i, examples=3 + 5 * i) for i in range(n)]


def accumulated(updates, rule, reference=None, **options) -> fc.Accumulator:
    made = fc.Accumulator(rule, reference=reference, **options)
    for one in updates:
        made.add(one)
    return made


def lasting(aggregate: fc.Aggregate) -> dict:
    """A report without what differs from run to run."""
    return {name: value for name, value in aggregate.report.items() if name != "seconds"}


RULES = [(Mean(), False), (NormClipping(20.0), False), (NormClipping(20.0), True), (NormClipping(1e9), True)]


@pytest.mark.parametrize("order", list(itertools.permutations([1e20, 1.0, -1e20])))
def test_every_order_of_1e20_1_and_minus_1e20_is_a_third(order):
    sent = {1e20: "a", 1.0: "b", -1e20: "c"}
    made = fc.Accumulator(Mean())
    for value in order:
        made.add(fc.Update.from_tensors({"w": np.full(40, value, np.float32)}, client_id=sent[value]))
    assert (made.result().update.tensors["w"] == np.float32(1 / 3)).all()


@pytest.mark.parametrize(("rule", "moved"), RULES)
def test_arrival_order_moves_no_bit(rule, moved):
    updates, reference = cohort(), update("", 5) if moved else None
    first = accumulated(updates, rule, reference).result()
    rng = np.random.default_rng(0)
    for threads in (1, 2, 3, 4, 5):
        order = rng.permutation(len(updates))
        again = accumulated([updates[i] for i in order], rule, reference, threads=threads).result()
        assert again.update.digest() == first.update.digest()
        assert again.coefficients == first.coefficients
        assert lasting(again) == lasting(first)


@pytest.mark.parametrize(("rule", "moved"), RULES)
@pytest.mark.parametrize("backend", ["c", "reference"])
def test_coefficients_and_report_are_those_of_aggregate_and_values_agree_to_an_ulp(rule, moved, backend):
    updates, reference = cohort(), update("", 5) if moved else None
    got = accumulated(updates[::-1], rule, reference, backend=backend).result()
    expected = fc.aggregate(updates, rule, "parameters", reference, backend=backend)
    assert got.coefficients == expected.coefficients
    assert got.excluded == expected.excluded
    assert lasting(got) | {"law": ""} == lasting(expected) | {"law": ""}
    assert got.report["law"] == "exact sum, rounded once"
    assert got.update.layout == expected.update.layout
    assert (got.update.num_examples, got.update.scaling) == (expected.update.num_examples, expected.update.scaling)
    for name, array in got.update.tensors.items():
        ulp = 2.0 ** -{"float32": 23, "float16": 10, "bfloat16": 7}[DTYPES[name]]
        value, other = to_float64(array), to_float64(expected.update.tensors[name])
        assert (np.abs(value - other) <= ulp * np.abs(other)).all()
    if moved:
        assert got.report["reference_coefficients"].keys() == {"reference"}


@pytest.mark.parametrize(("rule", "moved"), RULES)
def test_values_are_the_exact_sum_rounded_to_fp64_divided_and_rounded(rule, moved):
    updates, reference = cohort(5), update("r", 5) if moved else None
    found = accumulated(updates, rule, reference).result()
    rows = [(one, found.coefficients[one.client_id]) for one in updates]
    if moved:
        rows.append((reference, found.report["reference_coefficients"]["reference"]))
    for name, array in found.update.tensors.items():
        columns = np.array([to_float64(one.tensors[name].ravel()) for one, _ in rows]).T.tolist()
        exact = [sum(Fraction(c) * Fraction(x) for (_, c), x in zip(rows, column, strict=True)) for column in columns]
        values = np.array([float(value) for value in exact]) / found.report["divisor"]
        assert same_bits(np.array(array.ravel()), round_from_float64(values, DTYPES[name])), name


def test_results_may_be_taken_any_time_and_leave_no_trace():
    updates, reference = cohort(), update("", 5)
    made = fc.Accumulator(NormClipping(20.0), reference=reference)
    for i, one in enumerate(updates):
        made.add(one)
        assert made.client_ids == tuple(u.client_id for u in updates[: i + 1])
        until = accumulated(updates[: i + 1], NormClipping(20.0), reference).result()
        assert made.result().update.digest() == until.update.digest()
        assert made.result().update.digest() == until.update.digest()


def test_a_result_that_fails_leaves_no_trace(monkeypatch):
    """The reference is taken out of the sums again."""
    made = accumulated(cohort(3), NormClipping(2.0), update("", 5))
    before = made.result().update.digest()

    def fail(*arguments):
        raise RangeError("does not fit")

    with monkeypatch.context() as patch:
        patch.setattr(fc.ops.ExactSum, "result", fail)
        with pytest.raises(RangeError, match="does not fit"):
            made.result()
    assert made.result().update.digest() == before


def test_the_seconds_of_adding_are_those_of_all_that_were_added(monkeypatch):
    now = itertools.count()
    monkeypatch.setattr("fedcore.engine.combination.time.perf_counter", lambda: float(next(now)))
    made = fc.Accumulator(Mean())
    for member in cohort(4):
        made.add(member)
    assert made.result().report["seconds"]["add"] == 4.0


def test_updates_are_not_kept():
    made = fc.Accumulator(Mean())
    for i in range(20):
        one = update(f"client-{i:02d}", i)
        gone = weakref.ref(one.buffer)
        made.add(one)
        del one
        gc.collect()
        assert gone() is None, i
    assert made.nbytes <= 16 * sum(int(np.prod(shape)) for shape in SHAPES.values())
    assert made.result().report["n"] == 20


@pytest.mark.parametrize("rule", [Mean(), NormClipping(3.0)])
@pytest.mark.parametrize("tensor", ["m.lora_A.weight", "m.lora_B.weight", "norm"])
def test_a_value_that_is_not_finite_is_refused_by_name_and_leaves_nothing_behind(rule, tensor):
    """Also where the tensors of another dtype had been added already."""
    updates = cohort(3)
    made = accumulated(updates[:2], rule)
    before = made.result().update.digest()
    bad = {name: np.array(array) for name, array in updates[2].tensors.items()}
    bits = 0x7FC00000 if DTYPES[tensor] == "float32" else 0x7F80
    bad[tensor].ravel()[2] = from_bits([bits], DTYPES[tensor])[0]
    with pytest.raises(NonFiniteError, match=f"client 'client-02': tensor '{tensor}' holds NaN or Inf at element 2"):
        made.add(fc.Update.from_tensors(bad, client_id="client-02", scaling={"m": 2.0}))
    assert made.client_ids == ("client-00", "client-01")
    assert made.result().update.digest() == before
    made.add(updates[2])
    assert made.result().update.digest() == accumulated(updates, rule).result().update.digest()


def test_what_does_not_fit_is_refused_by_name_and_leaves_nothing_behind():
    made = accumulated(cohort(2), Mean())
    before = made.result()
    with pytest.raises(LayoutError, match="client 'client-01': sent two updates, expected one"):
        made.add(update("client-01", 3))
    with pytest.raises(LayoutError, match="got a dict at 0, expected Update"):
        made.add({})
    wide = {"m.lora_A.weight": np.zeros((8, 30), np.float32), "m.lora_B.weight": fc.bf16(np.zeros((50, 8), np.uint16))}
    with pytest.raises(LayoutError, match="client 'b': module 'm' has rank 8, expected 4 like client 'client-00'"):
        made.add(update("b", 3, tensors=wide))
    with pytest.raises(LayoutError, match="client 'b': module 'm' has scale 1, expected 2 like client 'client-00'"):
        made.add(update("b", 3, scaling={"m": 1.0}))
    with pytest.raises(LayoutError, match=r"client 'b': tensor 'extra' is extra like client 'client-00'"):
        made.add(update("b", 3, tensors={"extra": np.zeros(3, np.float32)}))
    with pytest.raises(LayoutError, match="client 'b': tensor 'head' is float32, expected float16"):
        made.add(update("b", 3, tensors={"head": np.zeros(7, np.float32)}))
    for weight in (0, -1, np.nan, 2**24 + 2, 1e-40):
        with pytest.raises(WeightError, match="client 'b': got weight"):
            made.add(update("b", 3), weight)
    with pytest.raises(DTypeError, match="weights: got <U1, expected real numbers"):
        made.add(update("b", 3), "x")
    assert made.result().update.digest() == before.update.digest()
    assert made.client_ids == ("client-00", "client-01")


def test_bases_are_compared_with_all_before():
    made = fc.Accumulator(Mean())
    made.add(update("a", 1))
    made.add(update("b", 2, base="org/one"))
    with pytest.raises(
        LayoutError, match="client 'c': its base model is 'org/two', expected 'org/one' like client 'b'"
    ):
        made.add(update("c", 3, base="org/two"))
    assert made.result().update.base == "org/one"


def test_a_reference_is_what_clients_have_to_fit():
    reference = update("", 1, base="org/one")
    made = fc.Accumulator(NormClipping(1.0), reference=reference)
    with pytest.raises(LayoutError, match="client 'a': module 'm' has scale 1, expected 2 like reference"):
        made.add(update("a", 3, scaling={"m": 1.0}))
    with pytest.raises(LayoutError, match="client 'a': its base model is 'org/two', expected 'org/one' like reference"):
        made.add(update("a", 3, base="org/two"))
    made.add(update("a", 3))
    assert made.result().report["n"] == 1


def test_the_configuration_is_that_of_the_first_client_by_name():
    one, two = ({"peft_type": "LORA", "r": 4, "lora_alpha": 8, "note": note} for note in ("one", "two"))
    updates = [
        update("a", 1, adapter_config=one),
        update("b", 2, adapter_config=two),
        update("c", 3, adapter_config=two),
    ]
    for order in itertools.permutations(updates):
        assert accumulated(order, Mean()).result().update.adapter_config["note"] == "one"


def test_examples_are_counted_where_every_client_said_how_many():
    """Whoever was silent counts as 1, and it does not matter who came first or last."""
    silent = [dataclasses.replace(update(client, 1, examples=1), counted=False) for client in "ab"]
    said = [update(client, 2) for client in "cd"]
    for updates in ([silent[0], said[0]], silent, said):
        expected = fc.aggregate(updates, Mean(), "parameters").update
        assert expected.counted == (updates is said)
        for order in itertools.permutations(updates):
            found = accumulated(order, Mean()).result().update
            assert (found.counted, found.num_examples) == (expected.counted, expected.num_examples)


@pytest.mark.parametrize("rule", [Krum(f=1), NormClipping(1.0).then(Mean())])
def test_a_rule_that_has_to_see_all_updates_asks_for_a_directory(rule):
    with pytest.raises(RuleError, match=r"has to see all updates .* keeps updates on disk; give directory="):
        fc.Accumulator(rule)


@pytest.mark.parametrize("rule", [Mean(), NormClipping(1.0)])
def test_a_rule_that_keeps_nothing_has_no_use_for_a_directory(tmp_path, rule):
    with pytest.raises(RuleError, match=r"keeps no update, so it has no use for directory='.*kept'; leave it out"):
        fc.Accumulator(rule, tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


def test_other_arguments_that_cannot_be_used():
    with pytest.raises(RuleError, match="rule: got 'mean', expected an instance of a rule"):
        fc.Accumulator("mean")
    with pytest.raises(BackendError, match="got backend 'cuda'"):
        fc.Accumulator(Mean(), backend="cuda")
    with pytest.raises(RangeError, match="threads: got 0"):
        fc.Accumulator(Mean(), threads=0)
    with pytest.raises(ShapeError, match="got no update, expected at least one"):
        fc.Accumulator(Mean()).result()


def test_weights_that_are_given_count_instead_of_examples():
    updates = cohort(4)
    made = fc.Accumulator(NormClipping(20.0))
    weights = {one.client_id: 0.3 + i for i, one in enumerate(updates)}
    for one in updates:
        made.add(one, weights[one.client_id])
    expected = fc.aggregate(updates, NormClipping(20.0), "parameters", weights=weights)
    assert made.result().coefficients == expected.coefficients


def test_flush_mode_of_the_caller_changes_nothing():
    torch = pytest.importorskip("torch", reason="the caller's flush mode is set through torch")
    tiny = fc.Update.from_tensors({"w": from_bits([1, 7, 0x7FFFFF, 3], "float32")}, client_id="a")
    expected = accumulated([tiny], Mean()).result().update.digest()
    assert torch.set_flush_denormal(True)
    try:
        got = accumulated([tiny], Mean()).result().update.digest()
    finally:
        torch.set_flush_denormal(False)
    assert got == expected == accumulated([tiny], Mean(), backend="reference").result().update.digest()


@pytest.mark.parametrize("tensors", [{"x": (10, "float32")}, {"x": (20, "float32")}])
def test_a_first_client_that_is_refused_says_nothing_of_what_others_send(tensors):
    """Neither the tensors nor how many columns."""
    made = fc.Accumulator(Mean())
    bad = {name: np.full(size, np.nan, dtype) for name, (size, dtype) in tensors.items()}
    with pytest.raises(NonFiniteError, match="client 'a'"):
        made.add(fc.Update.from_tensors(bad, client_id="a"))
    assert made.nbytes == 0
    for i in (1, 3):
        made.add(fc.Update.from_tensors({"w": np.full(20, 2049 * i, np.float32)}, client_id=f"c{i}"))
    [mean] = made.result().update.tensors.values()
    assert mean.dtype == np.float32
    assert (mean == 4098).all()
