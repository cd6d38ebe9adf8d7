"""A budget that charges before it gives noise, whatever is killed, torn or shared."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from private_budgets import A, B, C, budget

import fedcore as fc
from fedcore.errors import PrivacyBudgetError

pytest.importorskip("dp_accounting", reason="budgets need dp-accounting, of the extra `train`")


def test_each_set_of_inputs_has_its_own_key_and_charge(tmp_path):
    first = budget(tmp_path)
    a, b = first.reserve(A), first.reserve(B)
    assert a.key != b.key
    assert len(first.charges) == 2
    assert (a.number, a.inputs_digest, a.noise_multiplier, a.dimension) == (2, A, 2.0, 10)
    assert a.epsilon == pytest.approx(fc.privacy.epsilon(noise_multiplier=2.0, delta=1e-5))
    assert b.epsilon == first.spent == pytest.approx(fc.privacy.epsilon(noise_multiplier=2.0, rounds=2, delta=1e-5))
    again = budget(tmp_path).reserve(A)
    assert (again.key, again.number) == (a.key, a.number)
    assert len(first.charges) == 2


def test_a_charge_that_would_pass_the_budget_is_refused_and_not_charged(tmp_path):
    z = fc.privacy.noise_multiplier(epsilon=8, rounds=3, delta=1e-5)
    run = budget(tmp_path, noise_multiplier=z)
    for inputs in (A, B, C):
        run.reserve(inputs)
    with pytest.raises(PrivacyBudgetError, match=r"would bring epsilon to 9.* of 8 after 3 charges"):
        run.reserve(hashlib.sha256(b"d").hexdigest())
    assert len(run.charges) == 3
    assert run.reserve(B).number == 3  # what is charged stays available


def test_a_run_takes_at_most_its_share_whatever_others_took_before(tmp_path):
    z = fc.privacy.noise_multiplier(epsilon=4, rounds=2, delta=1e-5)
    budget(tmp_path, noise_multiplier=3.0, run="other").reserve(C)
    run = budget(tmp_path, noise_multiplier=z, run="this", spend=4.0)
    run.reserve(A)
    assert run.reserve(B).epsilon > 4  # the population's
    with pytest.raises(PrivacyBudgetError, match=r"would bring this run's own epsilon to 5\.\d+ of 4 after 2 charges"):
        run.check()
    assert budget(tmp_path, noise_multiplier=z, run="next", spend=4.0).reserve("0" * 64).epsilon < 8


def test_where_delta_is_taken_whole_no_more_noise_is_asked_for(tmp_path):
    """Of δ = 1e-5 each charge of 2**80 samples takes 2**-18 whatever the noise."""
    run = budget(tmp_path, dimension=2**80, noise_multiplier=1e4)
    for inputs in "12":
        run.reserve(hashlib.sha256(inputs.encode()).hexdigest())
    with pytest.raises(PrivacyBudgetError, match=r"people\.budget: delta: got 1e-05, .* take 1\.14e-05 .* 2 charges"):
        run.reserve(A)
    with pytest.raises(PrivacyBudgetError, match=r"a budget of a larger delta"):
        run.check()
    assert len(run.charges) == 2
    # here ε is infinite too, for want of noise
    (tmp_path / "other").mkdir()
    little = budget(tmp_path / "other", dimension=2**70, noise_multiplier=0.02)
    with pytest.raises(PrivacyBudgetError, match=r"would bring epsilon to inf of 8 after 0 charges; .* more noise"):
        little.check()


class Crash(BaseException):
    """The process ends here."""


CALLS = ("write", "fsync", "replace", "rename", "chmod", "mkdir")


def crash_at(monkeypatch, point: int) -> None:
    """Let the `point`-th call that changes the disk be the last: it and all later ones raise.

    Writes of the point itself are torn: half of the bytes reach the file.
    """
    count = iter(range(1, 10_000))

    def crashing(name, real):
        def call(*arguments, **named):
            number = next(count)
            if number > point:
                raise Crash
            if number == point:
                if name == "write":
                    real(arguments[0], arguments[1][: len(arguments[1]) // 2])
                raise Crash
            return real(*arguments, **named)

        return call

    for name in CALLS:
        monkeypatch.setattr(os, name, crashing(name, getattr(os, name)))


def test_a_crash_at_any_point_neither_loses_a_charge_nor_reuses_a_noise(tmp_path, monkeypatch):
    """Killed at each write, sync and rename of a reservation: the next process goes on, with its own noise for each."""
    published = set()
    for point in range(1, 100):
        folder = tmp_path / str(point)
        earlier = budget(folder).reserve(C)
        run, got = budget(folder), None
        with monkeypatch.context() as patch:
            crash_at(patch, point)
            with contextlib.suppress(Crash):
                got = run.reserve(A)
        if got is not None:
            break
        after = budget(folder)
        other, same = after.reserve(B), after.reserve(A)
        assert len({earlier.key, other.key, same.key}) == 3
        assert budget(folder).reserve(A).key == same.key
        assert budget(folder).reserve(C).key == earlier.key
        assert len(after.charges) == 3  # the crashed one was nobody's noise, or is what A has now
        assert not published & {earlier.key, other.key, same.key}
        published |= {earlier.key, other.key, same.key}
    assert point > 8, "the crash never came"


@pytest.mark.parametrize("where", ["key", "charge", "draw", "publish"])
def test_a_killed_process_is_continued_with_the_same_noise_for_the_same_inputs(tmp_path, where):
    """SIGKILL between key, charge, draw and publish, in a process of its own."""
    code = f"""
