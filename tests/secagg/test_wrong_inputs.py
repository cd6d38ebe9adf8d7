"""Values of a wrong kind: each is refused by an error of this package that names it, or taken for what it is."""

from __future__ import annotations

import numpy as np
import pytest
from secagg.driver import SEALING, key_of, rig_of

import fedcore as fc
from fedcore.errors import DTypeError, Forged, FormatError, PrivacyError, ShapeError
from fedcore.privacy.secagg.client import Client
from fedcore.privacy.secagg.roster_file import RosterFile

STRIDED = memoryview(bytes(400))[::2]


@pytest.mark.parametrize(
    ("vector", "error", "why"),
    [
        (np.zeros(0, np.int64), (PrivacyError, ShapeError), "length: got 0|vector of 0 coordinates"),
        (np.array([np.nan, 0]), DTypeError, "got float64"),
        (np.array([np.inf, 0]), DTypeError, "got float64"),
        ("ab", DTypeError, "got <U2"),
        (1, DTypeError, r"of shape \(\)"),
        (None, DTypeError, "got object"),
        ([[1, 2], [3, 4]], DTypeError, r"shape \(2, 2\)"),
    ],
)
def test_a_vector_that_is_none_is_refused(vector, error, why):
    for groups in (None, 2):
        with pytest.raises(error, match=why):
            fc.secagg.simulate([vector] * 6, groups=groups)
    rig = rig_of().run("mask")
    with pytest.raises(error, match=why):
        rig.clients[0].mask(rig.messages[0], vector)


def test_no_vectors_have_no_sum():
    with pytest.raises(PrivacyError, match="n: got 0"):
        fc.secagg.simulate([])
    with pytest.raises(PrivacyError, match="got 2 of 0 members"):
        fc.secagg.simulate([], groups=2)


def test_the_bound_of_vectors_is_their_largest_number_at_every_width():
    assert fc.secagg.simulate([np.array([-128, 1], np.int8)] * 3).sum.tolist() == [-384, 3]
    least = np.array([np.iinfo(np.int32).min, 1], np.int32)
    assert fc.secagg.simulate([least] * 3).sum.tolist() == [-3 << 31, 3]
    with pytest.raises(PrivacyError, match="modulus_bits: got 66"):  # three of them are no 64-bit number
        fc.secagg.simulate([np.array([-(1 << 63), 1])] * 3)


@pytest.mark.parametrize("data", [None, "text", 7, [1], STRIDED, memoryview(b""), np.zeros(50, np.uint8)])
def test_a_message_that_is_none_is_refused(data):
    rig = rig_of()
    with pytest.raises(FormatError, match=r"advertise: the message of 0: got .*expected"):
        rig.server.receive(0, data)
    rig.run("share")
    client = rig.clients[0]
    with pytest.raises(FormatError, match=r"share: the server's message: got .*expected"):
        client.share(data)
    sent = client.share(memoryview(bytearray(rig.messages[0])))
    for one in (client, Client.from_bytes(client.to_bytes(SEALING), SEALING)):
        with pytest.raises((FormatError, fc.errors.Replayed)):
            one.share(data)
        assert one.share(rig.messages[0]) == sent


@pytest.mark.parametrize("name", [[1], {1: 2}, None, 99])
def test_who_is_no_member_is_refused(name):
    rig = rig_of()
    with pytest.raises(Forged, match="not in the roster"):
        rig.server.receive(name, rig.clients[0].advertise())
    with pytest.raises(PrivacyError, match="enrol it first"):
        rig.server.drop(name)


@pytest.mark.parametrize(
    ("session", "number", "why"),
    [
        ("text", 1, "session: expected"),
        (b"", 1, "session: expected"),
        (None, 1, "session: expected"),
        (b"session", -1, "round: got -1"),
        (b"session", 1 << 70, "round: got 1180591620717411303424"),
        (b"session", 1.5, "round: got 1.5"),
    ],
)
def test_groups_are_drawn_for_a_round_that_can_be(session, number, why):
    roster = fc.secagg.Roster({i: key_of(i + 1).public_key().public_bytes_raw() for i in range(6)})
    with pytest.raises(PrivacyError, match=why):
        fc.secagg.GroupDraw(roster, 0, 2, session, number)


@pytest.mark.parametrize("data", [None, "x" * 38, 38, [0] * 38, STRIDED])
def test_parameters_come_from_bytes_alone(data):
    with pytest.raises(FormatError, match=r"parameters: got .*, expected 38 bytes"):
        fc.secagg.Parameters.from_bytes(data)
    p = rig_of().p
    assert fc.secagg.Parameters.from_bytes(memoryview(p.to_bytes())) == p


def test_a_roster_that_is_nested_too_deeply_is_damaged(tmp_path):
    deep = b"[" * 100_000
    with pytest.raises(PrivacyError, match="roster: damaged"):
        fc.secagg.Roster.from_bytes(deep)
    path = tmp_path / "roster.json"
    path.write_bytes(deep)
    with pytest.raises(FormatError, match="is no roster"):
        RosterFile(path)


def test_a_roster_that_names_a_member_twice_is_refused():
    one, two = (key_of(k).public_key().public_bytes_raw().hex() for k in (1, 2))
    with pytest.raises(PrivacyError, match="names a member twice"):
        fc.secagg.Roster.from_bytes(f'[["a", "{one}"], ["a", "{two}"]]'.encode())
