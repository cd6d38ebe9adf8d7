"""Median, trimmed mean, mean around the median and sign majority as rules, alone and after a pre-aggregation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fedcore as fc
from fedcore.errors import NonFiniteError, RuleError
from fedcore.rules import (
    ARC,
    Bucketing,
    Bulyan,
    Mean,
    MeanAroundMedian,
    Median,
    NearestNeighborMixing,
    NormClipping,
    SignMajority,
    TrimmedMean,
)
from fedcore.rules import order_statistic as module
from fedcore.rules.rows import RowExecutor
from tests.oracles import iterative
from tests.oracles import order as oracle

RULES = [
    (Median(), oracle.median),
    (TrimmedMean(2), lambda rows: oracle.trimmed_mean(rows, 2)),
    (TrimmedMean(fraction=0.25), lambda rows: oracle.trimmed_mean(rows, len(rows) // 4)),
    (MeanAroundMedian(2), lambda rows: oracle.mean_around_median(rows, 2)),
]
elements = st.one_of(
    st.floats(-3, 3, width=32),
    st.sampled_from([0.0, -0.0, 1.0, 1.0, -1.0, 2.0**-140, -(2.0**-149), 3e38, -3e38, 1e20]),
)


def some_rows(n=9, d=300, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def updates_of(rows):
    """Updates with a pair and a dense tensor, cut from the rows."""
    return [
        fc.Update.from_tensors(
            {"m.lora_A.weight": row[:20].reshape(2, 10), "m.lora_B.weight": row[20:32].reshape(6, 2), "head": row[32:]},
            scaling={"m": 2.0},
            client_id=f"c{i}",
        )
        for i, row in enumerate(rows)
    ]


@settings(max_examples=60, deadline=None)
@given(st.integers(5, 12), st.integers(1, 20), st.data())
def test_each_rule_equals_its_oracle(n, d, data):
    rows = np.array(data.draw(st.lists(elements, min_size=n * d, max_size=n * d)), np.float32).reshape(n, d)
    for rule, expected in RULES:
        np.testing.assert_allclose(rule(rows), expected(rows).astype(np.float32), rtol=1e-6, atol=1e-45)


def test_values_that_cancel_are_added_from_the_smallest_on():
    """In another order what is left of them here differs in the fifth digit."""
    rows = np.array([0, 2, 2, 0, 1, 0, -1, 2.0193573375959506e-12], np.float32)[:, None]
    for rule, expected in RULES:
        np.testing.assert_allclose(rule(rows), expected(rows).astype(np.float32), rtol=1e-6)


ORDER = [Median(), TrimmedMean(1), MeanAroundMedian(1), SignMajority(1.0), Bulyan(0)]


@pytest.mark.parametrize("following", ORDER, ids=repr)
@pytest.mark.parametrize("first", [NearestNeighborMixing(1), Bucketing(2, 0), NormClipping(1.0), ARC(1)], ids=repr)
def test_a_composition_of_rows_in_any_format_has_the_bits_of_the_decoded_rows(first, following, monkeypatch):
    rows = some_rows(d=1300)
    int8 = [fc.Quantized.from_array(row, "int8") for row in rows]
    nf4 = [fc.Quantized.from_array(row, "nf4") for row in rows]
    monkeypatch.setattr(module, "MIXED_BYTES", 1)  # two tiles
    rule = first.then(following)
    for sent in (int8, nf4, [*int8[:3], *rows[3:5], *nf4[5:]]):
        decoded = np.array([row if isinstance(row, np.ndarray) else row.to_float32() for row in sent])
        found = rule(sent, reference=sent[0])
        assert found.tobytes() == rule(decoded, reference=decoded[0]).tobytes()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 20), st.data())
def test_sign_majority_equals_its_oracle(n, d, data):
    values = np.array(data.draw(st.lists(elements, min_size=(n + 1) * d, max_size=(n + 1) * d)), np.float32)
    rows, reference = values[d:].reshape(n, d), values[:d]
    found = SignMajority(0.1)(rows, reference=reference)
    np.testing.assert_array_equal(found, oracle.sign_majority(rows, reference, 0.1).astype(np.float32))
    found = SignMajority(0.1)(rows)
    np.testing.assert_array_equal(found, oracle.sign_majority(rows, np.zeros(d), 0.1).astype(np.float32))


@pytest.mark.parametrize(("rule", "expected"), RULES)
@pytest.mark.parametrize("with_reference", [True, False])
def test_after_a_clip_the_statistic_is_of_rows_that_were_formed(rule, expected, with_reference):
    rows, reference = some_rows(), some_rows(1, seed=1)[0]
    base = reference.astype(np.float64) if with_reference else np.zeros(300)
    found = ARC(2).then(rule)(rows, reference=reference if with_reference else None)
    np.testing.assert_allclose(found, expected(iterative.adaptively_clipped(rows, base, 2)), rtol=1e-5, atol=1e-6)


def test_tiles_of_mixtures_change_no_bit(monkeypatch):
    rows = some_rows(7, 5000)
    rule = NormClipping(50.0).then(TrimmedMean(1))
    whole = rule(rows)
    monkeypatch.setattr(module, "MIXED_BYTES", 1)
    assert rule(rows).tobytes() == whole.tobytes()


def test_bits_do_not_depend_on_backend_or_threads():
    rows = some_rows(8, 700)
    for rule in (*(r for r, _ in RULES), SignMajority(0.5), NormClipping(9.0).then(Median())):
        expected = rule(rows, backend="reference").tobytes()
        assert rule(rows, backend="c", threads=1).tobytes() == expected
        assert rule(rows, backend="c", threads=3).tobytes() == expected


def test_torch_rows_give_torch_rows():
    torch = pytest.importorskip("torch")
    rows = some_rows(6, 90)
    for rule in (Median(), NormClipping(3.0).then(Median()), SignMajority(1.0)):
        found = rule(torch.from_numpy(rows))
        assert isinstance(found, torch.Tensor)
        assert found.numpy().tobytes() == rule(rows).tobytes()


@pytest.mark.parametrize("rule", [*(r for r, _ in RULES), SignMajority(0.25), NormClipping(9.0).then(Median())])
def test_the_engine_gives_what_the_rule_gives_and_says_how(rule):
    rows = some_rows(8, 100)
    found = fc.aggregate(updates_of(rows), rule, space="parameters")
    tensors = found.update.tensors
    joined = np.concatenate([tensors[name].ravel() for name in ("m.lora_A.weight", "m.lora_B.weight", "head")])
    assert joined.tobytes() == rule(rows).tobytes()
    assert found.coefficients == {}
    assert found.report["law"] == "order statistic of integer keys, rounded once"
    if rule == NormClipping(9.0).then(Median()):
        assert np.shape(found.report["mix"])[0] == 8
        assert found.report["before"][0]["rule"] == "NormClipping(max_norm=9.0)"


def test_nan_is_named_or_its_client_excluded():
    rows = some_rows(6, 100)
    rows[4, 50] = np.nan
    with pytest.raises(NonFiniteError, match="row 4: holds NaN or Inf at column 50"):
        Median()(rows)
    with pytest.raises(NonFiniteError, match="client 'c4': tensor 'head' holds NaN or Inf at element 18"):
        fc.aggregate(updates_of(rows), Median(), space="parameters")
    found = fc.aggregate(updates_of(rows), Median(), space="parameters", on_nonfinite="exclude")
    assert list(found.excluded) == ["c4"]
    kept = np.delete(rows, 4, axis=0)
    assert found.update.tensors["head"].tobytes() == Median()(kept)[32:].tobytes()


def test_too_large_f_names_the_largest():
    with pytest.raises(
        RuleError, match=r"TrimmedMean: got f=3 with n=6 clients, expected 2f < n; the largest f.* is 2"
    ):
        TrimmedMean(3)(some_rows(6, 4))
    with pytest.raises(RuleError, match=r"MeanAroundMedian: .*largest f for n=6 is 2"):
        MeanAroundMedian(3)(some_rows(6, 4))
    with pytest.raises(RuleError, match="expected one of the two"):
        TrimmedMean()
    with pytest.raises(RuleError, match=r"from 0 to below 0\.5"):
        TrimmedMean(fraction=0.5)


def test_a_decimal_fraction_means_what_it_says():
    assert TrimmedMean(fraction=0.1).dropped(30) == 3  # 0.1 · 30 is above 3 in fp64, 0.29 · 100 below 29
    assert TrimmedMean(fraction=0.29).dropped(100) == 29
    assert TrimmedMean(fraction=0.3333333333).dropped(3) == 0
    with pytest.raises(RuleError, match="got fraction=False"):
        TrimmedMean(fraction=False)


def test_a_fraction_of_0_drops_nothing():
    assert TrimmedMean(fraction=0).dropped(5) == 0
    assert TrimmedMean(fraction=0)(some_rows()).tobytes() == TrimmedMean(0)(some_rows()).tobytes()


def test_an_attacker_at_infinity_or_a_million_changes_nothing_much():
    rows = some_rows(11, 50)
    honest = Median()(rows[:9])
    rows[9:] = 1e6
    for rule in (Median(), TrimmedMean(2), MeanAroundMedian(2)):
        assert np.abs(rule(rows) - honest).max() < 3
    assert np.abs(Mean()(rows) - honest).max() > 1e5


@pytest.mark.parametrize("rule", [SignMajority(1.0), NormClipping(1.0).then(SignMajority(1.0))], ids=repr)
def test_nan_in_the_reference_is_no_clients_fault(rule):
    rows = some_rows()
    rows[8, 50] = np.nan
    updates, reference = updates_of(rows[:8]), updates_of(rows[8:])[0]
    for how in ("raise", "exclude"):
        with pytest.raises(NonFiniteError, match="the reference: tensor 'head' holds NaN or Inf at element 18; repair"):
            fc.aggregate(updates, rule, "parameters", reference=reference, on_nonfinite=how)
    with pytest.raises(NonFiniteError, match="the reference: holds NaN or Inf at column 50; repair"):
        rule(rows[:8], reference=rows[8])
    reference, updates = updates[0], updates_of(rows)
    found = fc.aggregate(updates, rule, "parameters", reference=reference, on_nonfinite="exclude")
    assert list(found.excluded) == ["c8"]


def test_nan_in_a_late_tile_of_mixtures_is_found_where_it_lies(monkeypatch):
    monkeypatch.setattr(module, "MIXED_BYTES", 1)
    rows = some_rows(d=3000)
    rows[4, 2500] = np.nan
    executor = RowExecutor.from_rows(rows, references={}, backend=None, threads=None)
    mean = np.full((2, 9), 1 / 9)
    with pytest.raises(NonFiniteError, match="row 4: holds NaN or Inf at column 2500;"):
        executor.order_statistic(module.OrderStatistic("median", mix=mean))
