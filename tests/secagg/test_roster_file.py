"""What a roster on disk may name: each member once, by what cannot pass for another where it is shown."""

from __future__ import annotations

import json

import pytest
from secagg.driver import key_of

from fedcore.errors import FormatError, PrivacyError
from fedcore.privacy.secagg.roster_file import RosterFile

PUBLICS = {name: key_of(i + 1).public_key().public_bytes_raw().hex() for i, name in enumerate("abc")}


@pytest.mark.parametrize("name", ["", " ", "a\n", "b\x1b[2J", "a ", " a", "a\u200b", "\udc80", "a\tb", "a\u00a0"])
def test_identifiers_that_could_pass_for_others_are_refused(tmp_path, name):
    path = tmp_path / "roster.json"
    file = RosterFile(path)
    file.enrol("a b é", PUBLICS["a"])
    before = path.read_bytes()
    with pytest.raises(PrivacyError, match="expected an identifier of printable characters") as caught:
        file.enrol(name, PUBLICS["b"])
    assert str(caught.value).isprintable()
    assert path.read_bytes() == before
    path.write_text(json.dumps({"version": 1, "members": {name: PUBLICS["b"]}, "retired": []}))  # by another hand
    with pytest.raises(PrivacyError, match="expected an identifier of printable characters"):
        RosterFile(path).roster()
    RosterFile(path).revoke(name)
    assert RosterFile(path).members == {}


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
