"""Copies and pickles of sums: what there was at one moment, in memory of their own."""

from __future__ import annotations

import copy
import pickle
import threading

import numpy as np
import pytest

import fedcore as fc
from fedcore.expansion import CHUNK
from fedcore.rules import Krum, Mean, NormClipping

AGAIN = pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda held: pickle.loads(pickle.dumps(held))])


def update(i: int) -> fc.Update:
    rng = np.random.default_rng(i)
    tensors = {
        "m.lora_A.weight": rng.standard_normal((4, 30), np.float32),
        "m.lora_B.weight": rng.standard_normal((50, 4), np.float32),
        "head": rng.standard_normal(7).astype(np.float16),
    }
    return fc.Update.from_tensors(tensors, client_id=f"k{i}", num_examples=i + 1, scaling={"m": 2.0}, base="org/model")


CLIENTS = [update(i) for i in range(6)]


@AGAIN
@pytest.mark.parametrize("rule", [Mean(), NormClipping(3.0), Krum(f=0)], ids=repr)
def test_a_copy_goes_on_from_where_it_was_made(tmp_path, again, rule):
    def made(clients, name) -> fc.Accumulator:
        found = fc.Accumulator(rule, None if rule.streams else tmp_path / name, reference=update(9))
        for one in clients:
            found.add(one)
        return found

    first = made(CLIENTS[:4], "first")
    other = again(first)
    first.add(CLIENTS[4])
    assert other.client_ids == ("k0", "k1", "k2", "k3")
    expected = made(CLIENTS[:4], "until").result()
    assert other.result().update.digest() == expected.update.digest()
    assert other.result().coefficients == expected.coefficients
    if not rule.streams:
        with pytest.raises(fc.errors.StorageError, match="being closed, a copy"):
            other.add(CLIENTS[5])
        return
    other.add(CLIENTS[5])
    assert other.result().update.digest() == made([*CLIENTS[:4], CLIENTS[5]], "apart").result().update.digest()
    assert first.result().update.digest() == made(CLIENTS[:5], "alone").result().update.digest()
    with pytest.raises(fc.errors.LayoutError, match="k1"):
        other.add(CLIENTS[1])


def test_what_is_kept_of_many_clients_stays_small_in_a_pickle():
    tensors = {f"layer.{k}.{'x' * 50}": np.ones(1, np.float32) for k in range(200)}
    made, sizes = fc.Accumulator(Mean()), []
    for i in range(40):
        made.add(fc.Update.from_tensors(tensors, client_id=str(i)))
        sizes.append(len(pickle.dumps(made)))
    assert max(np.diff(sizes)) < 2000


@AGAIN
def test_copies_of_a_sum_are_whole_while_others_add(again):
    total, row, stop = fc.ops.ExactSum(1 << 20), np.ones(1 << 20, np.float32), threading.Event()

    def add() -> None:
        while not stop.is_set():
            total.add(row)

    thread = threading.Thread(target=add)
    thread.start()
    try:
        copies = [again(total) for _ in range(12)]
    finally:
        stop.set()
        thread.join()
    for one in copies:
        assert set(one.result()) == {one.added}


@AGAIN
def test_a_copied_sum_takes_and_writes_no_more_memory(again):
    total = fc.ops.ExactSum(4 * CHUNK + 5)
    for weight in (1.0, 2.0**-60):
        total.add(np.full(CHUNK, 3, np.float32), weight, start=CHUNK)
    other = again(total)
    assert other.nbytes == total.nbytes == 16 * CHUNK
    assert other.added == 2
    other.add(np.full(CHUNK, -3, np.float32), 1.0, start=CHUNK)
    assert (other.result()[CHUNK : 2 * CHUNK] == 3 * 2.0**-60).all()
    assert (total.result()[CHUNK : 2 * CHUNK] == 3).all()
    assert not other.result()[: CHUNK - 1].any()
