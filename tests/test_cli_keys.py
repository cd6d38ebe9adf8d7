"""`fedcore keys`: a roster of members, made away from the server."""

from __future__ import annotations

import json
import os
import stat

import pytest

import fedcore as fc
from fedcore.cli import main
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
