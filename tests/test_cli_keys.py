"""`fedcore keys`: a roster of members, made away from the server."""

from __future__ import annotations

import errno
import io
import json
import os
import stat
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import fedcore as fc
from fedcore.cli import main
from fedcore.errors import FormatError, MissingError, PrivacyError, StorageError
from fedcore.privacy.secagg import roster_file
from fedcore.privacy.secagg.roster import Roster
from fedcore.privacy.secagg.roster_file import RosterFile


@pytest.fixture
def made(tmp_path, capsys):
    """Secret keys of three members and their public ones."""
    publics = {}
    for name in "abc":
        assert main(["keys", "new", str(tmp_path / name), "--json"]) == 0
        publics[name] = json.loads(capsys.readouterr().out)["public"]
    return tmp_path, publics


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    code = main(["keys", *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, out, err


def test_a_roster_is_made_changed_and_used(made, capsys):
    folder, publics = made
    path = folder / "roster.json"
    for name in "ab":
        assert run(capsys, "enrol", path, name, publics[name])[0] == 0
    roster = RosterFile.existing(path).roster()
    assert roster.ids == ["a", "b"]
    p = fc.secagg.Parameters.choose(2, length=1, bound=1)
    fc.secagg.Client(p, "a", (folder / "a").read_bytes(), roster, b"session", 0, bytes(32))
    code, out, _ = run(capsys, "rotate", path, "a", publics["c"], "--json")
    assert code == 0
    assert json.loads(out)["members"] == {"a": publics["c"], "b": publics["b"]}
    assert json.loads(out)["digest"] != roster.digest().hex()
    assert run(capsys, "revoke", path, "b")[0] == 0
    code, out, _ = run(capsys, "show", path)
    assert code == 0
    assert "members: 1, keys retired: 2" in out


def test_a_roster_that_is_missing_or_no_file_is_named(tmp_path, capsys):
    for path, said in ((tmp_path / "none", "no such roster"), (tmp_path, "Is a directory")):
        code, out, err = run(capsys, "show", path)
        assert (code, out) == (1, "")
        assert err.startswith(f"fedcore: error: {path}: {said}")


def test_without_a_command_there_is_help_and_no_error(capsys):
    code, _, err = run(capsys)
    assert code == 2
    assert "error" not in err


def test_a_key_whose_public_part_cannot_be_shown_is_said_to_be_there(tmp_path, capsys, monkeypatch):
    class Full(io.StringIO):
        def flush(self):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(sys, "stdout", Full())
    assert main(["keys", "new", str(tmp_path / "a")]) == 1
    said = capsys.readouterr().err
    assert f"standard output cannot be written (No space left on device); {tmp_path}/a is complete, and its" in said
    private = Ed25519PrivateKey.from_private_bytes((tmp_path / "a").read_bytes())
    assert private.public_key().public_bytes_raw().hex() in said


def test_secret_keys_are_their_owners_alone_and_never_overwritten(made, capsys):
    folder, _ = made
    assert stat.S_IMODE(os.stat(folder / "a").st_mode) == 0o600
    before = (folder / "a").read_bytes()
    code, _, err = run(capsys, "new", folder / "a")
    assert code == 1
    assert "is not overwritten" in err
    assert (folder / "a").read_bytes() == before


def test_a_change_is_made_though_another_member_has_a_name_that_is_none(made, capsys):
    folder, publics = made
    path = folder / "roster.json"
    for name in "ab":
        run(capsys, "enrol", path, name, publics[name])
    whole = path.read_text()
    path.write_text(whole.replace('"b"', '"\ufb01rm"'))
    code, _, err = run(capsys, "show", path)
    assert (code, "revoke it with fedcore keys and enrol it under another name" in err) == (1, True)
    code, out, err = run(capsys, "revoke", path, "a")
    assert (code, "members: 1, keys retired: 1, digest none" in out) == (0, True)
    assert err.startswith("fedcore: note: ")
    assert "got '\\ufb01rm'" in err
    code, out, _ = run(capsys, "revoke", path, "\ufb01rm")
    assert (code, "members: 0, keys retired: 2" in out) == (0, True)


def test_changes_that_would_break_a_roster_are_refused(made, capsys):
    folder, publics = made
    path = folder / "roster.json"
    for arguments, why in (
        (("show", path), "no such roster"),
        (("enrol", path, "a", "beef"), "64 hexadecimal digits"),
    ):
        code, _, err = run(capsys, *arguments)
        assert (code, why in err) == (1, True)
    for name in "ab":
        run(capsys, "enrol", path, name, publics[name])
    run(capsys, "rotate", path, "a", publics["c"])
    before = path.read_bytes()
    for arguments, why in (
        (("enrol", path, "a", publics["c"]), "is a member"),
        (("enrol", path, "d", publics["b"]), "each needs its own"),
        (("enrol", path, "d", publics["a"]), "was retired"),
        (("rotate", path, "b", publics["a"]), "was retired"),
        (("rotate", path, "b", publics["b"]), "each needs its own"),
        (("rotate", path, "z", publics["b"]), "is no member"),
        (("revoke", path, "z"), "is no member"),
        (("enrol", path, "", "00" * 32), "expected an identifier"),
    ):
        code, _, err = run(capsys, *arguments)
        assert (code, why in err) == (1, True), (arguments, err)
        assert path.read_bytes() == before
    for text in (
        "",
        "[]",
        '{"version": 2, "members": {}, "retired": []}',
        '{"version": 1, "members": [], "retired": []}',
    ):
        path.write_text(text)
        code, _, err = run(capsys, "show", path)
        assert (code, "is no roster" in err) == (1, True), text
        assert "is no roster of version 1, expected JSON as fedcore keys writes it; put back" in err


def test_changes_side_by_side_are_all_kept(made):
    """Of two that opened the file before either changed it, and of many processes' worth of changes at once."""
    folder, publics = made
    path = folder / "roster.json"
    RosterFile(path).enrol("stolen", publics["a"])
    one, other = RosterFile(path), RosterFile(path)
    one.revoke("stolen")
    other.enrol("b", publics["b"])
    assert (RosterFile(path).members, RosterFile(path).retired) == ({"b": publics["b"]}, [publics["a"]])
    keys = {f"m{i}": Ed25519PrivateKey.generate().public_key().public_bytes_raw().hex() for i in range(8)}
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda item: RosterFile(path).enrol(*item), keys.items()))
    assert RosterFile(path).members == keys | {"b": publics["b"]}


