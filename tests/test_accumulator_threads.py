"""Updates that arrive on several threads: the bits that one thread gives, and none of them lost."""

from __future__ import annotations

import copy
import pickle
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from inputs import same_bits

import fedcore as fc
from fedcore.accumulator import growing_gram
from fedcore.errors import LayoutError
from fedcore.rules import GeometricMedian, Krum, Mean, Median, NormClipping

THREADS, COLUMNS = 4, 40_000


@pytest.fixture(autouse=True)
def turns_change_often(monkeypatch):
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    monkeypatch.setattr(growing_gram, "BATCH", 3)
    yield
    sys.setswitchinterval(before)


def row(i: int, columns: int = COLUMNS) -> np.ndarray:
    rng = np.random.default_rng(i)
    return (rng.standard_normal(columns) * np.exp2(rng.integers(-40, 40, columns))).astype(np.float32)


CLIENTS = [
    fc.Update.from_tensors(
        {"w": row(i), "b": np.full(70, i / 7, np.float16)}, client_id=f"k{i:02d}", num_examples=i + 1
    )
    for i in range(24)
]


def on_threads(add: Callable[[Any], None], items: Sequence[Any]) -> list[Exception]:
    """Every fourth item from each of four threads that start together; what they raised."""
    start, raised = threading.Barrier(THREADS), []

    def go(part: Sequence[Any]) -> None:
        start.wait()
        for item in part:
            try:
                add(item)
            except Exception as error:
                raised.append(error)

    threads = [threading.Thread(target=go, args=(items[k::THREADS],)) for k in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised


@pytest.mark.parametrize("threads", [1, 2])
def test_a_sum_from_four_threads_has_the_bits_of_one(threads):
    rows = [row(i) for i in range(48)]
    one = fc.ops.ExactSum(COLUMNS, threads=threads)
    for each in rows:
        one.add(each)
    for _ in range(4):
        many = fc.ops.ExactSum(COLUMNS, threads=threads)
        assert not on_threads(many.add, rows)
        assert same_bits(many.result(), one.result())


def test_parts_of_a_sum_from_four_threads_have_the_bits_of_one():
    parts = [(row(i, 2 * 8192), 8192 * (i % 3)) for i in range(160)]
    one, many = (fc.ops.ExactSum(4 * 8192, threads=1) for _ in range(2))
    for each, start in parts:
        one.add(each, 1.0, start)
    assert not on_threads(lambda item: many.add(item[0], 1.0, item[1]), parts)
    assert same_bits(many.result(), one.result())


@pytest.mark.parametrize("rule", [Mean(), NormClipping(1e9), Krum(2), Median(), GeometricMedian()], ids=repr)
def test_updates_from_four_threads_give_what_one_thread_gives(rule, tmp_path: Path):
    def made(name: str) -> fc.Accumulator:
        return fc.Accumulator(rule, None if rule.streams else tmp_path / name)

    one = made("one")
    for update in CLIENTS:
        one.add(update)
    expected = one.result()
    for trial in range(3):
        many = made(f"many-{trial}")
        assert not on_threads(many.add, CLIENTS)
        found = many.result()
        assert many.client_ids == one.client_ids
        if isinstance(rule, GeometricMedian):  # an iteration, on a Gram that is centred at who came first
            assert found.coefficients == pytest.approx(expected.coefficients, rel=1e-5)
            continue
        assert found.coefficients == expected.coefficients
        assert found.update.digest() == expected.update.digest()
        assert found.report["not_counted"] == expected.report["not_counted"]


def test_results_asked_for_while_others_add_are_of_whole_updates():
    made = fc.Accumulator(Mean(), threads=1)
    made.add(CLIENTS[0])
    found = []

    def add_or_ask(update: fc.Update | None) -> None:
        if update is None:
            found.append(made.result())
        else:
            made.add(update)

    assert not on_threads(add_or_ask, [None if k % THREADS == 0 else CLIENTS[k] for k in range(24)])
    assert len(found) == 6
    for result in found:
        alone = fc.Accumulator(Mean())
        for update in CLIENTS:
            if update.client_id in result.coefficients:
                alone.add(update)
        assert result.update.digest() == alone.result().update.digest()


def test_a_client_that_comes_twice_at_once_is_taken_once():
    made = fc.Accumulator(Mean())
    raised = on_threads(made.add, [CLIENTS[k // THREADS] for k in range(4 * THREADS)])
    assert len(raised) == 3 * THREADS
    assert all(isinstance(error, LayoutError) for error in raised)
    alone = fc.Accumulator(Mean())
    for update in CLIENTS[:THREADS]:
        alone.add(update)
    assert made.result().update.digest() == alone.result().update.digest()


def test_accumulators_do_not_wait_for_each_other():
    waiting, go = threading.Event(), threading.Event()

    def stop_here(*_: Any) -> None:
        waiting.set()
        assert go.wait(30)

    slow, quick = fc.Accumulator(Mean()), fc.Accumulator(Mean())
    slow._kept.add = lambda who, update, weight: (stop_here(), update)[1]  # type: ignore[method-assign,func-returns-value]
    thread = threading.Thread(target=slow.add, args=(CLIENTS[0],))
    thread.start()
    assert waiting.wait(30)
    quick.add(CLIENTS[0])
    assert quick.client_ids == ("k00",)
    assert slow.client_ids == ()  # looking at it waits for nobody either
    go.set()
    thread.join()


@pytest.mark.parametrize("again", [copy.deepcopy, lambda held: pickle.loads(pickle.dumps(held))])
def test_copies_have_locks_of_their_own(again):
    held = fc.ops.ExactSum(5)
    held.add(np.ones(5, np.float32))
    other = again(held)
    with held._lock.alone("add"):
        other.add(np.ones(5, np.float32))
    assert (held.result() == 1).all()
    assert (other.result() == 2).all()
    accumulator = again(fc.Accumulator(Mean()))
    accumulator.add(CLIENTS[0])
    assert accumulator.client_ids == ("k00",)
