"""Calls that come in the middle of another: by other threads, by the same one, and in a child that was forked then."""

from __future__ import annotations

import gc
import os
import pickle
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from interrupting import in_a_child

import fedcore as fc
from fedcore import lock as locks
from fedcore.errors import PrivacyError, StorageError
from fedcore.lock import Lock
from fedcore.rules import Mean, Median

ONE, TWO = (fc.Update.from_tensors({"w": np.ones(20, np.float32)}, client_id=name) for name in "ab")
FORKED = "another thread was in a call on this object when this process was forked"


@contextmanager
def in_a_call(made: Any) -> Iterator[None]:
    """Another thread is in the middle of a call on it."""
    inside, go = threading.Event(), threading.Event()

    def call() -> None:
        with made._lock.alone("add"):
            inside.set()
            go.wait(60)

    thread = threading.Thread(target=call)
    thread.start()
    inside.wait(60)
    try:
        yield
    finally:
        go.set()
        thread.join()


def accumulator(_) -> fc.Accumulator:
    made = fc.Accumulator(Mean())
    made.add(ONE)
    return made


def stored(folder) -> fc.Accumulator:
    made = fc.Accumulator(Median(), folder)
    made.add(ONE)
    return made


def exact_sum(_) -> fc.ops.ExactSum:
    made = fc.ops.ExactSum(20)
    made.add(np.ones(20, np.float32))
    return made


ALL = pytest.mark.parametrize("make", [accumulator, stored, exact_sum])


@ALL
def test_a_child_that_was_forked_in_the_middle_of_a_call_says_so(tmp_path, make):
    made = make(tmp_path)
    with in_a_call(made):
        said = in_a_child(made.result)
    assert said.startswith(f"StorageError: result: {FORKED}"), said
    assert "\n" not in said
    made.result()


@ALL
def test_a_child_that_was_forked_between_calls_tells_the_result(tmp_path, make):
    made = make(tmp_path)
    assert in_a_child(lambda: type(made.result()).__name__) == type(made.result()).__name__


def test_a_child_that_was_forked_from_within_a_call_goes_on_with_it():
    lock = Lock()
    with lock.alone("add"):
        read, write = os.pipe()
        child = os.fork()
    if child == 0:
        signal.alarm(20)
        with lock.alone("result"):
            os.write(write, b"done")
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        assert pipe.read() == b"done"
    os.waitpid(child, 0)


@pytest.mark.parametrize("call", ["add", "result", "close", "copying"])
def test_a_signal_handler_that_calls_what_it_came_upon_is_refused(tmp_path, call):
    def run() -> str:
        made, said = fc.Accumulator(Mean(), progress=lambda *_: signal.raise_signal(signal.SIGUSR1)), []
        calls = {"add": lambda: made.add(TWO), "result": made.result, "close": made.close, "copying": made.__getstate__}

        def handler(*_: Any) -> None:
            try:
                calls[call]()
            except StorageError as error:
                said.append(str(error))

        signal.signal(signal.SIGUSR1, handler)
        path = tmp_path / "a.safetensors"
        path.write_bytes(ONE.to_bytes())
        made.add(fc.Update.open(path))
        made.add(TWO)
        return f"{made.client_ids} {said[0]}"

    expected = f"('a', 'b') {call}: called from within another call on the same object, as by a signal handler; "
    assert in_a_child(run).startswith(expected)


def test_a_lock_is_of_its_error_and_may_be_shared():
    lock = Lock(PrivacyError, "`save`")
    with lock.alone("mask"):
        with lock.shared("to_bytes"):
            pass
        with pytest.raises(PrivacyError, match=r"^close: called from within `save`$"):
            lock.alone("close")
    with in_a_call(type("Held", (), {"_lock": lock})):
        for call in (lock.alone, lock.shared):
            assert in_a_child(lambda now=call: now("to_bytes")).startswith(f"PrivacyError: to_bytes: {FORKED}")


def test_locks_of_objects_that_are_gone_are_forgotten():
    gc.collect()
    before, lock = len(locks._locks), Lock()
    assert len(locks._locks) == before + 1
    del lock
    gc.collect()
    assert len(locks._locks) == before


def test_a_copied_lock_says_the_same():
    lock = pickle.loads(pickle.dumps(Lock(PrivacyError, "`save`")))
    with lock.alone("mask"), pytest.raises(PrivacyError) as caught:
        lock.alone("close")
    assert str(caught.value) == "close: called from within `save`"
