"""Files and folders written whole: synced before they get their names, and with their names when the call returns."""

from __future__ import annotations

import errno
import os
import shutil
import stat

import pytest

from fedcore.errors import ExistsError, StorageError
from fedcore.updates.atomic import (
    Unflushed,
    append,
    is_left,
    make_parents,
    new_directory,
    remove_left,
    write_atomically,
    write_new,
    write_together,
)


def filled(folder):
    """A folder with a file, and a folder in it that has one and an empty one beside."""
    (folder / "inner" / "empty").mkdir(parents=True)
    (folder / "file").write_bytes(b"outer")
    (folder / "inner" / "file").write_bytes(b"inner")


def directory(path):
    with new_directory(path) as beside:
        filled(beside)


def replaced(path):
    directory(path)
    with new_directory(path, replace=True) as beside:
        (beside / "other").write_bytes(b"new")


WAYS = {
    "write_atomically": lambda path: write_atomically(path, [b"one", b"two"]),
    "write_atomically over another": lambda path: (write_atomically(path, b"old"), write_atomically(path, b"new")),
    "write_new": lambda path: write_new(path, b"secret"),
    "append": lambda path: (make_parents(path), append(path, b"one"), append(path, b"two", keep=2)),
    "new_directory": directory,
    "new_directory in place of one": replaced,
    "write_together": lambda path: write_together({path: directory, path.with_name("other"): directory}),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("parents", [".", "one/two/three"], ids=["here", "new folders"])
def test_what_has_its_name_is_on_disk_and_so_is_the_name(tmp_path, disk, way, parents):
    (tmp_path / "before").mkdir()
    disk.settle()
    WAYS[way](tmp_path / "before" / parents / "name")
    assert disk.torn == []
    assert disk.lost == []
    assert (tmp_path / "before" / parents).is_dir()
    assert not list(tmp_path.rglob(".*.part"))


def test_the_disk_of_these_tests_tells_what_a_crash_takes(tmp_path, disk):
    (tmp_path / "file").write_bytes(b"old")
    disk.settle()
    (tmp_path / "file").write_bytes(b"new")
    assert disk.lost == ["file"]
    filled(tmp_path)
    os.rename(tmp_path / "inner", tmp_path / "named")
    assert disk.torn == ["inner", "inner/file"]
    assert disk.lost == [".", "file", "named", "named/file"]
    (tmp_path / "file").unlink()
    for folder in (tmp_path, tmp_path / "named"):
        descriptor = os.open(folder, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    assert disk.lost == ["named/file"]


def held_in(tmp_path):
    """Everything below a folder: contents of files, None for folders."""
    return {str(p.relative_to(tmp_path)): None if p.is_dir() else p.read_bytes() for p in tmp_path.rglob("*")}


@pytest.fixture
def names_are_not_flushed(tmp_path, monkeypatch):
    """The disk refuses to flush a folder in which `name` is, that is the new name of what is written whole."""
    real = os.fsync

    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode) and "name" in os.listdir(descriptor):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(descriptor)

    return lambda: monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.parametrize("way", ["write_atomically", "write_new", "new_directory", "write_together"])
def test_a_new_name_that_cannot_be_made_durable_is_taken_back(tmp_path, names_are_not_flushed, way):
    names_are_not_flushed()
    with pytest.raises(StorageError, match=r"name: cannot be written \(Input/output error\); nothing half") as caught:
        WAYS[way](tmp_path / "name")
    assert not isinstance(caught.value, Unflushed)
    assert held_in(tmp_path) == {}


def test_a_file_that_was_replaced_and_may_not_survive_a_power_failure_is_said_to_be_there(
    tmp_path, names_are_not_flushed
):
    write_atomically(tmp_path / "name", b"old")
    names_are_not_flushed()
    with pytest.raises(Unflushed, match=r"name: is written, but its folder cannot be flushed to disk \(Input/out"):
        write_atomically(tmp_path / "name", b"new")
    assert held_in(tmp_path) == {"name": b"new"}


def test_a_directory_comes_back_whose_successor_cannot_be_made_durable(tmp_path, names_are_not_flushed):
    directory(tmp_path / "name")
    before = held_in(tmp_path)
    names_are_not_flushed()
    with (
        pytest.raises(StorageError, match=r"name: cannot be written .*; nothing half-written was left"),
        new_directory(tmp_path / "name", replace=True) as beside,
    ):
        (beside / "other").write_bytes(b"new")
    assert held_in(tmp_path) == before


def test_a_directory_comes_back_whose_successor_cannot_have_its_name(tmp_path, monkeypatch):
    directory(tmp_path / "name")
    before, real = held_in(tmp_path), os.rename

    def refuse(source, target):
        """The new one alone: the old one moves away, and back."""
        if target == tmp_path / "name" and "other" in os.listdir(source):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(source, target)

    monkeypatch.setattr(os, "rename", refuse)
    with (
        pytest.raises(StorageError, match=r"name: cannot be written .*; nothing half-written was left"),
        new_directory(tmp_path / "name", replace=True) as beside,
    ):
        (beside / "other").write_bytes(b"new")
    assert held_in(tmp_path) == before


@pytest.mark.parametrize(("way", "step"), [("write_atomically", "replace"), ("write_new", "unlink")])
def test_a_new_name_that_cannot_be_taken_back_is_said_to_be_there(
    tmp_path, names_are_not_flushed, monkeypatch, way, step
):
    names_are_not_flushed()
    real = getattr(os, step)

    def refuse(path, *rest, **options):
        if os.path.basename(path) == "name":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(path, *rest, **options)

    monkeypatch.setattr(os, step, refuse)
    with pytest.raises(Unflushed, match=r"name: is written, but .* power failure may take it back; put that right"):
        WAYS[way](tmp_path / "name")
    assert list(held_in(tmp_path)) == ["name"]


def test_what_was_half_written_and_cannot_be_removed_is_not_said_to_be_gone(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", refuse)
    monkeypatch.setattr(os, "unlink", refuse)
    with pytest.raises(StorageError, match=r"name: cannot be written .*; what was half-written may be left; "):
        write_atomically(tmp_path / "name", b"new")


def test_what_processes_leave_is_told_from_other_hidden_files(tmp_path):
    left, other = tmp_path / f".name.{'0f' * 8}.part", tmp_path / ".mine.part"
    assert (is_left(left.name), is_left(other.name)) == (True, False)
    for make in (lambda: left.write_bytes(b"half"), lambda: filled(left), lambda: left.symlink_to(other)):
        make()
        remove_left([left])
        assert not os.path.lexists(left)
    remove_left([left])


@pytest.mark.parametrize("way", ["new_directory", "write_together"])
def test_of_two_that_make_one_directory_at_once_the_first_stays(tmp_path, monkeypatch, way):
    real = os.rename

    def beaten(source, target):
        if target == tmp_path / "name":
            (tmp_path / "name").mkdir()
            (tmp_path / "name" / "theirs").write_bytes(b"theirs")
        real(source, target)

    monkeypatch.setattr(os, "rename", beaten)
    with pytest.raises(ExistsError, match=r"name: exists, another process made it meanwhile; choose another name"):
        WAYS[way](tmp_path / "name")
    assert held_in(tmp_path) == {"name": None, "name/theirs": b"theirs"}


def test_directories_that_cannot_be_removed_are_not_said_to_be_gone(tmp_path, names_are_not_flushed, monkeypatch):
    names_are_not_flushed()
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)
    with pytest.raises(StorageError, match=r"name: cannot be written .*; what was half-written may be left; "):
        write_together({tmp_path / "name": directory})


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file to others")
def test_a_file_that_is_replaced_keeps_its_owner_and_group(tmp_path):
    write_atomically(tmp_path / "x", b"old", mode=0o640)
    os.chown(tmp_path / "x", 65534, 1234)
    write_atomically(tmp_path / "x", b"new")
    found = (tmp_path / "x").stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (65534, 1234, 0o640)
