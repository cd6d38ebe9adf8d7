"""Locks between processes: over NFS too, held by one at a time, and given back by who closes, forgets or ends."""

from __future__ import annotations

import copy
import errno
import fcntl
import gc
import os
import pickle
import re
import signal
from pathlib import Path

import pytest

import fedcore as fc
from fedcore.errors import StorageError
from fedcore.federation.folder import RunFolder
from fedcore.privacy.chain import Chain
from fedcore.privacy.secagg.roster_file import RosterFile, new_key
from fedcore.rules import Krum
from fedcore.updates.file_lock import FileLock, locked_beside


@pytest.fixture
def nfs(monkeypatch):
    """flock(2): NFS takes an exclusive lock on what is open for writing alone. Gives the paths that were locked so."""
    real, locked = fcntl.flock, []

    def flock(file, operation):
        if operation & fcntl.LOCK_EX and fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        real(file, operation)
        if operation & fcntl.LOCK_EX:
            locked.append(os.readlink(f"/proc/self/fd/{file}"))

    monkeypatch.setattr(fcntl, "flock", flock)
    return locked


@pytest.fixture
def no_locks(monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)


def run_folder(path: Path) -> None:
    (path / "run").mkdir()
    (path / "run" / "config.toml").touch()
    with RunFolder(path / "run").hold():
        pass


def budget(path: Path) -> None:
    fc.privacy.Budget(
        path / "people",
        5,
        1e-5,
        sealing_key=bytes(32),
        noise_multiplier=2.0,
        population=100,
        sampling="none",
    )


def roster(path: Path) -> None:
    RosterFile(path / "roster.json").enrol("ann", new_key(path / "ann"))


def cache(path: Path) -> None:
    with locked_beside(path / "base"):
        pass


def chain(path: Path) -> None:
    with Chain(path / "chain", bytes(32)).locked():
        pass


def accumulator(path: Path) -> None:
    fc.Accumulator(Krum(1), path / "kept").close()


WAYS = [
    (run_folder, r"run/config\.toml"),
    (budget, r"people\.lock"),
    (roster, r"roster\.json\.lock"),
    (cache, r"base\.lock"),
    (chain, r"chain\.lock"),
    (accumulator, r"kept/\.lock"),
]


@pytest.mark.parametrize(("way", "name"), WAYS)
def test_over_nfs_all_can_be_locked(tmp_path, nfs, way, name):
    way(tmp_path)
    assert nfs
    assert all(re.search(f"/{name}$", path) for path in nfs), nfs


@pytest.mark.parametrize(("way", "name"), WAYS)
def test_a_file_system_without_locks_is_one_line_that_names_the_file(tmp_path, no_locks, way, name):
    with pytest.raises(StorageError, match=rf"{name}: cannot be locked \(No locks available\); choose a place"):
        way(tmp_path)


def test_one_holds_it_at_a_time(tmp_path):
    first = FileLock(tmp_path / "lock", mode=0o600, busy="taken")
    with pytest.raises(StorageError, match=r"^taken$"):
        FileLock(tmp_path / "lock", busy="taken")
    first.close()
    first.close()
    second = FileLock(tmp_path / "lock", busy="taken")
    assert (first.held, second.held) == (False, True)
    del second
    gc.collect()
    assert FileLock(tmp_path / "lock", busy="taken").held


def test_a_file_that_has_to_be_there_is_not_made(tmp_path):
    with pytest.raises(StorageError, match=r"lock: cannot be written \(No such file or directory\)"):
        FileLock(tmp_path / "lock", busy="taken")
    assert not (tmp_path / "lock").exists()


def test_a_lock_that_is_refused_leaves_no_descriptor(tmp_path, no_locks):
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        with pytest.raises(StorageError):
            FileLock(tmp_path / "lock", mode=0o600)
    assert len(os.listdir("/proc/self/fd")) == len(before)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda lock: pickle.loads(pickle.dumps(lock))])
def test_a_copy_does_not_hold_it_and_closes_nothing(tmp_path, again):
    lock = FileLock(tmp_path / "lock", mode=0o600, busy="taken")
    other = again(lock)
    other.close()
    assert not other.held
    del other
    with pytest.raises(StorageError, match="taken"):
        FileLock(tmp_path / "lock", busy="taken")


def test_a_forked_child_does_not_hold_it(tmp_path):
    """Else a worker that outlives a killed server would keep its successor out."""
    lock = FileLock(tmp_path / "lock", mode=0o600, busy="taken")
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, b"held" if lock.held else b"not held")
        signal.pause()
        os._exit(0)
    try:
        assert os.read(read, 10) == b"not held"
        with pytest.raises(StorageError, match="taken"):
            FileLock(tmp_path / "lock", busy="taken")
        lock.close()
        assert FileLock(tmp_path / "lock", busy="taken").held
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(read)
        os.close(write)
