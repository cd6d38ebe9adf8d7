"""`fedcore keys`: a roster of members, made away from the server."""

from __future__ import annotations

import json
import os
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import fedcore as fc
from fedcore.cli import main
from fedcore.errors import PrivacyError
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
    assert "1 members, 2 keys retired" in out


def test_secret_keys_are_their_owners_alone_and_never_overwritten(made, capsys):
    folder, _ = made
    assert stat.S_IMODE(os.stat(folder / "a").st_mode) == 0o600
    before = (folder / "a").read_bytes()
    code, _, err = run(capsys, "new", folder / "a")
    assert code == 1
    assert "is not overwritten" in err
    assert (folder / "a").read_bytes() == before


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
    assert run(capsys, "show", path)[0] == 0
    assert RosterFile(path).members == {"a": publics["a"]}


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
