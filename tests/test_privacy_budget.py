"""A budget that charges before it gives noise, whatever is killed, torn, rolled back or shared."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time

import pytest

import fedcore as fc
from fedcore.errors import FormatError, PrivacyBudgetError, PrivacyError
from fedcore.privacy import chain

pytest.importorskip("dp_accounting", reason="budgets need dp-accounting, of the extra `train`")

KEY = bytes(range(32))
A, B, C = (hashlib.sha256(name).hexdigest() for name in (b"a", b"b", b"c"))


def budget(folder, epsilon=8.0, **changed):
    settings = {"sealing_key": KEY, "noise_multiplier": 2.0, "dimension": 10} | changed
    return fc.privacy.Budget(folder / "people.budget", epsilon, 1e-5, **settings)


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


@pytest.mark.parametrize("where", ["charge", "draw", "publish"])
def test_a_killed_process_is_continued_with_the_same_noise_for_the_same_inputs(tmp_path, where):
    """SIGKILL between charge, draw and publish, in a process of its own."""
    code = f"""
import os, pathlib, signal, hashlib
import fedcore as fc
from fedcore.privacy import chain
folder = pathlib.Path({str(tmp_path)!r})
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
    assert len(run.charges) == 1
    other, same = run.reserve(B), run.reserve(A)
    assert other.key != same.key
    assert len(run.charges) == 2
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


def edited(path, number, change):
    lines = path.read_bytes().splitlines(keepends=True)
    record = json.loads(lines[number - 1])
    change(record)
    lines[number - 1] = json.dumps(record, sort_keys=True, separators=(",", ":")).encode() + b"\n"
    path.write_bytes(b"".join(lines))


def cut_with_its_head(path):
    """By somebody who can write both files, and saw none of an earlier head."""
    lines = path.read_bytes().splitlines(keepends=True)[:-1]
    path.write_bytes(b"".join(lines))
    mac, head = json.loads(lines[-1])["mac"], path.with_name(path.name + ".head")
    head.write_text(json.dumps(json.loads(head.read_text()) | {"number": len(lines), "mac": mac}))


TAMPERINGS = {
    "the last charge cut off, its head to match": cut_with_its_head,
    "a charge made cheaper": lambda p: edited(p, 2, lambda r: r.update(noise_multiplier=(9.0).hex())),
    "a budget made larger": lambda p: edited(p, 1, lambda r: r.update(epsilon=(99.0).hex())),
    "the last charge cut off": lambda p: p.write_bytes(b"".join(p.read_bytes().splitlines(keepends=True)[:-1])),
    "the last charge cut in two": lambda p: p.write_bytes(p.read_bytes()[:-20]),
    "a charge in the middle cut out": lambda p: p.write_bytes(
        b"".join(p.read_bytes().splitlines(keepends=True)[i] for i in (0, 2))
    ),
    "charges in another order": lambda p: p.write_bytes(
        b"".join(p.read_bytes().splitlines(keepends=True)[i] for i in (0, 2, 1))
    ),
    "deleted, its head left": lambda p: p.unlink(),
    "its head deleted": lambda p: p.with_name(p.name + ".head").unlink(),
    "its head damaged": lambda p: p.with_name(p.name + ".head").write_text("{}"),
    "no records at all": lambda p: p.write_bytes(b"hello\n" * 3),
}


@pytest.mark.parametrize("what", TAMPERINGS)
def test_a_file_that_was_changed_or_rolled_back_is_refused(tmp_path, what):
    run = budget(tmp_path)
    run.reserve(A)
    run.reserve(B)
    TAMPERINGS[what](run.path)
    for again in (lambda: run.reserve(C), lambda: budget(tmp_path), lambda: run.spent):
        with pytest.raises(FormatError, match=r"people\.budget: .*nothing is released"):
            again()


@pytest.mark.parametrize("rolled_back", ["people.budget", "people.budget.head"])
def test_an_earlier_copy_of_the_file_or_its_head_alone_is_refused(tmp_path, rolled_back):
    run = budget(tmp_path)
    run.reserve(A)
    shutil.copy(tmp_path / rolled_back, tmp_path / "copy")
    run.reserve(B)
    run.reserve(C)
    shutil.copy(tmp_path / "copy", tmp_path / rolled_back)
    with pytest.raises(FormatError, match="records where"):
        run.reserve(C)


