"""A file is noticed when it is no longer what it was, however little of it changes and whenever."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fedcore.errors import FormatError
from fedcore.updates.file import File

#: a time of modification, in nanoseconds
WHEN = 1_700_000_000_123_456_789


def made(path: Path) -> File:
    path.write_bytes(b"12345678")
    os.utime(path, ns=(WHEN, WHEN))
    return File.at(path)


def rewrite(path: Path, later: int = 1) -> None:
    """In place, to other bytes of the same number, a few nanoseconds later."""
    with open(path, "r+b") as file:
        file.write(b"87654321")
    os.utime(path, ns=(WHEN + later, WHEN + later))


def test_a_file_that_stays_is_read(tmp_path):
    file = made(tmp_path / "x")
    assert file.read(2, 5).tobytes() == b"34567"
    assert file == File.at(tmp_path / "x")


@pytest.mark.parametrize("later", [1, -1, 1000])
def test_a_rewrite_within_the_same_second_is_noticed(tmp_path, later):
    file = made(tmp_path / "x")
    rewrite(tmp_path / "x", later)
    with pytest.raises(FormatError, match="x: was written to after its header was read; keep files as they are"):
        file.read(0, 8)


def test_a_rewrite_between_the_open_and_the_end_of_a_read_is_noticed(tmp_path, monkeypatch):
    """Before the bytes are there or after: half of them may be of the old file and half of the new."""
    read = File.read_into

    def before(self, descriptor, view, offset):
        rewrite(tmp_path / "x")
        read(self, descriptor, view, offset)

    def after(self, descriptor, view, offset):
        read(self, descriptor, view, offset)
        rewrite(tmp_path / "x")

    for while_read in (before, after):
        file = made(tmp_path / "x")
        with monkeypatch.context() as patch:
            patch.setattr(File, "read_into", while_read)
            with pytest.raises(FormatError, match="x: was written to after its header was read"):
                file.read(0, 8)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="open descriptors are counted in /proc")
def test_a_file_that_is_refused_is_closed(tmp_path):
    (tmp_path / "x").write_bytes(b"12345678")
    file = File.at(tmp_path / "x")
    (tmp_path / "x").write_bytes(b"123456789")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(FormatError, match="now has 9 bytes, expected 8"):
            file.open()
    assert len(os.listdir("/proc/self/fd")) == before
