"""Edges of the roster file that no test showed."""

from __future__ import annotations

import json

import pytest
from secagg.driver import key_of

from fedcore.errors import FormatError, PrivacyError
from fedcore.privacy.secagg.roster_file import RosterFile

PUBLIC = key_of(1).public_key().public_bytes_raw().hex()


@pytest.mark.parametrize(
    "changed",
    [{"version": 2}, {"members": {"a": 5}}, {"retired": [5]}, {"members": [PUBLIC]}],
)
def test_what_is_no_roster_is_refused(tmp_path, changed):
    path = tmp_path / "roster.json"
    path.write_text(json.dumps({"version": 1, "members": {}, "retired": []} | changed))
    with pytest.raises(FormatError, match="is no roster of version 1"):
        RosterFile(path)


def test_a_retired_key_that_is_no_list_is_not_forgotten(tmp_path):
    """FAILS on the tree as it is: a string is taken letter by letter, and the key may be enrolled again."""
    path = tmp_path / "roster.json"
    path.write_text(json.dumps({"version": 1, "members": {}, "retired": PUBLIC}))
    with pytest.raises((FormatError, PrivacyError)):
        RosterFile(path).enrol("a", PUBLIC)
