"""Aggregation on arrival under rules that see all updates: what `aggregate` gives, in every order, after any crash."""

from __future__ import annotations

import os
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

import fedcore as fc
from fedcore.accumulator import growing_gram
from fedcore.dtypes import round_from_float64
from fedcore.errors import (
    BudgetError,
    FormatError,
    LayoutError,
    MissingError,
    NonFiniteError,
    RuleError,
    ShapeError,
    StorageError,
)
from fedcore.rules import GeometricMedian, Krum, Median, MultiKrum, NormClipping
from fedcore.rules.files import FileExecutor, budget_for

SHAPES = {"a": ((3, 5000), "float32"), "b": ((700,), "float16"), "c": ((9000,), "float32")}
RULES = [
    Krum(2),
    MultiKrum(2, 5),
    Median(),
    NormClipping(90.0).then(MultiKrum(2)),
    NormClipping(90.0).then(Median()),
]


def update(i: int, shift: float = 0.0, name: str | None = None) -> fc.Update:
    rng = np.random.default_rng(i)
    tensors = {
        tensor: round_from_float64(rng.standard_normal(shape) + shift, dtype)
        for tensor, (shape, dtype) in SHAPES.items()
    }
    return fc.Update.from_tensors(tensors, client_id=name or f"client-{i:02d}", num_examples=i + 1)


CLIENTS = [update(i) for i in range(23)]


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(growing_gram, "BATCH", 3)


def stored(folder: Path, rule, updates, **options) -> fc.Accumulator:
    made = fc.Accumulator(rule, folder, **options)
    for one in updates:
        made.add(one)
    return made


@pytest.mark.parametrize("reference", [None, update(99)], ids=["from zero", "from a reference"])
@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_the_result_is_that_of_aggregate_in_any_order_of_arrival(tmp_path, rule, reference):
    expected = fc.aggregate(CLIENTS, rule, "parameters", reference=reference)
    for k, order in enumerate((CLIENTS, CLIENTS[::-1])):
        found = stored(tmp_path / str(k), rule, order, reference=reference).result()
        assert found.update.digest() == expected.update.digest()
        assert found.coefficients == expected.coefficients
        for what in ("selected", "not_counted", "n", "rule", "divisor"):
            assert found.report.get(what) == expected.report.get(what)


def test_coefficients_of_an_iteration_are_equal_within_their_bound(tmp_path):
    expected = fc.aggregate(CLIENTS, GeometricMedian(), "parameters").coefficients
    found = stored(tmp_path / "kept", GeometricMedian(), CLIENTS).result().coefficients
    np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-5)


def spaced(step: float, d: int = 6) -> list[fc.Update]:
    """Four clients on a line: each point between the two in the middle is a geometric median."""
    along = np.random.default_rng(0).normal(size=d)
    return [
        fc.Update.from_tensors({"a.weight": np.float32((i + 1) * step * along)}, client_id=f"c{i}") for i in range(4)
    ]


