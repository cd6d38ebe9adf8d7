"""Interruptions, as by Ctrl+C or a timeout: an update is taken whole or not at all, a result leaves nothing behind."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from interrupting import Late, interrupted_after, interrupted_at

import fedcore as fc
from fedcore.errors import StorageError
from fedcore.rules import Krum, Mean, NormClipping
from fedcore.rules import budget as budgets
from fedcore.rules.budget import GRAIN

#: what changes the sums, and what says that it has
FILES = ("accumulator", "expansion.py", "lock.py", "ops/exact_sum.py", "native/exact_sum.py", "reference/exact_sum.py")


def update(i: int) -> fc.Update:
    rng = np.random.default_rng(i)
    tensors = {"a": rng.standard_normal(3 * GRAIN + 5), "b": rng.standard_normal(GRAIN)}
    kinds = {"a": np.float32, "b": np.float16}
    return fc.Update.from_tensors({name: x.astype(kinds[name]) for name, x in tensors.items()}, client_id=f"k{i}")


CLIENTS, REFERENCE = [update(i) for i in range(3)], update(9)


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    """Tiles of one grain, of rows in files."""
    monkeypatch.setattr(budgets, "READ", 4 * GRAIN)
    monkeypatch.setattr(budgets, "TILE", 4 * GRAIN)


def made(rule, clients, **options) -> fc.Accumulator:
    found = fc.Accumulator(rule, reference=None if isinstance(rule, Mean) else REFERENCE, threads=1, **options)
    for one in clients:
        found.add(one)
    return found


def opened(folder: Path, one: fc.Update) -> fc.Update:
    path = folder / f"{one.client_id}.safetensors"
    path.write_bytes(one.to_bytes())
    return fc.Update.open(path)


#: of the places of a call over files, which are many, every seventh
STEPS = {False: 1, True: 7}


@pytest.mark.parametrize(
    ("rule", "before", "in_file"),
    [(Mean(), 0, False), (Mean(), 0, True), (Mean(), 1, False), (NormClipping(90.0), 1, True)],
)
def test_an_add_that_is_interrupted_anywhere_has_added_all_or_nothing(tmp_path, rule, before, in_file):
    others, last = CLIENTS[:before], opened(tmp_path, CLIENTS[1]) if in_file else CLIENTS[1]
    digests = {
        tuple(u.client_id for u in given): made(rule, given).result().update.digest()
        for given in (CLIENTS[:1], CLIENTS[1:2], CLIENTS[:2], CLIENTS[1:], CLIENTS)
    }
    ends = set()
    for point in itertools.count(0, STEPS[in_file]):
        found = made(rule, others)
        late = interrupted_at(point, lambda now=found: now.add(last), FILES)
        ends.add(found.client_ids)
        if found.client_ids:
            assert found.result().update.digest() == digests[found.client_ids], point
        if last.client_id not in found.client_ids:
            found.add(last)
        found.add(CLIENTS[2])
        assert found.result().update.digest() == digests[found.client_ids], point
        if not late:
            break
    assert point > 50
    assert len(ends) == 2


@pytest.mark.parametrize("in_file", [False, True])
def test_a_result_that_is_interrupted_anywhere_leaves_nothing_behind(tmp_path, in_file):
    rule = NormClipping(90.0)
    expected = [made(rule, given).result().update.digest() for given in (CLIENTS[:2], CLIENTS)]
    point = opened(tmp_path, REFERENCE) if in_file else REFERENCE
    for place in itertools.count(0, STEPS[in_file]):
        found = fc.Accumulator(rule, reference=point, threads=1)
        for one in CLIENTS[:2]:
            found.add(one)
        late = interrupted_at(place, found.result, FILES)
        assert found.result().update.digest() == expected[0], place
        found.add(CLIENTS[2])
        assert found.result().update.digest() == expected[1], place
        if not late:
            break
    assert place > 50


@pytest.mark.parametrize("asked", ["add", "result"])
def test_a_timer_that_goes_off_at_any_time(asked):
    columns = 400_000
    point = fc.Update.from_tensors({"w": np.full(columns, 3, np.float32)}, client_id="r")
    clients = [fc.Update.from_tensors({"w": np.full(columns, 3 + i, np.float32)}, client_id=f"k{i}") for i in range(4)]
    rule, count = NormClipping(1e9), 0
    for k in range(40):
        found = fc.Accumulator(rule, reference=point)
        found.add(clients[2])
        call = found.result if asked == "result" else lambda now=found: now.add(clients[0])
        count += interrupted_after(0.0003 * (k + 1), call)
        values = {("k2",): 5, ("k0", "k2"): 4}
        assert set(found.result().update.tensors["w"]) == {values[found.client_ids]}, k
    assert count > 3


@pytest.mark.parametrize("backend", ["c", "reference"])
def test_an_exact_sum_knows_which_rows_are_in_it(backend):
    row = np.arange(1, 2 * GRAIN + 1, dtype=np.float32)
    ends = set()
    for point in itertools.count():
        total = fc.ops.ExactSum(2 * GRAIN, backend=backend, threads=1)
        total.add(row, 2.0**-40)
        total.add(row[:GRAIN], start=GRAIN)
        assert total.added == 2
        late = interrupted_at(point, lambda now=total: now.add(row, 3.0), FILES)
        ends.add(total.added)
        expected = row * (2.0**-40 + 3.0 * (total.added - 2))
        expected[GRAIN:] += row[:GRAIN]
        assert (total.result() == expected).all(), point
        if not late:
            break
    assert ends == {2, 3}


def test_rows_that_are_not_added_are_not_counted():
    total = fc.ops.ExactSum(3)
    total.add(np.ones(3, np.float32), 0.0)
    with pytest.raises(ValueError, match="holds nan at column 1"):
        total.add(np.array([1, np.nan, 1], np.float32))
    assert total.added == 0


def test_an_add_that_is_interrupted_while_it_is_taken_back_is_not_told(tmp_path, monkeypatch):
    found, add, calls = made(Mean(), CLIENTS[:1]), fc.ops.ExactSum.add, itertools.count()

    def stopped(*arguments):
        if next(calls) in (2, 3):  # the third tile, and the first on the way out
            raise Late
        add(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(fc.ops.ExactSum, "add", stopped)
        with pytest.raises(Late):
            found.add(opened(tmp_path, CLIENTS[1]))
    for again in (found.result, lambda: found.add(CLIENTS[2])):
        with pytest.raises(StorageError, match=r"^client 'k1': it was interrupted while .*: start a new Accumulator$"):
            again()


def test_whoever_is_told_of_progress_may_stop_an_add(tmp_path):
    told = []

    def stop(work, done, total):
        told.append(done)
        if len(told) > 1:
            raise Late

    found = made(Mean(), CLIENTS[:1], progress=stop)
    before = found.result().update.digest()
    with pytest.raises(Late):
        found.add(opened(tmp_path, CLIENTS[1]))
    assert told == [0, 1]
    assert found.result().update.digest() == before


def test_an_interrupted_add_to_a_directory_leaves_a_file_where_it_is_taken(tmp_path):
    ends = set()
    for point in itertools.count():
        folder = tmp_path / str(point)
        with made(Krum(f=0), CLIENTS[:1], directory=folder) as found:
            late = interrupted_at(point, lambda now=found: now.add(CLIENTS[1], 3.0), ("accumulator",))
            there = found.client_ids
        ends.add(there)
        with made(Krum(f=0), [], directory=folder) as again:
            assert again.client_ids == there, point
        if not late:
            break
    assert ends == {("k0",), ("k0", "k1")}
