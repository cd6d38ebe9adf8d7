"""Counts that ops are given: whole numbers of any kind, never True or False, and named in one short line."""

from __future__ import annotations

import numpy as np
import pytest

import fedcore as fc
from fedcore.errors import FedcoreError
from fedcore.ops import rows
from fedcore.ops.rows import thread_count

ROWS = np.arange(10, dtype=np.float32).reshape(5, 2)
KEY, NONCE = bytes(32), bytes(12)
#: what is called with a count, and a count that it takes
CALLS = {
    "threads": (lambda n: thread_count(n), 2),
    "trimmed_mean: got f": (lambda n: fc.ops.trimmed_mean(ROWS, n), 2),
    "mean_around_median: got f": (lambda n: fc.ops.mean_around_median(ROWS, n), 2),
    "keystream: got size": (lambda n: fc.ops.keystream(n, KEY, NONCE, 0), 2),
    "keystream: got counter": (lambda n: fc.ops.keystream(4, KEY, NONCE, n), 2),
    "discrete_gaussian: got size": (lambda n: fc.ops.discrete_gaussian(n, 2.0, KEY), 2),
    "pack_bits: got bits": (lambda n: fc.ops.pack_bits(np.zeros(8, np.uint32), n), 2),
    "shamir_split: got shares": (lambda n: fc.ops.shamir_split(KEY, 1, n, KEY), 2),
    "ExactSum: got d": (lambda n: fc.ops.ExactSum(n).d, 2),
    "block": (lambda n: fc.ops.hadamard(np.zeros(8, np.float32), n), 2),
    "lora_truncate: got ranks": (lambda n: fc.ops.lora_truncate([np.ones((4, 2))], [np.ones((2, 5))], [1.0], n), 2),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_count_of_any_kind_is_one(name):
    torch = pytest.importorskip("torch")
    call, count = CALLS[name]
    expected = call(count)
    for value in (np.int8(count), np.uint64(count), np.array(count), torch.tensor(count)):
        found = call(value)
        assert type(found) is type(expected)
        np.testing.assert_equal(found, expected)


@pytest.mark.parametrize("name", CALLS)
def test_what_is_no_count_is_named_in_one_short_line(name):
    torch = pytest.importorskip("torch")
    for value in (True, np.True_, torch.tensor(True), 2.0, "2", -1, -(10**5000)):
        with pytest.raises(FedcoreError, match=rf"^{name}\W.*expected (a )?(whole|power)") as error:
            CALLS[name][0](value)
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 200


def test_threads_of_the_environment_are_read_as_text(monkeypatch):
    monkeypatch.setenv("FEDCORE_NUM_THREADS", "3")
    assert thread_count(None) == 3
    for said in ("0", "many", "True", "9" * 5000):
        monkeypatch.setenv("FEDCORE_NUM_THREADS", said)
        with pytest.raises(FedcoreError, match=r"^FEDCORE_NUM_THREADS: got .*, expected a whole number from 1 to"):
            thread_count(None)
    monkeypatch.setenv("FEDCORE_NUM_THREADS", "")
    assert thread_count(None) >= 1


def test_the_usual_threads_are_no_more_than_may_be_asked_for(monkeypatch):
    monkeypatch.delenv("FEDCORE_NUM_THREADS", raising=False)
    monkeypatch.setattr(rows, "available_cores", lambda: 1152)
    assert thread_count(None) == 1024
    with pytest.raises(FedcoreError, match=r"^threads: got 1152, expected a whole number from 1 to 1024"):
        thread_count(1152)