def test_a_change_by_a_link_is_made_to_the_file_behind_it(made):
    folder, publics = made
    path, link = folder / "roster.json", folder / "links" / "roster.json"
    link.parent.mkdir()
    for name in "ab":
        RosterFile(path).enrol(name, publics[name])
    link.symlink_to(path)
    RosterFile.existing(link).revoke("a")
    assert link.is_symlink()
    assert RosterFile(path).members == {"b": publics["b"]}


def test_a_roster_that_is_gone_is_not_begun_anew_without_its_retired_keys(made, capsys):
    folder, publics = made
    path = folder / "roster.json"
    assert "new roster" in run(capsys, "enrol", path, "a", publics["a"])[1]
    assert "new roster" not in run(capsys, "enrol", path, "b", publics["b"])[1]
    fresh = RosterFile(folder / "other.json")
    fresh.enrol("a", publics["a"])
    for opened in (RosterFile.existing(path), fresh):
        opened.path.unlink()
        with pytest.raises(MissingError, match="the roster is gone"):
            opened.enrol("c", publics["c"])
        assert not opened.path.exists()


def test_a_change_that_cannot_be_written_is_not_in_memory_either(made, monkeypatch):
    folder, publics = made
    path = folder / "roster.json"
    RosterFile(path).enrol("a", publics["a"])
    path.chmod(0o660)
    file = RosterFile(path)

    def full(path, data):
        raise StorageError(f"{path}: no space is left")

    with monkeypatch.context() as patch:
        patch.setattr(roster_file, "write_atomically", full)
        for change in (lambda: file.rotate("a", publics["b"]), lambda: file.revoke("a")):
            with pytest.raises(StorageError):
                change()
            assert (file.members, file.retired) == ({"a": publics["a"]}, [])
    file.rotate("a", publics["b"])
    assert stat.S_IMODE(path.stat().st_mode) == 0o660


def test_keys_written_by_hand_are_read_as_any_other(made, capsys):
    folder, publics = made
    path = folder / "roster.json"
    written = {"version": 1, "members": {"a": publics["a"].upper()}, "retired": [publics["c"].upper()]}
    path.write_text(json.dumps(written))
    for key, why in ((publics["a"], "is that of a member"), (publics["c"], "was retired")):
        code, _, err = run(capsys, "enrol", path, "b", key)
        assert (code, why in err) == (1, True), err
    written["members"] |= {"twin": publics["a"], "none": "beef"}
    path.write_text(json.dumps(written))
    for name in ("none", "twin"):  # a file that another hand broke is mended, member by member
        assert run(capsys, "show", path)[0] == 1
        RosterFile(path).revoke(name)
    code, _, err = run(capsys, "show", path)  # the twin's key is retired, whoever else has it
    assert (code, "the key of 'a' was retired" in err) == (1, True), err
    RosterFile(path).rotate("a", publics["b"])
    assert run(capsys, "show", path)[0] == 0
    assert RosterFile(path).members == {"a": publics["b"]}


