"""A budget on a disk that is full, or that refuses in other ways: the run fails, the population's budget does not."""

from __future__ import annotations

import errno
import os
import stat

import pytest
from private_budgets import KEY, A, B, C, budget

import fedcore as fc
from fedcore.errors import FormatError, PrivacyError, StorageError
from fedcore.privacy.factorization import Factor

pytest.importorskip("dp_accounting", reason="budgets need dp-accounting, of the extra `train`")

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full(monkeypatch, share, *, cut=True):
    """Let a record's write stop after a share of its bytes, at its sync where that is all, and perhaps stay there."""
    real, unsynced = {name: getattr(os, name) for name in ("write", "fsync", "ftruncate")}, []

    def write(descriptor, data):
        done = real["write"](descriptor, data[: int(share * len(data))]) if share else 0
        unsynced.append(descriptor)
        if share < 1:
            raise FULL
        return done

    def fsync(descriptor):
        if unsynced:
            unsynced.clear()
            raise FULL
        real["fsync"](descriptor)

    def ftruncate(descriptor, size):
        unsynced.clear()
        if not cut:
            raise FULL
        real["ftruncate"](descriptor, size)

    for fake in (write, fsync, ftruncate):
        monkeypatch.setattr(os, fake.__name__, fake)


@pytest.mark.parametrize("share", [0, 0.5, 1], ids=["before a byte", "in a record", "at its sync"])
def test_a_full_disk_leaves_the_budget_as_it_was(tmp_path, monkeypatch, share):
    run, folder = budget(tmp_path), tmp_path / "people.budget.keys"
    run.reserve(C)
    before = run.path.read_bytes()
    with monkeypatch.context() as patch:
        full(patch, share)
        for _ in range(4):
            with pytest.raises(StorageError, match=r"people\.budget: cannot be written \(No space"):
                budget(tmp_path).reserve(A)
    assert run.path.read_bytes() == before
    assert [path.name for path in folder.iterdir()] == ["00000002.sealed"]
    first = budget(tmp_path).reserve(A)
    assert (first.number, run.reserve(B).number, run.reserve(A).key) == (3, 4, first.key)
    assert len(run.charges) == 3


@pytest.mark.parametrize(("share", "asides"), [(0.5, 1), (1, 0)], ids=["in a record", "at its sync"])
def test_a_record_that_cannot_be_taken_back_keeps_its_key(tmp_path, monkeypatch, share, asides):
    """What of it is on disk is not known: half a record is nobody's, a whole one is charged, with its own key."""
    run, folder = budget(tmp_path), tmp_path / "people.budget.keys"
    with monkeypatch.context() as patch:
        full(patch, share, cut=False)
        with pytest.raises(StorageError):
            run.reserve(A)
    sealed = (folder / "00000002.sealed").read_bytes()
    noise = run.reserve(A)
    assert (noise.number, len(run.charges), run.reserve(A).key) == (2, 1, noise.key)
    assert len(list(folder.glob("*-aside"))) == asides
    assert ((folder / "00000002.sealed").read_bytes() == sealed) == (asides == 0)


def test_a_key_that_cannot_be_made_durable_is_not_left(tmp_path, monkeypatch):
    run, real = budget(tmp_path), os.fsync
    run.reserve(C)
    folder = tmp_path / "people.budget.keys"

    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode) and (folder / "00000003.sealed").exists():
            raise FULL
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        for _ in range(4):
            with pytest.raises(StorageError):
                run.reserve(A)
    assert run.reserve(A).number == 3
    assert sorted(path.name for path in folder.iterdir()) == ["00000002.sealed", "00000003.sealed"]


def test_a_key_of_a_crash_stays_while_the_disk_is_full(tmp_path, monkeypatch):
    """It may be the trace of a charge that was put back: never deleted, and counted once."""
    run, folder = budget(tmp_path), tmp_path / "people.budget.keys"
    kept = {name: (tmp_path / name).read_bytes() for name in ("people.budget", "people.budget.head")}
    run.reserve(A)
    sealed = (folder / "00000002.sealed").read_bytes()
    for name, data in kept.items():
        (tmp_path / name).write_bytes(data)
    with monkeypatch.context() as patch:
        full(patch, 0)
        for _ in range(4):
            with pytest.raises(StorageError):
                run.reserve(B)
    assert [path.read_bytes() for path in folder.iterdir()] == [sealed]
    assert run.reserve(B).number == 2


@pytest.mark.parametrize("name", ["people.budget", "people.budget.head", "people.budget.lock"])
def test_a_folder_in_a_files_place_is_named(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(StorageError, match=rf"{name}: cannot be (read|written) \(Is a directory\)"):
        budget(tmp_path)


def test_a_sealed_key_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    run = budget(tmp_path)
    run.reserve(A)

    real = type(tmp_path).read_bytes

    def read_bytes(path):
        if path.suffix == ".sealed":
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path)

    monkeypatch.setattr(type(tmp_path), "read_bytes", read_bytes)
    with pytest.raises(StorageError, match=r"00000002\.sealed: cannot be read \(Permission denied\)"):
        run.reserve(A)


def test_files_that_are_no_keys_are_let_be(tmp_path):
    run, folder = budget(tmp_path), tmp_path / "people.budget.keys"
    run.reserve(A)
    for name in ("x0.1-aside", "x0.2-aside", "x0.3-aside", "²", "²-aside", "x.sealed"):
        (folder / name).touch()
    assert run.reserve(B).number == 3
    for number in (1, 2, 3):
        (folder / f"00000004.{number}-aside").touch()
    with pytest.raises(FormatError, match="3 keys of charge 4 were put aside"):
        run.reserve(C)


@pytest.mark.parametrize("path", ["", "/", ".", "a\0b", b"b", 3, None])
def test_a_path_that_names_no_file_is_refused(path):
    for make in (
        lambda: fc.privacy.Budget(path, 8.0, 1e-5, sealing_key=KEY, noise_multiplier=2.0),
        lambda: fc.privacy.Rounds(path, Factor(4, 2, 2, 2), 5, sealing_key=KEY),
    ):
        with pytest.raises(PrivacyError, match=r"path: got .*, expected the path of a file"):
            make()


def test_a_full_disk_hides_no_rollback(tmp_path, monkeypatch):
    """The key that was put aside tells of the charge that was put back, where the one in its place was taken back."""
    run, states = budget(tmp_path), []
    head = run.path.with_name(run.path.name + ".head")
    for inputs in (A, B, C):
        states.append((run.path.read_bytes(), head.read_bytes()))
        run.reserve(inputs)
    run.path.write_bytes(states[2][0])
    head.write_bytes(states[2][1])
    with monkeypatch.context() as patch:
        full(patch, 0)
        with pytest.raises(StorageError, match="No space"):
            budget(tmp_path).reserve("d" * 64)
    run.path.write_bytes(states[1][0])
    head.write_bytes(states[1][1])
    with pytest.raises(FormatError, match="records where the keys"):
        budget(tmp_path)