import os, pathlib, signal, hashlib
import fedcore as fc
from fedcore.privacy import chain
folder = pathlib.Path({str(tmp_path)!r})
if {where!r} == "key":  # the key is on disk, its record is not
    append = chain.Chain.write
    chain.Chain.write = lambda self, line: (
        os.kill(os.getpid(), signal.SIGKILL) if line.head.number == 2 else append(self, line))
if {where!r} == "charge":  # the record is on disk, its head and its caller do not know of it yet
    real = chain.Chain._write_head
    def die(self):
        if self._last.number == 2: os.kill(os.getpid(), signal.SIGKILL)
        real(self)
    chain.Chain._write_head = die
noise = fc.privacy.Budget(folder / "people.budget", 8.0, 1e-5, sealing_key=bytes(range(32)), noise_multiplier=2.0,
                          dimension=10).reserve({A!r})
if {where!r} == "draw":
    os.kill(os.getpid(), signal.SIGKILL)
(folder / "drawn").write_text(hashlib.sha256(noise.key).hexdigest())
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    run = budget(tmp_path)
    assert len(run.charges) == (where != "key")
    other, same = run.reserve(B), run.reserve(A)
    assert other.key != same.key
    assert len(run.charges) == 2
    assert len(list((tmp_path / "people.budget.keys").glob("*-aside"))) == (where == "key")
    if where == "publish":
        assert (tmp_path / "drawn").read_text() == hashlib.sha256(same.key).hexdigest()


def test_runs_of_one_population_share_the_file(tmp_path):
    """Threads and processes with noise of their own: every charge counts once, none is lost."""
    runs = [budget(tmp_path, epsilon=50.0, noise_multiplier=3.0 + k) for k in range(4)]
    inputs = [hashlib.sha256(b"%d" % k).hexdigest() for k in range(12)]
    keys = {}

    def work(k):
        for one in inputs[k::4]:
            keys[one] = runs[k].reserve(one).key

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(keys.values())) == 12
    assert (
        sorted(charge.noise_multiplier for charge in runs[0].charges) == [3.0] * 3 + [4.0] * 3 + [5.0] * 3 + [6.0] * 3
    )


def test_a_second_process_waits_for_the_first(tmp_path):
    run = budget(tmp_path)
    code = f"""
import time, pathlib
from fedcore.privacy.chain import Chain
from fedcore.privacy.seal import derived
with Chain(pathlib.Path({str(run.path)!r}), derived(bytes(range(32)), "chain of records")).locked():
    print("locked", flush=True)
    time.sleep(0.5)
    print(time.monotonic(), flush=True)
"""
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "locked\n"
    run.reserve(A)
    entered = time.monotonic()
    left = holder.stdout.read()
    assert holder.wait() == 0
    assert entered >= float(left)
