"""Embedding: the GIL is released, forks and threads are safe, nothing is left running beside a caller's OpenMP."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from inputs import make_rows, same_bits

import fedcore as fc

pytest.importorskip("fedcore.native", reason="the C kernels are not built")

from fedcore.native.read import read
from fedcore.ops.rows import as_rows


def big_rows(n: int, d: int) -> list[np.ndarray]:
    return list(np.random.default_rng(0).standard_normal((n, d), dtype=np.float32))


@pytest.fixture(scope="module")
def twelve_rows() -> list[np.ndarray]:
    return big_rows(12, 2_000_000)


def thread_count() -> int:
    return len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else threading.active_count()


def _child(queue) -> None:
    rows = make_rows(4, 100_000, "float32")
    queue.put((fc.ops.weighted_sum(rows, np.ones(4), threads=4).tobytes(), fc.ops.gram(rows, threads=4).tobytes()))


def test_a_forked_worker_does_not_hang():
    """After the parent has run parallel kernels (and torch's OpenMP), a forked child runs them too."""
    rows = make_rows(4, 100_000, "float32")
    expected = (fc.ops.weighted_sum(rows, np.ones(4), threads=4).tobytes(), fc.ops.gram(rows, threads=4).tobytes())
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    children = [context.Process(target=_child, args=(queue,)) for _ in range(3)]
    for child in children:
        child.start()
    try:
        assert [queue.get(timeout=60) for _ in children] == [expected] * 3
    finally:
        for child in children:
            child.join(timeout=10)
            if child.is_alive():
                child.kill()


@pytest.mark.parametrize(
    "op",
    [
        "weighted_sum",
        "squared_norms",
        "gram",
        "squared_distances",
        "median",
        "trimmed_mean",
        "mean_around_median",
        "read",
    ],
)
def test_the_gil_is_released(op, twelve_rows):
    """A Python thread goes on counting while a kernel runs in another."""
    done, turns = threading.Event(), 0
    table = as_rows(twelve_rows).table
    work = {
        "weighted_sum": lambda: fc.ops.weighted_sum(table, np.ones(12), threads=1),
        "squared_norms": lambda: fc.ops.squared_norms(table, threads=1),
        "gram": lambda: fc.ops.gram(table, threads=1),
        "squared_distances": lambda: fc.ops.squared_distances(table, [[0, 1]], threads=1),
        "median": lambda: fc.ops.median(table, threads=1),
        "trimmed_mean": lambda: fc.ops.trimmed_mean(table, 2, threads=1),
        "mean_around_median": lambda: fc.ops.mean_around_median(table, 2, threads=1),
        "read": lambda: read(table, 4, 1),
    }[op]
    work()

    def kernels() -> None:
        try:
            for _ in range(10):
                work()
        finally:
            done.set()

    worker = threading.Thread(target=kernels)
    started = time.perf_counter()
    worker.start()
    while not done.is_set():
        turns += 1
        time.sleep(0.0002)
    worker.join()
    # with the GIL held, this thread would get a turn between calls only, about 10 of them
    assert turns > 25, f"{turns} turns in {time.perf_counter() - started:.3f} s"


def test_calls_from_several_threads_at_once():
    rows, weights = make_rows(9, 300_000, "float32"), np.arange(1, 10)
    expected = fc.ops.weighted_sum(rows, weights, 45), fc.ops.gram(rows, rows[0]), fc.ops.squared_norms(rows)
    wrong: list[str] = []

    def work() -> None:
        for _ in range(5):
            got = (
                fc.ops.weighted_sum(rows, weights, 45, threads=2),
                fc.ops.gram(rows, rows[0], threads=2),
                fc.ops.squared_norms(rows),
            )
            wrong.extend("differs" for a, b in zip(got, expected, strict=True) if not same_bits(a, b))

    workers = [threading.Thread(target=work) for _ in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_no_thread_outlives_a_call():
    """Nothing is pooled, so nothing spins beside the caller's own runtime: torch's threads stay as they were."""
    torch = pytest.importorskip("torch", reason="compares with torch's OpenMP threads")
    torch.ones(1 << 22).add(1).sum()
    before, rows = thread_count(), make_rows(8, 400_000, "float32")
    for _ in range(5):
        fc.ops.weighted_sum(rows, np.ones(8), threads=4)
        fc.ops.gram(rows, threads=4)
    assert thread_count() == before


def test_no_oversubscription_beside_torch():
    """While a kernel runs on every core after torch's OpenMP has run, no more threads are runnable than cores."""
    torch = pytest.importorskip("torch", reason="compares with torch's OpenMP threads")
    if not os.path.isdir("/proc/self/task"):
        pytest.skip("counts runnable threads in /proc, which this system lacks")
    cores = len(os.sched_getaffinity(0))
    rows, matrix, previous = big_rows(40, 1_000_000), torch.ones(600, 600), torch.get_num_threads()
    torch.set_num_threads(cores)
    try:
        (matrix @ matrix).sum()

        def kernels() -> None:
            for _ in range(8):
                fc.ops.gram(rows, threads=cores)

        worker = threading.Thread(target=kernels)
        worker.start()
        time.sleep(0.02)  # OpenMP's threads spin for a moment after their last region
        counts = []
        while worker.is_alive():
            counts.append(sum(state == "R" for state in thread_states()))
            time.sleep(0.002)
        worker.join()
    finally:
        torch.set_num_threads(previous)
    assert len(counts) > 5
    assert sorted(counts)[len(counts) // 2] <= cores + 1  # the sampling thread is itself runnable


def thread_states() -> list[str]:
    states = []
    for task in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{task}/stat") as file:
                states.append(file.read().rpartition(")")[2].split()[0])
        except FileNotFoundError:  # the thread ended between the listing and the read
            continue
    return states


def test_threads_argument_and_environment(monkeypatch):
    from fedcore.errors import RangeError
    from fedcore.ops.rows import available_cores, thread_count

    monkeypatch.delenv("FEDCORE_NUM_THREADS", raising=False)
    assert thread_count(None) == available_cores()
    monkeypatch.setenv("FEDCORE_NUM_THREADS", "3")
    assert (thread_count(None), thread_count(5)) == (3, 5)
    monkeypatch.setenv("FEDCORE_NUM_THREADS", "many")
    with pytest.raises(RangeError, match="FEDCORE_NUM_THREADS: got 'many'"):
        fc.ops.squared_norms(make_rows(1, 10, "float32"))


PEAK = """
import resource
import numpy as np
import fedcore as fc

rows = [np.full(4_000_000, i, np.float32) for i in range(10)]
fc.ops.weighted_sum([r[:1000] for r in rows], np.ones(10))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
fc.ops.weighted_sum(rows, np.ones(10), 10, threads=2)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_peak_memory_of_a_weighted_sum_is_the_output_and_tiles():
    """No row is stacked: 160 MB of rows add 16 MB of output and the threads' tiles, nothing near another 160 MB."""
    grown = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True, timeout=120).stdout
    assert int(grown) * 1024 < 16e6 + 8e6
