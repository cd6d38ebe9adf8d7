"""Files and folders written whole: synced before they get their names, and with their names when the call returns."""

from __future__ import annotations

import os

import pytest

from fedcore.updates.atomic import (
    append,
    locked_beside,
    make_parents,
    new_directory,
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


def held(path):
    with locked_beside(path):
        pass


WAYS = {
    "write_atomically": lambda path: write_atomically(path, [b"one", b"two"]),
    "write_atomically over another": lambda path: (write_atomically(path, b"old"), write_atomically(path, b"new")),
    "write_new": lambda path: write_new(path, b"secret"),
    "append": lambda path: (make_parents(path), append(path, b"one"), append(path, b"two", keep=2)),
    "new_directory": directory,
    "new_directory in place of one": replaced,
    "write_together": lambda path: write_together({path: directory, path.with_name("other"): directory}),
    "locked_beside": held,
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