def test_an_earlier_copy_of_both_shows_against_a_head_kept_elsewhere(tmp_path):
    run = budget(tmp_path)
    run.reserve(A)
    shutil.copytree(tmp_path, tmp_path.parent / "copy")
    run.reserve(B)
    published = run.head
    run.require(published)
    run.reserve(C)
    run.require(published)
    shutil.rmtree(tmp_path)
    shutil.copytree(tmp_path.parent / "copy", tmp_path)
    assert len(run.charges) == 1  # the files alone do not tell
    with pytest.raises(PrivacyError, match="rolled back together"):
        run.require(published)
    run.reserve(C)
    with pytest.raises(PrivacyError, match="does not continue it"):
        run.require(published)


def test_keys_are_sealed_private_and_destroyed_for_good(tmp_path):
    run = budget(tmp_path)
    noise = run.reserve(A)
    folder = tmp_path / "people.budget.keys"
    (sealed,) = folder.iterdir()
    assert noise.key not in b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert noise.key.hex() not in repr(noise)
    assert [stat.S_IMODE(path.stat().st_mode) for path in (folder, sealed, run.path)] == [0o700, 0o600, 0o600]
    spent = run.spent
    assert run.destroy_keys() == 1
    assert list(folder.iterdir()) == []
    assert run.spent == spent
    with pytest.raises(PrivacyError, match=r"key of charge 2 was destroyed.*stays charged"):
        run.reserve(A)
    assert run.reserve(B).key != noise.key
    assert run.reserve(B).number == 4


def test_a_sealed_key_that_was_changed_swapped_or_lost_is_refused(tmp_path):
    run = budget(tmp_path)
    run.reserve(A)
    run.reserve(B)
    first, second = sorted((tmp_path / "people.budget.keys").iterdir())
    kept = first.read_bytes()
    for damage in (lambda: first.write_bytes(second.read_bytes()), lambda: first.write_bytes(kept[:-1]), first.unlink):
        damage()
        with pytest.raises(FormatError, match="sealed key of charge 2"):
            run.reserve(A)
    with pytest.raises(FormatError, match="another sealing key"):
        budget(tmp_path, sealing_key=bytes(32))


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"epsilon": 9.0}, "epsilon: got 9.0, and the budget at"),
        ({"neighbours": "replace_one"}, "neighbours: got 'replace_one', and the budget at"),
        ({"sampling": "none"}, "sampling: got 'none', and the budget at"),
        ({"unit": "example"}, "unit: got 'example', and the budget at"),
        ({"population": 500}, "population: got 500, and the budget at"),
        ({"population": 100_000}, "delta: got 1e-05 for a population of 100000"),
        ({"epsilon": 0}, "epsilon: got 0"),
        ({"noise_multiplier": -1.0}, "noise_multiplier: got -1.0"),
        ({"sealing_key": b"short"}, "sealing_key: got 5 bytes"),
    ],
)
def test_another_run_opens_the_budget_as_it_was_started(tmp_path, changed, named):
    budget(tmp_path)
    with pytest.raises(PrivacyError) as caught:
        budget(tmp_path, **changed)
    assert str(caught.value).startswith(named)


def test_inputs_are_named_by_a_digest_and_charged_at_one_multiplier(tmp_path):
    run = budget(tmp_path)
    for bad in ("", "a" * 63, A.upper(), 5):
        with pytest.raises(PrivacyError, match="inputs_digest: got"):
            run.reserve(bad)
    run.reserve(A)
    with pytest.raises(PrivacyError, match="inputs_digest: charge 2 has it at"):
        budget(tmp_path, noise_multiplier=3.0).reserve(A)


def test_a_budget_of_fixed_size_samples_is_accounted_as_such(tmp_path):
    run = budget(tmp_path, epsilon=50.0, sampling="fixed", neighbours="replace_one", sampling_rate=0.1)
    plan = {"noise_multiplier": 2.0, "sampling_rate": 0.1, "delta": 1e-5}
    known = fc.privacy.epsilon(**plan, sampling="fixed", neighbours="replace_one")
    assert run.reserve(A).epsilon == pytest.approx(known)
    assert chain.Head(*run.head).number == 2
