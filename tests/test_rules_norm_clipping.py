"""Norm clipping against its definition, alone and before another rule."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcore.errors import LayoutError, RuleError
from fedcore.rowtable import RowTable
from fedcore.rules import Krum, Mean, MultiKrum, NormClipping
from fedcore.rules.geometry import Geometry
from fedcore.rules.rows import RowExecutor
from fedcore.rules.statistics import Statistics
from tests.cohorts import decided
from tests.oracles import rules as oracle


def some_rows(seed: int = 0, n: int = 7, d: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """(rows, reference): rows moved from the reference by about 1, the last by 30."""
    rng = np.random.default_rng(seed)
    reference = (5 * rng.standard_normal(d)).astype(np.float32)
    change = rng.standard_normal((n, d)) / np.sqrt(d) * rng.uniform(0.5, 2, (n, 1))
    change[-1] *= 30
    return (reference + change).astype(np.float32), reference


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.floats(0.01, 100), st.booleans())
def test_equals_the_oracle(seed, max_norm, with_reference):
    rows, reference = some_rows(seed)
    counts = np.arange(1, 8)
    given_reference = reference if with_reference else None
    found = NormClipping(max_norm)(rows, counts, reference=given_reference)
    base = reference if with_reference else np.zeros_like(reference)
    expected = oracle.weighted_mean(oracle.clipped(rows, base, max_norm), counts)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=3e-6)


def test_a_bound_that_nobody_reaches_gives_the_mean_in_every_bit():
    rows, reference = some_rows()
    counts = np.arange(1, 8)
    assert NormClipping(1e9)(rows, counts, reference=reference).tobytes() == Mean()(rows, counts).tobytes()


class NormsTooShort(RowExecutor):
    """Norms that are off by as much as they say, to the side that lets a client through."""

    def squared_norms(self):
        square, _ = super().squared_norms()
        return square * (1 - 1e-3), square * 1e-3


def test_a_norm_counts_with_the_bound_of_its_error_added():
    rows, reference = some_rows()
    values = decided(NormClipping(0.5), rows, kind=NormsTooShort, reference=reference).values
    lengths = values[:7] * np.linalg.norm(rows.astype(np.float64) - reference, axis=1)
    assert (values[:7] < 1).all()
    assert lengths.max() <= 0.5 * (1 + 1e-12)


def test_one_client_moves_the_result_by_at_most_its_share_of_the_bound():
    rows, reference = some_rows()
    before = NormClipping(0.5)(rows, reference=reference).astype(np.float64)
    rows[-1] = 1e30
    after = NormClipping(0.5)(rows, reference=reference)
    assert np.linalg.norm(after - before) <= 2 * 0.5 / 7 * (1 + 1e-5)


@pytest.mark.parametrize("following", [Krum(1), MultiKrum(1), MultiKrum(2, m=3), Mean(), Krum(2, "byzfl")])
@pytest.mark.parametrize("with_reference", [True, False])
def test_composition_equals_two_steps_on_rows_that_were_formed(following, with_reference):
    for seed in range(8):
        rows, reference = some_rows(seed)
        base = reference if with_reference else np.zeros_like(reference)
        formed = oracle.clipped(rows, base, 1.0).astype(np.float32)
        found = NormClipping(1.0).then(following)(rows, reference=reference if with_reference else None)
        np.testing.assert_allclose(found, following(formed), rtol=1e-6, atol=3e-6)


def test_composition_needs_what_its_parts_need_and_prints_as_written():
    rule = NormClipping(1.0).then(Krum(f=1))
    assert rule.needs == {"norms", "gram"}
    assert rule.uses == ("reference",)
    assert not rule.uses_weights
    assert repr(rule) == "NormClipping(max_norm=1.0).then(Krum(f=1, neighbors='paper'))"
    assert rule == NormClipping(1.0).then(Krum(f=1))
    with pytest.raises(RuleError, match="largest f for n=4 is 0"):
        rule(np.ones((4, 3), np.float32))


def test_what_is_decided_on_clipped_rows_is_said_of_their_clients():
    rows, _ = some_rows()
    rule = MultiKrum(1, 3)
    found = decided(NormClipping(1.0).then(rule), rows)
    formed = decided(rule, oracle.clipped(rows, np.zeros(rows.shape[1]), 1.0).astype(np.float32))
    assert (found.selected, found.reasons) == (formed.selected, formed.reasons)
    assert found.per_client.keys() == formed.per_client.keys()
    np.testing.assert_allclose(found.per_client["scores"], formed.per_client["scores"], rtol=1e-4)
    assert found.details.keys() == formed.details.keys()


def test_clips_chain_and_the_smaller_bound_holds():
    rows, reference = some_rows()
    found = NormClipping(2.0).then(NormClipping(0.5).then(Mean()))(rows, reference=reference)
    same = NormClipping(2.0).then(NormClipping(0.5)).then(Mean())(rows, reference=reference)
    np.testing.assert_allclose(found, NormClipping(0.5)(rows, reference=reference), rtol=1e-5, atol=1e-5)
    assert found.tobytes() == same.tobytes()


def test_near_ties_between_clipped_rows_are_redone_and_go_to_the_lowest_row():
    rows, reference = some_rows()
    rows[4] = rows[1]
    executor = RowExecutor.from_rows(rows, references={"reference": reference}, backend=None, threads=1)
    statistics = Statistics(executor)
    rule = NormClipping(0.1).then(MultiKrum(2, m=1))
    values = rule.decide(Geometry(statistics), None).values[:7]
    formed = oracle.clipped(rows, reference, 0.1)
    scores = oracle.krum_scores(formed, 2)
    best = int(np.flatnonzero(values)[0])
    assert scores[best] <= scores.min() * (1 + 1e-9)
    assert best != 4


def test_intervals_hold_redone_distances_between_rows_clipped_to_almost_nothing():
    """1 − λ rounds in fp64, which is as large as 1e-4 of what is left of the change beside a reference of 1e4."""
    rng = np.random.default_rng(0)
    reference = (1e4 * rng.standard_normal(300)).astype(np.float32)
    rows = reference + rng.standard_normal((5, 300)).astype(np.float32)
    executor = RowExecutor.from_rows(rows, references={"reference": reference}, backend=None, threads=1)
    geometry = Geometry(Statistics(executor))
    clipped = geometry.mixed(NormClipping(1e-9).mixing(geometry, None).matrix)
    lower, upper = clipped.intervals()
    pairs = np.argwhere(np.triu(np.ones((5, 5)), 1))
    value, _ = clipped.redo(pairs)
    assert (lower[pairs[:, 0], pairs[:, 1]] <= value).all()
    assert (value <= upper[pairs[:, 0], pairs[:, 1]]).all()


def test_a_segmented_table_takes_a_flat_reference():
    rows, reference = some_rows(d=60)
    offsets = np.repeat(np.array([[0], [4 * 25]]), 7, axis=1)
    table = RowTable(list(rows), offsets, np.array([25, 35]), "float32")
    for rule in (NormClipping(1.0), NormClipping(1.0).then(Krum(1))):
        assert rule(table, reference=reference).tobytes() == rule(rows, reference=reference).tobytes()
        assert rule(table).tobytes() == rule(rows).tobytes()


def test_the_callers_arrays_stay_as_they_are():
    rows, reference = some_rows()
    before = rows.copy(), reference.copy()
    NormClipping(0.1).then(Krum(1))(rows, reference=reference)
    assert rows.tobytes() == before[0].tobytes()
    assert reference.tobytes() == before[1].tobytes()


def test_torch_in_gives_torch_out():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    rows, reference = some_rows()
    for given_reference in (reference, None):
        expected = NormClipping(1.0)(rows, reference=given_reference)
        as_tensor = None if given_reference is None else torch.from_numpy(given_reference)
        found = NormClipping(1.0)(torch.from_numpy(rows), reference=as_tensor)
        assert isinstance(found, torch.Tensor)
        assert found.numpy().tobytes() == expected.tobytes()


def test_a_reference_that_does_not_fit_is_refused():
    rows, reference = some_rows()
    with pytest.raises(LayoutError, match=r"float16, expected float32 .*convert"):
        NormClipping(1.0)(rows, reference=reference.astype(np.float16))
    with pytest.raises(LayoutError, match=r"reference: got shape \(59,\), expected \(60,\)"):
        NormClipping(1.0)(rows, reference=reference[1:])
    assert Krum(1)(rows, reference=reference.astype(np.float16)).tobytes() == Krum(1)(rows).tobytes()


def test_a_table_as_reference_is_taken_as_its_row():
    rows, reference = some_rows(d=60)
    expected = NormClipping(1.0)(rows, reference=reference).tobytes()
    offsets, lengths = np.repeat(np.array([[0], [4 * 25]]), 7, axis=1), np.array([25, 35])
    segmented = RowTable(list(rows), offsets, lengths, "float32")
    flat = RowTable.from_arrays([reference])
    for table in (flat, RowTable([reference], offsets[:, :1], lengths, "float32")):
        for given_rows in (rows, list(rows), segmented, RowTable.from_arrays(list(rows))):
            assert NormClipping(1.0)(given_rows, reference=table).tobytes() == expected
    torch = pytest.importorskip("torch", reason="torch is not installed")
    found = NormClipping(1.0)(torch.from_numpy(rows), reference=flat)
    assert found.numpy().tobytes() == expected


@pytest.mark.parametrize("as_table", [True, False])
def test_a_table_that_is_no_reference_is_refused(as_table):
    rows, reference = some_rows()
    given_rows = RowTable.from_arrays(list(rows)) if as_table else rows
    for table, text in (
        ([reference, reference], "reference: got 2 rows, expected one"),
        ([reference[1:]], "reference: got 59 columns, expected 60"),
        ([reference.astype(np.float16)], "reference: got float16, expected float32"),
    ):
        with pytest.raises(LayoutError, match=text):
            NormClipping(1.0)(given_rows, reference=RowTable.from_arrays(table))


@pytest.mark.parametrize("max_norm", [5e-7, 1e-3, 0.1, 3e38 * 2**-126, 1e-300])
@pytest.mark.parametrize("following", [None, Mean()])
def test_the_bound_holds_where_the_factor_has_few_bits_in_fp32(max_norm, following):
    rule = NormClipping(max_norm) if following is None else NormClipping(max_norm).then(following)
    for values in ([3e38] * 4, [3.3e38, 1.7e37, 2.1e38, 0.0]):
        found = rule(np.array([values], np.float32))
        assert np.linalg.norm(found.astype(np.float64)) <= max_norm * (1 + 2.0**-22)


def test_a_chain_of_clips_holds_beside_a_reference_that_hides_the_change():
    """The second clip sees the first one's rows, whose change is 1e-8 of the reference: a Gram loses it."""
    rng = np.random.default_rng(0)
    reference = (1e6 * rng.standard_normal(60)).astype(np.float32)
    rows = reference + rng.standard_normal((5, 60)).astype(np.float32)
    executor = RowExecutor.from_rows(rows, references={"reference": reference}, backend=None, threads=1)
    geometry = Geometry(Statistics(executor))
    clipped = geometry.mixed(NormClipping(0.02).mixing(geometry, None).matrix)
    square, bound = clipped.squared_distances_to_reference()
    assert (np.abs(np.sqrt(square) - 0.02) <= np.sqrt(square + bound) - np.sqrt(square) + 1e-9).all()
    factors = np.diag(NormClipping(0.01).mixing(clipped, None).matrix)
    assert (factors * 0.02 <= 0.01 * (1 + 1e-6)).all()
    np.testing.assert_allclose(factors, 0.5, rtol=1e-3)


@pytest.mark.parametrize("max_norm", [0, -1, np.inf, np.nan, "1", True])
def test_the_bound_must_be_a_positive_number(max_norm):
    with pytest.raises(RuleError, match="expected a finite number above 0"):
        NormClipping(max_norm)
