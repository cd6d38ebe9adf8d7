"""What a roster on disk may name: each member once, by what cannot pass for another where it is shown."""

from __future__ import annotations

import errno
import json
import os
import stat
import tracemalloc

import pytest
from secagg.driver import key_of

from fedcore.cli import main
from fedcore.errors import FormatError, MissingError, PrivacyError, StorageError
from fedcore.privacy.secagg.roster_file import RosterFile, is_identifier, new_key
from fedcore.updates.atomic import Unflushed

PUBLICS = {name: key_of(i + 1).public_key().public_bytes_raw().hex() for i, name in enumerate("abc")}


UNSEEN = [
    "a\ufe0f",
    "a\ufe00",
    "a\U000e0101",
    "a\u034f",
    "a\u115f",
    "\u1160",
    "\u2800",
    "a\u17b4",
    "a\u180b",
    "\U0001d159",
]
NOT_NORMAL = ["cafe\u0301", "a\u3164", "\uffa0", "\uff41", "\u212bb", "\ufb01"]


@pytest.mark.parametrize(
    "name", ["", " ", "a\n", "b\x1b[2J", "a ", " a", "a\u200b", "\udc80", "a\tb", "a\u00a0", *UNSEEN, *NOT_NORMAL]
)
def test_identifiers_that_could_pass_for_others_are_refused(tmp_path, name):
    path = tmp_path / "roster.json"
    file = RosterFile(path)
    file.enrol("a b é", PUBLICS["a"])
    before = path.read_bytes()
    with pytest.raises(PrivacyError, match="expected an identifier of printable characters") as caught:
        file.enrol(name, PUBLICS["b"])
    assert str(caught.value).isprintable()
    assert ascii(name) in str(caught.value)
    assert path.read_bytes() == before
    path.write_text(json.dumps({"version": 1, "members": {name: PUBLICS["b"]}, "retired": []}))  # by another hand
    with pytest.raises(PrivacyError, match="expected an identifier of printable characters"):
        RosterFile(path).roster()
    RosterFile(path).revoke(name)
    assert RosterFile(path).members == {}


def test_what_unicode_calls_default_ignorable_is_in_no_identifier():
    """DerivedCoreProperties.txt, Default_Ignorable_Code_Point."""
    ranges = [(0xAD, 0xAD), (0x34F, 0x34F), (0x61C, 0x61C), (0x115F, 0x1160), (0x17B4, 0x17B5), (0x180B, 0x180F)]
    ranges += [(0x200B, 0x200F), (0x202A, 0x202E), (0x2060, 0x206F), (0x3164, 0x3164), (0xFE00, 0xFE0F)]
    ranges += [(0xFEFF, 0xFEFF), (0xFFA0, 0xFFA0), (0xFFF0, 0xFFF8), (0x1BCA0, 0x1BCA3), (0x1D173, 0x1D17A)]
    ranges += [(0xE0000, 0xE0FFF)]
    assert not [hex(one) for low, high in ranges for one in range(low, high + 1) if is_identifier(f"a{chr(one)}")]


@pytest.mark.parametrize("name", ["a b é", "Łukasz", "नीलम", "김민준", "陳大文", "n-1_2@x.org", "o’brien", "עִברִי"])
def test_names_of_any_script_are_identifiers(tmp_path, name):
    RosterFile(tmp_path / "roster.json").enrol(name, PUBLICS["a"])
    assert RosterFile(tmp_path / "roster.json").roster().ids == [name]


