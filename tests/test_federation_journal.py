"""Durability: whole files or none, whole lines or none, and damage that is found."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from fedcore.errors import FormatError, StorageError
from fedcore.federation.journal import Journal, LineLog
from fedcore.privacy.chain import Chain
from fedcore.updates.atomic import new_directory, write_atomically


def everything(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def full_disk(monkeypatch):
    """From now on the disk takes nothing: syncing fails, as it does where space is only found missing at the end."""

    def refuse(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", refuse)


def test_received_bytes_come_back_with_their_hash(tmp_path: Path):
    journal = Journal(tmp_path)
    receipt = journal.receive("arm", 1, "client-3", b"some bytes")
    assert bytes(receipt.open()) == b"some bytes"
    assert journal.received("arm", 1) == {"client-3": receipt}
    assert journal.received("arm", 2) == {}
    assert everything(tmp_path) == [f"arm/round-001/client-3.{receipt.sha256}.safetensors"]


def test_a_file_is_synced_before_it_has_its_name(tmp_path: Path, monkeypatch):
    steps = []
    sync, rename = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (steps.append("sync"), sync(descriptor))[1])
    monkeypatch.setattr(os, "replace", lambda *paths: (steps.append("rename"), rename(*paths))[1])
    (tmp_path / "there").mkdir()
    write_atomically(tmp_path / "there" / "file", b"x")
    # the content, the name, then the folder that holds the name
    assert steps == ["sync", "rename", "sync"]


def test_damage_after_receipt_is_found(tmp_path: Path):
    receipt = Journal(tmp_path).receive("arm", 1, "a", b"right")
    receipt.path.write_bytes(b"wrong")
    with pytest.raises(FormatError, match="its SHA-256 is"):
        Journal(tmp_path).received("arm", 1)


def test_a_full_disk_leaves_no_file(tmp_path: Path, full_disk):
    with pytest.raises(
        StorageError, match=r"cannot be written \(No space left on device\); nothing half-written was left"
    ):
        Journal(tmp_path).receive("arm", 1, "a", b"bytes")
    assert everything(tmp_path) == []


def test_a_full_disk_leaves_a_log_as_it_was(tmp_path: Path, monkeypatch, request):
    log = LineLog(tmp_path / "log")
    log.append({"round": 1})
    before = log.path.read_bytes()
    request.getfixturevalue("full_disk")
    with pytest.raises(StorageError, match=r"log: cannot be written \(No space left on device\)"):
        log.append({"round": 2})
    assert log.path.read_bytes() == before
    assert log.entries == [{"round": 1}]
    monkeypatch.undo()
    log.append({"round": 2})
    assert LineLog(log.path).entries == [{"round": 1}, {"round": 2}]


def test_a_disk_that_fills_within_a_line_leaves_a_log_as_it_was_once_there_is_room(tmp_path: Path):
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from fedcore.errors import StorageError; from fedcore.federation.journal import LineLog\n"
        "log = LineLog(Path(sys.argv[1]))\n"
        "log.append({'round': 1})\n"
        "_, most = resource.getrlimit(resource.RLIMIT_FSIZE)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (40, most))\n"
        "try: log.append({'round': 2, 'more': 50 * 'x'})\n"
        "except StorageError as error: print(error)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))\n"
        "print(log.path.read_bytes() == b'{\"round\": 1}\\n')\n"
        "log.append({'round': 3})"
    )
    ran = subprocess.run([sys.executable, "-B", "-c", code, str(tmp_path / "log")], capture_output=True, text=True)
    assert "log: cannot be written (File too large); nothing half-written was left" in ran.stdout, ran.stderr
    assert ran.stdout.endswith("True\n")
    assert LineLog(tmp_path / "log").entries == [{"round": 1}, {"round": 3}]


@pytest.mark.parametrize("moment", ["write", "fsync"])
def test_an_interrupted_line_is_taken_back(tmp_path: Path, monkeypatch, moment):
    log = LineLog(tmp_path / "log")
    log.append({"round": 1})
    before, real = log.path.read_bytes(), getattr(os, moment)

    def interrupted(descriptor, *data):
        monkeypatch.undo()
        real(descriptor, *(part[:5] for part in data))
        raise KeyboardInterrupt

    monkeypatch.setattr(os, moment, interrupted)
    with pytest.raises(KeyboardInterrupt):
        log.append({"round": 2})
    assert log.path.read_bytes() == before


def test_a_line_that_cannot_be_taken_back_says_so(tmp_path: Path, monkeypatch, request):
    log = LineLog(tmp_path / "log")
    log.append({"round": 1})
    request.getfixturevalue("full_disk")
    with pytest.raises(StorageError, match=r"log: cannot be written \(No space left .*\); .* may be left;") as caught:
        log.append({"round": 2})
    assert "nothing half-written" not in str(caught.value)
    monkeypatch.undo()
    assert LineLog(log.path).entries[0] == {"round": 1}


def test_the_files_of_a_log_and_of_a_chain_have_the_permissions_they_had(tmp_path: Path):
    before = os.umask(0o022)
    try:
        LineLog(tmp_path / "log").append({"round": 1})
        with (chain := Chain(tmp_path / "chain", b"k" * 32)).locked():
            chain.append({"round": 1})
    finally:
        os.umask(before)
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("log", "chain")] == [0o644, 0o600]


def test_an_old_file_survives_a_write_that_fails(tmp_path: Path, monkeypatch, request):
    write_atomically(tmp_path / "f", b"old")
    request.getfixturevalue("full_disk")
    with pytest.raises(StorageError):
        write_atomically(tmp_path / "f", b"new")
    assert (tmp_path / "f").read_bytes() == b"old"


def test_a_directory_gives_way_whole_or_stays(tmp_path: Path, monkeypatch):
    def fill(text: str) -> None:
        with new_directory(tmp_path / "d", replace=True) as beside:
            (beside / "inner").mkdir()
            (beside / "inner" / "file").write_text(text)

    fill("old")
    real = os.rename

    def rename(source, target):
        if Path(target).name == "d" and (Path(source) / "inner" / "file").read_text() == "new":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(StorageError, match="d: cannot be written"):
        fill("new")
    assert everything(tmp_path) == ["d/inner/file"]
    assert (tmp_path / "d/inner/file").read_text() == "old"
    monkeypatch.undo()
    fill("new")
    assert everything(tmp_path) == ["d/inner/file"]
    assert (tmp_path / "d/inner/file").read_text() == "new"


@pytest.mark.parametrize("cut", range(1, 24))
def test_a_line_torn_anywhere_is_dropped_and_the_log_goes_on(tmp_path: Path, cut: int):
    path = tmp_path / "log"
    log = LineLog(path)
    log.append({"round": 1, "é": 1})
    whole = path.read_bytes()
    log.append({"round": 2, "more": "text"})
    path.write_bytes(path.read_bytes()[: len(whole) + cut])
    again = LineLog(path)
    assert again.dropped
    assert again.entries == [{"round": 1, "é": 1}]
    again.append({"round": 2})
    assert [json.loads(line) for line in path.read_bytes().splitlines()] == [{"round": 1, "é": 1}, {"round": 2}]


def test_a_damaged_line_in_the_middle_is_an_error_with_its_number(tmp_path: Path):
    (tmp_path / "log").write_bytes(b'{"a": 1}\n{"a": \n{"a": 3}\n')
    with pytest.raises(FormatError, match=r"log:2: not valid JSON .*; the file was damaged"):
        LineLog(tmp_path / "log")


def test_nothing_that_is_not_json_is_written(tmp_path: Path):
    log = LineLog(tmp_path / "log")
    with pytest.raises(ValueError, match="JSON"):
        log.append({"loss": float("nan")})
    assert not log.path.exists()


def test_find_looks_at_all_keys(tmp_path: Path):
    log = LineLog(tmp_path / "log")
    log.append({"arm": "a", "round": 1, "x": 1})
    log.append({"arm": "a", "round": 2, "x": 2})
    assert log.find(arm="a", round=2)["x"] == 2
    assert log.find(arm="b", round=2) is None


def test_find_gives_the_first_of_two_lines(tmp_path: Path):
    log = LineLog(tmp_path / "log")
    for x in (1, 2):
        log.append({"arm": "a", "round": 1, "x": x})
    log.append({"arm": "a", "round": 0, "x": 3})
    for one in (log, LineLog(log.path)):
        assert [one.find(arm="a", round=1)["x"], one.find(arm="a", round=0)["x"], one.find(arm="a")["x"]] == [1, 3, 1]
        assert (len(one), one[-1]["x"], [line["x"] for line in one]) == (3, 3, [1, 2, 3])


def test_a_log_reads_on_where_another_process_has_added_lines(tmp_path: Path):
    log, other = LineLog(tmp_path / "log"), LineLog(tmp_path / "log")
    other.append({"arm": "a", "round": 1})
    log.read_on()
    other.append({"arm": "a", "round": 2})
    with log.path.open("ab") as file:
        file.write(b'{"arm": "a"')
    log.read_on()
    assert log.dropped
    log.append({"arm": "a", "round": 3})
    assert [line["round"] for line in log] == [line["round"] for line in LineLog(log.path)] == [1, 2, 3]
    with log.path.open("ab") as file:
        file.write(b"damaged\n")
    with pytest.raises(FormatError, match=r"log:4: not valid JSON"):
        log.read_on()
    log.path.write_bytes(b"")
    with pytest.raises(FormatError, match=r"log: is shorter than it was"):
        log.read_on()


def test_a_line_that_was_damaged_since_is_found_when_it_is_read(tmp_path: Path):
    log = LineLog(tmp_path / "log")
    log.append({"arm": "a", "round": 1})
    log.path.write_bytes(log.path.read_bytes().replace(b"{", b"("))
    with pytest.raises(FormatError, match=r"log:1: not valid JSON .*; the file was damaged"):
        log.find(arm="a")


def test_a_log_holds_no_lines(tmp_path: Path):
    log = LineLog(tmp_path / "log")
    for number in range(4):
        log.append({"arm": "a", "round": number, "inputs": 1_000_000 * "x"})
    for made in (lambda: LineLog(log.path), lambda: [log.find(arm="a", round=number)["round"] for number in range(4)]):
        tracemalloc.start()
        found = made()
        now, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(found) == 4
        assert now < 100_000
        assert most < 4_000_000


def test_rounds_of_private_arms_are_rounds_too(tmp_path):
    journal = Journal(tmp_path / "updates", {"hidden": tmp_path / "private"})
    for arm in ("hidden", "open"):
        journal.receive(arm, 2, "c", b"x")
    assert journal.rounds() == [("hidden", 2), ("open", 2)]
    assert not (tmp_path / "updates" / "hidden").exists()


def test_a_damaged_line_is_named_by_its_number_from_either_end(tmp_path):
    log = LineLog(tmp_path / "log.jsonl")
    log.append({"arm": "a"})
    log.append({"arm": "b"})
    data = log.path.read_bytes()
    log.path.write_bytes(data[: data.index(b"\n") + 1] + b'{"arm":x"b"}\n')
    for index in (1, -1):
        with pytest.raises(FormatError) as caught:
            log[index]
        assert "log.jsonl:2: " in str(caught.value)
