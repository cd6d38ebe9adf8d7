"""Files of a cohort that change before or while they are read, may not be read, or are none: named, every one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from outofcore_files import narrowed, six_clients, update, written

import fedcore as fc
from fedcore.errors import FormatError, MissingError, StorageError
from fedcore.rules import Krum, Mean, Median, tiles
from fedcore.rules.budget import GRAIN
from fedcore.updates.file import File


@pytest.fixture(scope="module")
def six(tmp_path_factory) -> tuple[list[fc.Update], list[Path], fc.Update]:
    return six_clients(tmp_path_factory.mktemp("six"))


@pytest.fixture
def narrow(monkeypatch):
    return narrowed(monkeypatch)


def shrink(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 20_000)


def write_to(path: Path) -> None:
    with open(path, "r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"0000")


def replace(path: Path) -> None:
    other = path.with_suffix(".new")
    other.write_bytes(path.read_bytes())
    other.rename(path)


CHANGES = [
    (shrink, FormatError, "now has .* bytes, expected .*: it changed|it shrank"),
    (write_to, FormatError, "was written to"),
    (replace, FormatError, "was replaced"),
    (Path.unlink, MissingError, "no such file"),
]


@pytest.mark.parametrize(("change", "kind", "said"), CHANGES, ids=["shrinks", "is written to", "is replaced", "goes"])
@pytest.mark.parametrize("rule", [Mean(), Krum(1)], ids=repr)
def test_a_file_that_changes_before_it_is_read_is_named(six, tmp_path, change, kind, said, rule):
    paths = written(tmp_path / "changing", six[0])
    opened = [fc.Update.open(path) for path in paths]
    change(paths[2])
    with pytest.raises(kind, match=f"client 'client-2': .*client-2.safetensors: .*({said})"):
        fc.aggregate(opened, rule, "parameters")


@pytest.mark.parametrize("keep", [0, 3, 100])
@pytest.mark.parametrize(("change", "said"), [(shrink, CHANGES[0][2]), (write_to, CHANGES[1][2])])
def test_a_file_that_changes_while_it_is_read_is_named(six, narrow, monkeypatch, tmp_path, change, said, keep):
    """After the first tile of the pass, whether files stay open between visits or not."""
    # one dtype, so one pass: files that stay open are opened once, before the change
    paths = written(tmp_path / "changing", [update(i, {"x": ((9 * GRAIN,), "float32")}) for i in range(6)])
    monkeypatch.setattr(tiles, "open_files_allowed", lambda: keep)
    narrow(1)

    def at_the_first_tile(work: str, done: int, total: int) -> None:
        if done == 1 and paths[2].stat().st_mtime_ns == before:
            change(paths[2])

    before = paths[2].stat().st_mtime_ns
    with pytest.raises(FormatError, match=f"client 'client-2': .*client-2.safetensors: .*({said})"):
        fc.aggregate(paths, Median(), "parameters", progress=at_the_first_tile)


def test_a_file_that_ends_before_what_is_read_says_where_it_ends(tmp_path):
    path = tmp_path / "short"
    path.write_bytes(bytes(100))
    source = File.at(path)
    with source.opened() as descriptor:
        os.truncate(path, 40)
        for start in (0, 64):
            with pytest.raises(FormatError, match="ends at byte 40 of 100: it shrank"):
                source.read_into(descriptor, memoryview(bytearray(30 if start else 100)), start)


def test_a_file_that_may_not_be_read_is_named(six, monkeypatch):
    """Denied by a stand-in for the system's open: whoever runs the tests may be root, who may read everything."""
    really = os.open

    def denied(path, *rest):
        if str(path).endswith("client-1.safetensors"):
            raise PermissionError(13, "Permission denied")
        return really(path, *rest)

    opened = [fc.Update.open(path) for path in six[1]]
    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(StorageError, match=r"client-1.safetensors: cannot be read \(Permission denied\); check its"):
        fc.Update.open(six[1][1])
    with pytest.raises(StorageError, match=r"client 'client-1': .*client-1.safetensors: cannot be read"):
        fc.aggregate(opened, Mean(), "parameters")


def test_an_error_of_the_disk_is_named(six, monkeypatch):
    def broken(*_: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", broken)
    with pytest.raises(StorageError, match=r"safetensors: cannot be read \(Input/output error\)"):
        fc.aggregate(six[1], Mean(), "parameters")


def test_what_is_no_file(tmp_path):
    with pytest.raises(MissingError, match="nowhere: no such directory"):
        fc.Update.open(tmp_path / "nowhere")
    with pytest.raises(MissingError, match=r"nowhere\.safetensors: no such file"):
        fc.Update.open(tmp_path / "nowhere.safetensors")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FormatError, match="pipe: is not a regular file"):
        fc.Update.open(tmp_path / "pipe")
    (tmp_path / "short").write_bytes(b"1234")
    with pytest.raises(FormatError, match="short: has 4 bytes, expected at least 8"):
        fc.Update.open(tmp_path / "short")
    (tmp_path / "long").write_bytes((1 << 40).to_bytes(8, "little") + b"{}")
    with pytest.raises(FormatError, match="long: claims a header of 1099511627776 bytes"):
        fc.Update.open(tmp_path / "long")
    with pytest.raises(FormatError, match="pipe: is not a regular file"):
        File.at(tmp_path / "pipe")