P = 2**255 - 19


@pytest.mark.parametrize(
    ("public", "why"),
    [
        ((1).to_bytes(32, "little"), "low order"),
        ((P - 1).to_bytes(32, "little"), "low order"),
        (bytes(32), "low order"),
        (bytes(31) + b"\x80", "low order"),
        # of order 8
        (bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"), "low order"),
        (b"\xff" * 32, "canonical"),
        ((P + 3).to_bytes(32, "little"), "canonical"),
        ((2).to_bytes(32, "little"), "no point"),
    ],
)
def test_keys_that_anyone_could_sign_under_and_keys_that_are_none_are_refused(made, capsys, public, why):
    folder, publics = made
    path = folder / "roster.json"
    run(capsys, "enrol", path, "a", publics["a"])
    before = path.read_bytes()
    for command, name in (("enrol", "b"), ("rotate", "a")):
        code, _, err = run(capsys, command, path, name, public.hex())
        assert (code, why in err) == (1, True), err
    assert path.read_bytes() == before
    with pytest.raises(PrivacyError, match=why):
        Roster({"a": public})


def test_the_public_key_of_a_secret_one_can_be_shown_again(made, capsys):
    folder, publics = made
    assert run(capsys, "public", folder / "a") == (0, publics["a"] + "\n", "")
    code, out, _ = run(capsys, "public", folder / "a", "--json")
    assert (code, json.loads(out)) == (0, {"key": str(folder / "a"), "public": publics["a"]})
    assert "fedcore keys public" in run(capsys, "new", folder / "a")[2]


def test_what_is_no_secret_key_has_no_public_one(made, capsys):
    folder, _ = made
    (folder / "long").write_bytes(bytes(33))
    (folder / "short").write_bytes(bytes(31))
    os.mkfifo(folder / "fifo")
    (folder / "line\nbreak").write_bytes(b"")
    for name, said in (
        ("none", "no such key; make one with fedcore keys new"),
        ("long", "has 33 bytes, expected the 32 bytes of a secret key"),
        ("short", "has 31 bytes, expected the 32 bytes of a secret key"),
        ("fifo", "is not a regular file, expected the 32 bytes of a secret key"),
        (".", "Is a directory, expected the 32 bytes of a secret key"),
        ("line\nbreak", "has 0 bytes, expected the 32 bytes of a secret key"),
    ):
        code, out, err = run(capsys, "public", folder / name)
        assert (code, out, len(err.splitlines())) == (1, "", 1)
        assert said in err
    link = folder / "link"
    link.symlink_to("/dev/zero")
    with pytest.raises(FormatError, match="is not a regular file"):
        roster_file.public_of(link)


def test_names_of_files_that_are_not_printable_are_shown_escaped(made, capsys):
    folder, publics = made
    path = folder / "line\nbreak\x1b[2J"
    escaped = ascii(str(path))
    code, out, err = run(capsys, "enrol", path, "a", publics["a"])
    assert (code, out.splitlines()[0], err) == (0, f"new roster {escaped}", "")
    for arguments, said in (
        (("new", path), "exists"),
        (("new", path / "x"), "cannot be written"),
        (("show", folder / "no\nne"), "no such roster"),
        (("revoke", path, "z"), "is no member"),
        (("enrol", path, "a", publics["b"]), "is a member"),
    ):
        code, _, err = run(capsys, *arguments)
        assert (code, len(err.splitlines()), "\x1b" in err) == (1, 1, False)
        assert said in err
    path.write_text("[]")
    code, _, err = run(capsys, "show", path)
    assert (code, err.startswith(f"fedcore: error: {escaped}: is no roster")) == (1, True)


def test_names_that_act_on_a_terminal_are_shown_escaped(made, capsys):
    folder, publics = made
    path = folder / "roster.json"
    members = {"a": publics["a"], "b\x1b[2J\n": publics["b"]}
    path.write_text(json.dumps({"version": 1, "members": members, "retired": []}))
    code, out, _ = run(capsys, "revoke", path, "a")
    assert (code, out.splitlines()[0]) == (0, f"'b\\x1b[2J\\n'  {publics['b']}")
