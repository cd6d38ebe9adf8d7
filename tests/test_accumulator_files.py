"""Updates in files, added to sums in tiles: the bits of updates in memory, and files that change on the way."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import fedcore as fc
from fedcore.dtypes import round_from_float64
from fedcore.errors import BudgetError, FormatError, NonFiniteError, StorageError
from fedcore.rules import Mean, NormClipping
from fedcore.rules import budget as budgets
from fedcore.rules.budget import GRAIN
from fedcore.updates.file import File

SHAPES = {"a": ((3, GRAIN), "float32"), "b": ((GRAIN + 1,), "bfloat16"), "c": ((2 * GRAIN - 5,), "float32")}
RULES = [Mean(), NormClipping(90.0)]


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    """Tiles of one grain for rows of fp32: five of the tensors a and c."""
    monkeypatch.setattr(budgets, "READ", 4 * GRAIN)
    monkeypatch.setattr(budgets, "TILE", 4 * GRAIN)


def update(i: int, **changed) -> fc.Update:
    rng = np.random.default_rng(i)
    tensors = {name: round_from_float64(rng.standard_normal(shape), dtype) for name, (shape, dtype) in SHAPES.items()}
    for name, (element, value) in changed.items():
        tensors[name].ravel()[element] = value
    return fc.Update.from_tensors(tensors, client_id=f"client-{i}", num_examples=i + 1)


def opened(folder: Path, one: fc.Update) -> fc.Update:
    path = folder / f"{one.client_id}.safetensors"
    path.write_bytes(one.to_bytes())
    return fc.Update.open(path)


def result(updates, rule, **options) -> fc.Aggregate:
    made = fc.Accumulator(rule, **options)
    for one in updates:
        made.add(one)
    return made.result()


@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize("backend", ["c", "reference"])
def test_files_give_the_bits_of_updates_in_memory(tmp_path, rule, backend):
    updates = [update(0), update(1).quantize("int8"), update(2).quantize("nf4"), update(3).quantize("float16")]
    reference = update(9)
    expected = result(updates, rule, reference=reference, backend=backend)
    files = [opened(tmp_path, one) for one in updates]
    # one of them in memory, and a reference in a file
    mixed = [*files[:2], updates[2], files[3]]
    for given, point in ((files, reference), (mixed[::-1], opened(tmp_path, reference))):
        found = result(given, rule, reference=point, backend=backend, threads=2)
        assert found.update.digest() == expected.update.digest()
        assert found.coefficients == expected.coefficients


def test_no_more_of_a_file_is_read_at_a_time_than_a_tile(tmp_path, monkeypatch):
    sizes, read = [], File.read_into

    def watched(self, descriptor, view, offset):
        sizes.append(len(view))
        read(self, descriptor, view, offset)

    one = opened(tmp_path, update(0))
    monkeypatch.setattr(File, "read_into", watched)
    result([one], Mean())
    assert max(sizes) == 4 * GRAIN
    assert sum(sizes) == one.layout.nbytes.sum()


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_nan_in_the_last_tile_is_named_and_leaves_nothing_behind(tmp_path, rule):
    made = fc.Accumulator(rule)
    made.add(update(0))
    before = made.result().update.digest()
    with pytest.raises(NonFiniteError, match="client 'client-1': tensor 'c' holds NaN or Inf at element 16000"):
        made.add(opened(tmp_path, update(1, c=(16000, np.nan))))
    assert made.result().update.digest() == before
    assert made.client_ids == ("client-0",)


def failing_after(monkeypatch, reads: int, error: Exception, times: int) -> None:
    """Reads of files fail after the first few, so many times."""
    read, count = File.read_into, iter(range(1 << 30))

    def fails(self, descriptor, view, offset):
        if reads <= next(count) < reads + times:
            raise error
        read(self, descriptor, view, offset)

    monkeypatch.setattr(File, "read_into", fails)


def test_a_read_that_fails_once_leaves_nothing_behind(tmp_path, monkeypatch):
    made = fc.Accumulator(Mean(), threads=1)
    made.add(update(0))
    before, one = made.result().update.digest(), opened(tmp_path, update(1))
    with monkeypatch.context() as patch:
        failing_after(patch, 4, StorageError("the disk is gone"), 1)
        with pytest.raises(StorageError, match="client 'client-1': the disk is gone"):
            made.add(one)
    assert made.result().update.digest() == before
    made.add(one)
    assert made.client_ids == ("client-0", "client-1")


def test_sums_that_hold_a_part_of_a_file_that_is_gone_are_not_told(tmp_path, monkeypatch):
    made = fc.Accumulator(Mean(), threads=1)
    made.add(update(0))
    with monkeypatch.context() as patch:
        failing_after(patch, 4, FormatError("it was written to"), 1 << 20)
        with pytest.raises(StorageError, match=r"client 'client-1': it was written to; some of it has been added"):
            made.add(opened(tmp_path, update(1)))
    for again in (made.result, lambda: made.add(update(2))):
        with pytest.raises(StorageError, match=r"client 'client-1': .*cannot be taken away: start a new Accumulator"):
            again()


def test_a_file_that_was_cut_before_it_is_added_leaves_nothing_behind(tmp_path):
    made = fc.Accumulator(Mean())
    made.add(update(0))
    before, one = made.result().update.digest(), opened(tmp_path, update(1))
    os.truncate(one.file.path, one.file.size - 4)
    with pytest.raises(FormatError, match=r"client 'client-1': .*it changed"):
        made.add(one)
    assert made.result().update.digest() == before


def test_a_budget_that_is_too_small_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(BudgetError, match=r"memory: got 1 MB, expected at least .* for 1 clients"):
        fc.Accumulator(Mean(), memory="1MB").add(opened(tmp_path, update(0)))