def paired(d: int = 6) -> list[fc.Update]:
    """Two clients at one place and two at another."""
    places = np.random.default_rng(1).normal(size=(2, d)).astype(np.float32)
    return [fc.Update.from_tensors({"a.weight": places[i // 2]}, client_id=f"c{i}") for i in range(4)]


@pytest.mark.parametrize(("cohort", "counted"), [(spaced(1.0), "c1"), (spaced(0.3), "c1"), (paired(), "c0")])
def test_a_tied_geometric_median_is_the_lowest_client_in_every_order_of_arrival(tmp_path, cohort, counted):
    """Whose distances the Gram rounds how depends on who came first."""
    expected = fc.aggregate(cohort, GeometricMedian(), "parameters")
    assert expected.report["counted"] == [counted]
    for k, order in enumerate(permutations(cohort)):
        found = stored(tmp_path / str(k), GeometricMedian(), order).result()
        assert found.coefficients == expected.coefficients
        assert found.update.digest() == expected.update.digest()


def test_the_gram_grows_as_rows_arrive_and_is_not_made_again(tmp_path, monkeypatch):
    """At the end there is only the last batch left, and no pass over all pairs."""
    made = stored(tmp_path / "kept", Krum(2), CLIENTS)
    assert (
        len(CLIENTS) - max(growing_gram.BATCH, len(CLIENTS) // growing_gram.SHARE)
        <= made._kept._grown.clients
        <= len(CLIENTS)
    )
    monkeypatch.setattr(
        FileExecutor, "gram", lambda self, origin: self.known if self.known else pytest.fail("made again")
    )
    expected = fc.aggregate(CLIENTS, Krum(2), "parameters").report["selected"]
    assert made.result().report["selected"] == expected
    assert made._kept._grown.clients == len(CLIENTS)


def test_the_grown_gram_is_the_gram(tmp_path):
    made = stored(tmp_path / "kept", Krum(2), CLIENTS)
    made.result()
    order = list(range(len(CLIENTS)))
    found = made._kept._grown.gram(order)
    rows = np.stack([np.concatenate([np.float64(t).ravel() for t in u.tensors.values()]) for u in CLIENTS])
    centred = rows - rows[0]
    np.testing.assert_allclose(found.matrix, centred @ centred.T, atol=1e-4 * np.abs(centred @ centred.T).max())
    assert found.offset == pytest.approx(np.linalg.norm(rows[0]), rel=1e-12)
    assert (found.matrix == found.matrix.T).all()


def test_a_first_client_far_away_is_not_kept_as_the_centre(tmp_path):
    """It would make every pair doubtful: the Gram is made again about a better row."""
    far = update(7, shift=1e4, name="attacker")
    cohort = [far, *CLIENTS]
    made = stored(tmp_path / "kept", Krum(2), cohort)
    found = made.result()
    expected = fc.aggregate(cohort, Krum(2), "parameters")
    assert made._kept._grown.gram(list(range(len(cohort)))) is None
    assert found.report["selected"] == expected.report["selected"]
    assert found.report["redone_pairs"] == expected.report["redone_pairs"]


def test_adding_goes_on_after_a_result(tmp_path):
    made = stored(tmp_path / "kept", Krum(2), CLIENTS[:9])
    early = made.result()
    for one in CLIENTS[9:]:
        made.add(one)
    assert early.update.digest() == fc.aggregate(CLIENTS[:9], Krum(2), "parameters").update.digest()
    assert made.result().update.digest() == fc.aggregate(CLIENTS, Krum(2), "parameters").update.digest()


def test_a_killed_server_goes_on_with_what_was_added(tmp_path):
    stored(tmp_path / "kept", Krum(2), CLIENTS[:10])
    left = tmp_path / "kept" / ".half.0123456789abcdef.part"
    left.write_bytes(b"what a crash leaves")
    again = fc.Accumulator(Krum(2), tmp_path / "kept")
    assert not left.exists()
    assert again.client_ids == tuple(u.client_id for u in CLIENTS[:10])
    for one in CLIENTS[10:]:
        again.add(one)
    assert again.result().update.digest() == fc.aggregate(CLIENTS, Krum(2), "parameters").update.digest()


def test_updates_in_files_are_added_too(tmp_path):
    paths = []
    for one in CLIENTS[:6]:
        paths.append(tmp_path / f"{one.client_id}.safetensors")
        paths[-1].write_bytes(one.to_bytes())
    found = stored(tmp_path / "kept", Krum(1), [fc.Update.open(path) for path in paths]).result()
    assert found.update.digest() == fc.aggregate(CLIENTS[:6], Krum(1), "parameters").update.digest()


def test_weights_that_are_given_are_kept_too(tmp_path):
    """And forgotten with the file that they belong to."""
    rule = GeometricMedian(weighted=True)
    weights = {one.client_id: 0.3 + i for i, one in enumerate(CLIENTS[:6])}
    made = fc.Accumulator(rule, tmp_path / "kept")
    for one in CLIENTS[:6]:
        made.add(one, weights[one.client_id])
    expected = fc.aggregate(CLIENTS[:6], rule, "parameters", weights=weights).coefficients
    made.close()
    with fc.Accumulator(rule, tmp_path / "kept") as after:
        for one in (made, after):
            found = one.result().coefficients
            np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-5)
    for path in (tmp_path / "kept").glob("*.safetensors"):
        path.unlink()
    found = stored(tmp_path / "kept", rule, CLIENTS[:6]).result().coefficients
    expected = fc.aggregate(CLIENTS[:6], rule, "parameters").coefficients
    np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-5)


def test_a_weight_that_a_crash_left_without_its_update_weighs_nobody(tmp_path):
    rule = GeometricMedian(weighted=True)
    path = stored(tmp_path / "once", rule, CLIENTS[:1])._updates["client-00"].file.path
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / Path(path).with_suffix(".weight").name).write_text((1000.0).hex())
    stored(tmp_path / "kept", rule, CLIENTS[:6])
    found = fc.Accumulator(rule, tmp_path / "kept").result().coefficients
    expected = fc.aggregate(CLIENTS[:6], rule, "parameters").coefficients
    np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-5)


def test_a_weight_that_cannot_be_read_is_named(tmp_path):
    with fc.Accumulator(GeometricMedian(weighted=True), tmp_path / "kept") as made:
        made.add(CLIENTS[0], 0.5)
    path = next((tmp_path / "kept").glob("*.weight"))
    path.write_text("half")
    with pytest.raises(FormatError, match=r"\.weight: holds no weight; remove it"):
        fc.Accumulator(GeometricMedian(), tmp_path / "kept")


def test_a_client_for_whom_there_is_no_memory_is_refused_before_it_is_written(tmp_path):
    rows = 9
    least = budget_for(CLIENTS[0].layout, CLIENTS[:rows], "1GB", Krum(2).matrices, 2).least
    made = stored(tmp_path / "kept", Krum(1), CLIENTS[:rows], memory=least, threads=2)
    with pytest.raises(BudgetError, match=r"expected at least .* for 10 clients"):
        made.add(CLIENTS[rows])
    assert len(list((tmp_path / "kept").glob("*.safetensors"))) == rows
    assert made.result().report["n"] == rows


def nan(one: fc.Update) -> fc.Update:
    tensors = {name: np.array(values) for name, values in one.tensors.items()}
    tensors["c"][5] = np.nan
    return fc.Update.from_tensors(tensors, client_id="bad")


def test_what_does_not_fit_is_refused_and_leaves_nothing(tmp_path):
    made = stored(tmp_path / "kept", Krum(1), CLIENTS[:5])
    files = set(os.listdir(tmp_path / "kept"))
    with pytest.raises(NonFiniteError, match="client 'bad': tensor 'c' holds NaN or Inf at element 5"):
        made.add(nan(CLIENTS[7]))
    with pytest.raises(LayoutError, match="client 'client-03': sent two updates"):
        made.add(CLIENTS[3])
    with pytest.raises(LayoutError, match=r"client 'odd': tensor 'b' is missing .*like client 'client-00'"):
        made.add(fc.Update.from_tensors({"a": CLIENTS[0].tensors["a"]}, client_id="odd"))
    with pytest.raises(LayoutError, match="expected Update"):
        made.add("client")  # type: ignore[arg-type]
    assert set(os.listdir(tmp_path / "kept")) == files
    expected = fc.aggregate(CLIENTS[:5], Krum(1), "parameters").update.digest()
    assert made.result().update.digest() == expected


def test_files_that_change_or_go_are_named(tmp_path):
    made = stored(tmp_path / "kept", Median(), CLIENTS[:5])
    one = next(iter(made._updates.values()))
    os.truncate(one.file.path, one.file.size - 100)
    with pytest.raises(FormatError, match=r"client 'client-00': .*it changed"):
        made.result()
    os.unlink(one.file.path)
    with pytest.raises(MissingError, match="client 'client-00': "):
        made.result()


def test_a_cut_file_that_the_result_did_not_need_is_an_error_too(tmp_path):
    made = stored(tmp_path / "kept", Krum(1), CLIENTS[:5])
    selected = made.result().report["selected"]
    one = next(update for client, update in made._updates.items() if client not in selected)
    os.truncate(one.file.path, one.file.size - 100)
    with pytest.raises(FormatError, match=f"client '{one.client_id}': .*it changed"):
        made.result()


@pytest.mark.parametrize("text", ["0x1p99999", "much", ""])
def test_a_weight_that_is_none_is_named(tmp_path, text):
    stored(tmp_path / "kept", Krum(1), CLIENTS[:5])
    path = next((tmp_path / "kept").glob("*.safetensors")).with_suffix(".weight")
    path.write_text(text)
    with pytest.raises(FormatError, match="holds no weight; remove it"):
        fc.Accumulator(Krum(1), tmp_path / "kept")


def test_bad_arguments(tmp_path):
    with pytest.raises(ShapeError, match="accumulator: got no update"):
        fc.Accumulator(Krum(1), tmp_path / "kept").result()
    with pytest.raises(RuleError, match="expected an instance of a rule"):
        fc.Accumulator(Krum, tmp_path)  # type: ignore[arg-type]
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="file: is a file, expected a directory"):
        fc.Accumulator(Krum(1), tmp_path / "file")
    with pytest.raises(BudgetError, match="memory: got 'much'"):
        fc.Accumulator(Krum(1), tmp_path, memory="much")
    with pytest.raises(RuleError, match="the largest f"):
        stored(tmp_path / "few", Krum(5), CLIENTS[:4]).result()
    with pytest.raises(BudgetError, match=r"memory: got 1 MB, expected at least .* for"):
        stored(tmp_path / "small", Krum(1), CLIENTS[:9], memory="1MB").result()


def test_a_rotten_file_costs_a_pass_a_batch_and_not_a_client(tmp_path, monkeypatch):
    made = stored(tmp_path / "kept", Krum(2), CLIENTS[:2])
    next((tmp_path / "kept").glob("*.safetensors")).unlink()
    grow, tries = growing_gram.GrowingGram.grow, []
    monkeypatch.setattr(
        growing_gram.GrowingGram, "grow", lambda self, rows: (tries.append(len(rows)), grow(self, rows))
    )
    for one in CLIENTS[2:14]:
        made.add(one)
    assert tries == [3, 6, 9, 12]
    with pytest.raises(MissingError):
        made.result()
