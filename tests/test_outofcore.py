"""Cohorts in files: the bits of memory under every budget, on every backend and in every format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from outofcore_files import narrowed, six_clients, update, written

import fedcore as fc
from fedcore.errors import LayoutError, NonFiniteError
from fedcore.rules import GeometricMedian, Krum, Mean, Median, MultiKrum, NormClipping, SignMajority, TrimmedMean
from fedcore.rules.budget import GRAIN
from fedcore.rules.files import FileExecutor
from fedcore.rules.rows import RowExecutor

RULES = [
    Mean(),
    Krum(1),
    MultiKrum(1, 3),
    NormClipping(200.0).then(MultiKrum(1)),
    GeometricMedian(),
    Median(),
    TrimmedMean(1),
    SignMajority(0.5),
    NormClipping(200.0).then(Median()),
]


@pytest.fixture(scope="module")
def six(tmp_path_factory) -> tuple[list[fc.Update], list[Path], fc.Update]:
    return six_clients(tmp_path_factory.mktemp("six"))


@pytest.fixture
def narrow(monkeypatch):
    return narrowed(monkeypatch)


@pytest.mark.parametrize("grains", [1, 2, 100])
@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_files_give_the_bits_of_memory_at_every_width_of_tiles(six, narrow, rule, grains):
    updates, paths, reference = six
    expected = fc.aggregate(updates, rule, "parameters", reference=reference)
    narrow(grains)
    found = fc.aggregate(paths, rule, "parameters", reference=reference, memory="1GB", threads=2)
    assert found.update.digest() == expected.update.digest()
    assert found.coefficients == expected.coefficients
    first, again = expected.report, found.report
    assert {**first, "seconds": 0} == {**again, "seconds": 0}


@pytest.mark.parametrize(
    ("rule", "format"),
    [(Mean(), "nf4"), (Krum(1), "int8"), (Median(), None), (NormClipping(9.0).then(SignMajority(0.5)), "nf4")],
)
def test_triton_takes_tiles_of_files(narrow, tmp_path, rule, format):
    """Interpreted, where it can read what lies in main memory."""
    if reason := fc.backends.unavailable("triton"):
        pytest.skip(f"Triton cannot run here: {reason}")
    shapes = {"a": ((GRAIN + 700,), "float32"), "b": ((9, 30), "float32"), "c": ((50,), "float16")}
    updates = [update(i, shapes) for i in range(5)]
    updates = updates if format is None else [one.quantize(format) for one in updates]
    paths = written(tmp_path / "sent", updates)
    expected = fc.aggregate(updates, rule, "parameters", backend="reference")
    narrow(1)
    found = fc.aggregate(paths, rule, "parameters", memory="1GB", backend="triton")
    assert found.update.digest() == expected.update.digest()
    assert found.coefficients == expected.coefficients


@pytest.mark.parametrize("backend", ["reference", "c"])
def test_statistics_have_the_bits_of_one_pass(six, narrow, backend):
    if backend == "c" and (reason := fc.backends.unavailable("c")):
        pytest.skip(f"the C kernels are not built here: {reason}")
    updates, paths, reference = six
    references, names = {"reference": reference}, [f"client-{i}" for i in range(6)]
    passes = {"backend": backend, "threads": 2}
    whole = RowExecutor.from_cohort(fc.Cohort(updates), references, names, **passes)
    narrow(1)
    opened = fc.Cohort(fc.Update.open(path) for path in paths)
    tiled = FileExecutor.from_files(opened, references, names, **passes)
    expected, found = whole.gram(), tiled.gram()
    assert (expected.matrix.tobytes(), expected.offset) == (found.matrix.tobytes(), found.offset)
    assert whole.squared_norms()[0].tobytes() == tiled.squared_norms()[0].tobytes()
    pairs = np.array([(0, 1), (5, 6), (3, 3)])
    mix = np.random.default_rng(0).random((7, 7))
    for mixed in (None, mix):
        assert whole.exact(pairs, mixed)[0].tobytes() == tiled.exact(pairs, mixed)[0].tobytes()


@pytest.mark.parametrize("rule", [Krum(1), Median(), NormClipping(200.0)], ids=repr)
def test_the_reference_backend_agrees(six, narrow, rule):
    updates, paths, reference = six
    expected = fc.aggregate(updates, rule, "parameters", reference=reference, backend="reference")
    narrow(1)
    found = fc.aggregate(paths, rule, "parameters", reference=reference, backend="reference")
    assert found.update.digest() == expected.update.digest()


def test_pairs_that_are_too_close_are_redone_from_files(narrow, tmp_path):
    """Clients that hold one block of values in columns of their own are all as far apart: the exact pass settles it."""
    block = np.random.default_rng(5).standard_normal(5003).astype(np.float32)
    clients = []
    for i in range(7):
        row = np.zeros((7, 5003), np.float32)
        row[i] = block
        clients.append(fc.Update.from_tensors({"x": row}, client_id=f"client-{i}"))
    paths = written(tmp_path / "ties", clients)
    narrow(1)
    for rule in (Krum(2), NormClipping(120.0).then(Krum(2))):
        expected = fc.aggregate(clients, rule, "parameters")
        found = fc.aggregate(paths, rule, "parameters")
        counts = [each.report.get("mixed_rows", each.report)["redone_pairs"] for each in (expected, found)]
        assert counts[0] == counts[1] > 0
        assert found.update.digest() == expected.update.digest()


def test_memory_mapped_and_mixed_cohorts(six, narrow):
    """A mapped update is read from its file; updates in memory and in files go together."""
    updates, paths, _ = six
    expected = fc.aggregate(updates, Krum(1), "parameters").update.digest()
    narrow(1)
    assert fc.aggregate([*updates[:3], *paths[3:]], Krum(1), "parameters").update.digest() == expected
    assert fc.aggregate(updates, Krum(1), "parameters", memory="1GB").update.digest() == expected


def test_a_directory_of_peft_is_opened_without_a_map(tmp_path):
    made = []
    for i in range(4):
        rng = np.random.default_rng(i)
        tensors = {
            "m.lora_A.weight": rng.standard_normal((2, 40)).astype(np.float32),
            "m.lora_B.weight": rng.standard_normal((30, 2)).astype(np.float32),
            "head.weight": rng.standard_normal((50, 60)).astype(np.float32),
        }
        made.append(fc.Update.from_tensors(tensors, client_id=f"c{i}", scaling={"m": 2.0}, num_examples=3))
        made[-1].to_peft(tmp_path / f"c{i}")
    paths = [tmp_path / f"c{i}" for i in range(4)]
    opened = fc.Update.open(paths[1])
    mapped = fc.Update.from_peft(paths[1])
    assert (opened.mapped, mapped.mapped, opened.buffer.size) == (False, True, 0)
    assert opened.digest() == mapped.digest() == made[1].digest()
    assert opened.to_bytes() == mapped.to_bytes()
    assert (opened.client_id, opened.num_examples, opened.scaling) == ("c1", 3, {"m": 2.0})
    for name, tensor in opened.tensors.items():
        np.testing.assert_array_equal(tensor, made[1].tensors[name])
    for space in ("delta", "parameters"):
        expected = fc.aggregate([fc.Update.from_peft(path) for path in paths], MultiKrum(0, 3), space)
        found = fc.aggregate(paths, MultiKrum(0, 3), space, memory="100MB")
        assert found.update.digest() == expected.update.digest()
    with pytest.raises(LayoutError, match="client 'c1': lies in a file that is not mapped"):
        fc.Cohort([opened]).tables()


@pytest.mark.parametrize("formats", [("int8",), ("nf4",), ("float16",), ("int8", "nf4", "bfloat16", None)])
@pytest.mark.parametrize("rule", [Mean(), Krum(1), Median()], ids=repr)
def test_quantised_files_are_decoded_tile_by_tile(six, narrow, tmp_path, formats, rule):
    """Tiles end inside blocks of 64 and under nested scales; a cohort may mix formats."""
    kinds = [formats[i % len(formats)] for i in range(6)]
    sent = [u if kind is None else u.quantize(kind) for u, kind in zip(six[0], kinds, strict=True)]
    paths = written(tmp_path / "sent", sent)
    opened = fc.Update.open(paths[1])
    assert opened.digest() == sent[1].digest()
    for name, tensor in opened.tensors.items():
        np.testing.assert_array_equal(tensor, sent[1].tensors[name])
    expected = fc.aggregate(sent, rule, "parameters", reference=six[2])
    narrow(1)
    found = fc.aggregate(paths, rule, "parameters", reference=six[2])
    assert found.update.digest() == expected.update.digest()
    assert found.coefficients == expected.coefficients


def test_one_client_no_columns_and_one_column(tmp_path):
    for shape in ((0,), (1,), (3, 0, 2)):
        one = update(3, {"x": (shape, "float32")})
        [path] = written(tmp_path / f"{len(shape)}-{shape[0]}", [one])
        for rule in (Mean(), Median()):
            assert fc.aggregate([path], rule, "parameters", memory="70MB").update.digest() == one.digest()


def test_nan_is_named_by_client_tensor_and_element_or_excluded(six, narrow, tmp_path):
    updates, _, reference = six
    tensors = {name: np.array(values) for name, values in updates[4].tensors.items()}
    tensors["d.weight"][GRAIN + 3] = np.nan
    bad = fc.Update.from_tensors(tensors, client_id="client-4", num_examples=5)
    paths = written(tmp_path / "bad", [*updates[:4], bad, updates[5]])
    narrow(1)
    for rule in (Mean(), Krum(1), Median(), NormClipping(200.0).then(Median()), NormClipping(9.0)):
        with pytest.raises(NonFiniteError, match=f"client 'client-4': tensor 'd.weight' .* at element {GRAIN + 3};"):
            fc.aggregate(paths, rule, "parameters", reference=reference)
        found = fc.aggregate(paths, rule, "parameters", reference=reference, on_nonfinite="exclude")
        rest = [*updates[:4], updates[5]]
        assert list(found.excluded) == ["client-4"]
        assert found.update.digest() == fc.aggregate(rest, rule, "parameters", reference=reference).update.digest()


def test_progress_counts_the_tiles_of_each_pass(six, narrow):
    _, paths, _ = six
    narrow(2)
    told: list[tuple[str, int, int]] = []
    fc.aggregate(paths, Krum(1), "parameters", progress=lambda *said: told.append(said))
    passes = {work: [done for name, done, _ in told if name == work] for work, _, _ in told}
    assert {work.partition(",")[0] for work in passes} - {"pairs"} == {"gram", "combination"}
    assert passes["gram, float32"] == [0, 1, 2, 3, 4, 5]
    for work, done in passes.items():
        assert done == list(range(len(done))), work
        assert {total for name, _, total in told if name == work} == {len(done) - 1}, work