def _looped(folder):
    (folder / "loop").symlink_to("loop")
    return folder / "loop"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: folder, "Is a directory, expected a roster"),
        (lambda folder: folder / ("x" * 300), "File name too long, expected a roster"),
        (lambda folder: folder / "a\0b", "embedded null"),
        (_looped, "(?i:symlink loop|too many levels of symbolic links)"),
        (lambda folder: _looped(folder) / "x", "(?i:symlink loop|too many levels of symbolic links)"),
    ],
)
def test_a_path_that_is_no_rosters_is_refused_by_name(tmp_path, capsys, make, said):
    path = make(tmp_path)
    for use in (lambda: RosterFile(path), lambda: RosterFile.existing(path)):
        with pytest.raises((StorageError, MissingError), match=f"{said}|no such roster") as caught:
            use()
        assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(StorageError, match=said):
        RosterFile(path)
    for arguments in (["show", str(path)], ["enrol", str(path), "a", PUBLICS["a"]]):
        if "\0" in str(path):
            continue  # no argument of a process has one
        assert main(["keys", *arguments]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("fedcore: error: ")
        assert "expected a roster" in line or "no such roster" in line


@pytest.mark.parametrize("path", ["a\0b", "x" * 300])
def test_a_key_is_written_to_a_path_that_can_be(tmp_path, path):
    with pytest.raises(StorageError, match=r"choose another (place|name)") as caught:
        new_key(tmp_path / path)
    assert str(caught.value).isprintable()
    assert not list(tmp_path.iterdir())


def test_names_and_keys_are_text(tmp_path):
    file = RosterFile(tmp_path / "roster.json")
    file.enrol("a", PUBLICS["a"])
    for key in (None, bytes(32), 5):
        for change in (lambda key=key: file.enrol("b", key), lambda key=key: file.rotate("a", key)):
            with pytest.raises(PrivacyError, match="public key: expected an Ed25519 public key, 64 hexadecimal digits"):
                change()
    for name in (5, None, ["a"], b"a"):
        with pytest.raises(PrivacyError, match="expected an identifier of printable characters"):
            file.enrol(name, PUBLICS["b"])
        for change in (lambda name=name: file.rotate(name, PUBLICS["b"]), lambda name=name: file.revoke(name)):
            with pytest.raises(PrivacyError, match="is no member"):
                change()
    assert RosterFile(file.path).members == {"a": PUBLICS["a"]}


def test_names_that_are_not_ascii_are_shown_escaped_as_well(tmp_path, capsys):
    path = tmp_path / "roster.json"
    for name, public in (("alice", "a"), ("\u0430lice", "b")):
        RosterFile(path).enrol(name, PUBLICS[public])
    assert main(["keys", "show", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"alice  {PUBLICS['a']}"
    assert lines[1] == f"\u0430lice ('\\u0430lice')  {PUBLICS['b']}"


def test_a_roster_that_names_a_member_or_a_field_twice_is_refused(tmp_path):
    path, one, other = tmp_path / "roster.json", PUBLICS["a"], PUBLICS["b"]
    for members, retired, twice in (
        (f'"a": "{one}", "a": "{other}"', f'"retired": ["{PUBLICS["c"]}"]', "a"),
        (f'"a": "{one}"', f'"retired": ["{other}"], "retired": []', "retired"),
    ):
        path.write_text(f'{{"version": 1, "members": {{{members}}}, {retired}}}')
        before = path.read_bytes()
        with pytest.raises(FormatError, match=f"names '{twice}' twice; take out the one that is wrong"):
            RosterFile(path)
        assert path.read_bytes() == before


def test_a_change_that_is_written_but_not_durable_is_what_this_side_goes_by(tmp_path, monkeypatch):
    """Else the key that the file retires would still be taken for the member's."""
    file = RosterFile(tmp_path / "roster")
    file.enrol("a", PUBLICS["a"])
    real = os.fsync

    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(Unflushed, match="roster: is written, but its folder cannot be flushed"):
            file.rotate("a", PUBLICS["b"])
        with pytest.raises(StorageError, match="nothing half-written was left"):
            new_key(tmp_path / "key")
    assert file.members == RosterFile(file.path).members == {"a": PUBLICS["b"]}
    with pytest.raises(PrivacyError, match="the key is that of a member, 'a'; each needs its own"):
        file.rotate("a", PUBLICS["b"])
    new_key(tmp_path / "key")


@pytest.mark.parametrize(
    "changed",
    [
        {"version": 2},
        {"version": True},
        {"version": 1.0},
        {"members": {"a": 5}},
        {"members": [PUBLICS["a"]]},
        {"retired": [5]},
        {"retired": PUBLICS["a"]},
    ],
)
def test_what_is_no_roster_is_refused(tmp_path, changed):
    """A string in place of the list of retired keys, taken letter by letter, would let them be enrolled again."""
    path = tmp_path / "roster.json"
    path.write_text(json.dumps({"version": 1, "members": {}, "retired": []} | changed))
    with pytest.raises(FormatError, match="is no roster of version 1"):
        RosterFile(path)


def test_only_a_regular_file_of_bounded_size_is_read_for_a_roster(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", "/dev/zero"):
        with pytest.raises(FormatError, match="is not a regular file, expected a roster of at most 64 MiB"):
            RosterFile(path)
    large = tmp_path / "large"
    large.touch()
    os.truncate(large, (64 << 20) + 1)
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match="has 67108865 bytes, expected a roster of at most 64 MiB"):
            RosterFile(large)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    os.truncate(large, 64 << 20)
    with pytest.raises(FormatError, match="is no roster of version 1"):
        RosterFile(large)


def test_a_file_that_becomes_another_kind_while_it_is_opened_is_no_roster(tmp_path, monkeypatch):
    path = tmp_path / "roster.json"
    RosterFile(path).enrol("a", PUBLICS["a"])
    real = os.open

    def swapped(name, flags, *rest, **more):
        if name == str(path) or name == path:
            path.unlink(missing_ok=True)
            os.mkfifo(path)
        return real(name, flags, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", swapped)
        with pytest.raises(FormatError, match="is not a regular file"):
            RosterFile(path)
    assert stat.S_ISFIFO(path.stat().st_mode)


@pytest.mark.parametrize("name", ["x" * 5000, "\x1b" * 5000], ids=["letters", "escapes"])
def test_a_long_name_is_told_in_a_short_line(tmp_path, name):
    path = tmp_path / "roster.json"
    file = RosterFile(path)
    with pytest.raises(PrivacyError, match=r"expected (an identifier of printable|.*at most 1,024 bytes)") as caught:
        file.enrol(name, PUBLICS["a"])
    said = [str(caught.value)]
    path.write_text(json.dumps({"version": 1, "members": {name: PUBLICS["a"]}, "retired": [PUBLICS["a"]]}))
    for use in (RosterFile(path).roster, lambda: RosterFile(path).enrol(name, PUBLICS["b"])):
        with pytest.raises(PrivacyError) as caught:
            use()
        said.append(str(caught.value))
    path.write_text(f'{{"version": 1, {json.dumps(name)}: 1, {json.dumps(name)}: 2}}')
    with pytest.raises(FormatError, match="twice") as caught:
        RosterFile(path)
    said.append(str(caught.value))
    assert max(len(line) for line in said) < 600 + len(str(path))
    path.write_text(json.dumps({"version": 1, "members": {name: PUBLICS["a"]}, "retired": []}))
    RosterFile(path).revoke(name)
    assert RosterFile(path).members == {}


def test_a_device_is_not_even_opened_for_a_roster(tmp_path, monkeypatch):
    """To open some of them is to act on them."""
    real, opened = os.open, []

    def noted(name, *rest, **more):
        opened.append(str(name))
        return real(name, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", noted)
        with pytest.raises(FormatError, match="is not a regular file"):
            RosterFile("/dev/zero")
        RosterFile(tmp_path / "roster").enrol("a", PUBLICS["a"])
        RosterFile(tmp_path / "roster")
    assert "/dev/zero" not in opened
    assert str(tmp_path / "roster") in opened
