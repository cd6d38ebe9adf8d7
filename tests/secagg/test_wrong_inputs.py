"""Values of a wrong kind: each is refused by an error of this package that names it, or taken for what it is."""

from __future__ import annotations

import numpy as np
import pytest
from secagg.driver import SEALING, key_of, rig_of

import fedcore as fc
from fedcore.errors import (
    ConfigError,
    DTypeError,
    Forged,
    FormatError,
    PrivacyError,
    RangeError,
    ShapeError,
    StorageError,
    WeightError,
)
from fedcore.privacy.secagg.client import Client
from fedcore.privacy.secagg.roster_file import RosterFile
from fedcore.privacy.secagg.server import Server

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
    # three of them are no 64-bit number
    with pytest.raises(PrivacyError, match=r"bound: got 9223372036854775808, 3 .* 66 bits"):
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
        (b"session", True, "round: got True"),
    ],
)
def test_groups_are_drawn_for_a_round_that_can_be(session, number, why):
    roster = fc.secagg.Roster({i: key_of(i + 1).public_key().public_bytes_raw() for i in range(6)})
    with pytest.raises(PrivacyError, match=why):
        fc.secagg.GroupDraw(roster, 0, 2, session, number)


@pytest.mark.parametrize("data", [None, "x" * 40, 40, [0] * 40, STRIDED])
def test_parameters_come_from_bytes_alone(data):
    with pytest.raises(FormatError, match=r"parameters: got .*, expected 40 bytes"):
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


@pytest.mark.parametrize("as_kind", [bytearray, memoryview])
def test_states_come_from_bytes_of_any_kind_and_from_nothing_else(as_kind):
    rig = rig_of()
    state, of_server = rig.clients[0].to_bytes(SEALING), rig.server.to_bytes(SEALING)
    assert Client.from_bytes(as_kind(state), SEALING).client_id == 0
    assert Server.from_bytes(as_kind(of_server), SEALING).stage == "advertise"
    for kind, data in ((Client, None), (Server, "text"), (Client, STRIDED)):
        with pytest.raises(FormatError, match=r"state of a .*: got .*, expected bytes"):
            kind.from_bytes(data, SEALING)


def test_who_joins_says_what_and_after_which_round():
    rig = rig_of()
    about = (rig.roster, b"session", 7, bytes(32))
    for after in ("6", True, 6.0):
        with pytest.raises(PrivacyError, match=f"after: got {after!r}, expected the number"):
            Client(rig.p, 0, key_of(1), *about, after=after)
    with pytest.raises(PrivacyError, match=r"parameters: got bytes, expected fc\.secagg\.Parameters"):
        Server(rig.p.to_bytes(), *about)
    with pytest.raises(PrivacyError, match="roster: got NoneType, expected a mapping"):
        Server(rig.p, None, *about[1:])
    with pytest.raises(FormatError, match="part 1 of the broadcast: got str, expected bytes"):
        fc.secagg.digest_of(b"a", "a")
    assert fc.secagg.digest_of(bytearray(b"a"), memoryview(b"b")) == fc.secagg.digest_of(b"a", b"b")


@pytest.mark.parametrize("groups", [0, 3, 1.5, 1.0, True, "2", None])
def test_groups_are_a_whole_number_that_members_form(groups):
    roster = fc.secagg.Roster({i: key_of(i + 1).public_key().public_bytes_raw() for i in range(4)})
    for use in (
        lambda: fc.secagg.partition([1, 2, 3, 4], groups, bytes(32)),
        lambda: fc.secagg.group_parameters(4, groups, corrupt=0, length=1, bound=1),
        lambda: fc.secagg.tolerated(4, groups, 1),
        lambda: fc.secagg.GroupDraw(roster, 0, groups, b"session", 1),
    ):
        with pytest.raises(PrivacyError, match=f"groups: got {groups!r} of 4 members, expected a whole number"):
            use()


def test_groups_are_drawn_from_each_member_once():
    with pytest.raises(PrivacyError, match="members: 2 is there twice"):
        fc.secagg.partition([1, 2, 2, 3], 2, bytes(32))
    roster = fc.secagg.Roster({i: key_of(i + 1).public_key().public_bytes_raw() for i in range(4)})
    draw = fc.secagg.GroupDraw(roster, 0, 2, b"session", 1)
    for given in (None, []):
        with pytest.raises(PrivacyError, match=r"group draw: got .*, expected a mapping"):
            draw.reveal(given)


@pytest.mark.parametrize(
    "given",
    [{"bound": "7"}, {"bound": True}, {"bound": 0}, {"bound": 7.0}, {"largest": "1"}, {"largest_weight": float("nan")}],
)
def test_a_quantizer_is_of_numbers(given):
    ((name, value),) = given.items()
    with pytest.raises(RangeError, match=f"{name}: got {value!r}, expected"):
        fc.secagg.Quantizer(**({"bound": 7, "largest": 1.0} | given))


def test_what_is_quantised_and_averaged_are_vectors_of_numbers():
    torch = pytest.importorskip("torch")
    quantizer = fc.secagg.Quantizer(7, 1.0)
    for values in (torch.ones(2, requires_grad=True), torch.ones(2, dtype=torch.bfloat16), [[1.0], [1.0, 2.0]], None):
        with pytest.raises(DTypeError, match=r"values: got .*expected a vector"):
            quantizer.weighted(values)
    with pytest.raises(WeightError, match="weight: got '1'"):
        quantizer.weighted(np.ones(2), "1")
    for total in (np.zeros(0, int), [], 3):
        with pytest.raises(ShapeError, match="sum: got shape"):
            quantizer.mean(total)
    with pytest.raises(ShapeError, match="parts: got no shapes"):
        fc.secagg.Parts({})


def test_a_policy_and_an_offer_have_values_of_their_kinds(tmp_path):
    for given in ({"smallest_cohort": -1}, {"corrupt": 1.0}, {"model": "A" * 64}, {"methods": "fedit"}):
        ((name, value),) = given.items()
        with pytest.raises(ConfigError, match=f"^{name}: got {value!r}, expected"):
            fc.secagg.Policy(**given)
    with pytest.raises(StorageError, match="expected the client's policy"):
        fc.secagg.Policy.load(tmp_path)
    for epsilon in (None, "3"):
        with pytest.raises(PrivacyError, match=f"epsilon: got {epsilon!r}, expected a number"):
            fc.secagg.Offer(rig_of().p, epsilon)


def test_tokens_are_counted_whatever_whole_numbers_they_are():
    for tokens in (10, np.int64(10), [4, 6], np.array([4, 6])):
        assert "trained on 10 tokens" in fc.secagg.leaks(2, hidden_size=64, tokens=tokens)[0]


def test_numbers_of_numpy_are_taken_wherever_a_number_is():
    whole = np.int64
    roster = fc.secagg.Roster({i: key_of(i + 1).public_key().public_bytes_raw() for i in range(4)})
    draws = [fc.secagg.GroupDraw(roster, 0, kind(2), b"session", kind(3)) for kind in (int, whole)]
    assert draws[0]._about == draws[1]._about
    members = [1, 2, 3, 4]
    assert fc.secagg.partition(members, whole(2), bytes(32)) == fc.secagg.partition(members, 2, bytes(32))
    made = fc.secagg.Quantizer(whole(7), np.float32(0.5), np.int8(3))
    assert repr(made) == repr(fc.secagg.Quantizer(7, 0.5, 3.0))
    assert made.weighted(np.ones(2), np.int8(1)).tail == 2
    parameters = [
        fc.secagg.Parameters.choose(100, length=1, bound=1, corrupt=part) for part in (0.125, np.float32(0.125))
    ]
    assert parameters[0] == parameters[1]


@pytest.mark.parametrize("value", [True, False, np.True_])
def test_true_and_false_are_no_numbers(value):
    torch = pytest.importorskip("torch")
    for one in (value, torch.tensor(bool(value))):
        for name in ("largest", "largest_weight", "bound"):
            with pytest.raises(RangeError, match=f"{name}: got .*, expected"):
                fc.secagg.Quantizer(**({"bound": 7, "largest": 1.0} | {name: one}))
        with pytest.raises(WeightError, match=r"weight: got .*, expected one above 0"):
            fc.secagg.Quantizer(7, 1.0).weighted(np.ones(2), one)
        for name in ("n", "corrupt", "dropout", "least_included", "modulus_bits"):
            with pytest.raises(PrivacyError, match=f"{name}: got .*, expected a"):
                fc.secagg.Parameters.choose(**({"n": 10, "length": 4, "bound": 0, "modulus_bits": 9} | {name: one}))


@pytest.mark.parametrize("name", ["n", "length", "bound", "least_included"])
def test_a_number_without_end_is_refused_in_one_line(name):
    with pytest.raises(PrivacyError, match=f"{name}: got an integer of 16610 bits, expected a whole number from"):
        fc.secagg.Parameters.choose(**({"n": 10, "length": 4, "bound": 1} | {name: 10**5000}))


@pytest.mark.parametrize(
    "name",
    [10**5000, -(10**5000), 1 << 63, -(1 << 63) - 1, "x" * 1025, "\u00e9" * 513, "a\ud800", "\x1b" * 9999],
    ids=["many digits", "many digits below 0", "2^63", "below -2^63", "1025", "1026", "surrogate", "escapes"],
)
def test_identifiers_without_end_are_refused_in_one_short_line(name):
    key = key_of(1).public_key().public_bytes_raw()
    rig = rig_of()
    about = (rig.roster, b"session", 1, bytes(32))
    for use, error, why in (
        (lambda: fc.secagg.Roster({name: key}), PrivacyError, "roster: got .* as an identifier, expected a whole"),
        (lambda: fc.secagg.Roster({name: b""}), PrivacyError, "roster: "),
        (lambda: rig.server.receive(name, b""), Forged, "not in the roster"),
        (lambda: rig.server.drop(name), PrivacyError, "enrol it first"),
        (lambda: Client(rig.p, name, key_of(1), *about), PrivacyError, "enrol it first"),
        (lambda: fc.secagg.simulate([[1]] * 3, {"mask": [name]}), PrivacyError, "has no vector"),
        (lambda: fc.secagg.simulate([[1]] * 3, {name: [1]}), PrivacyError, "dropouts: got stage"),
        (lambda: fc.secagg.partition([name, name], 1, bytes(32)), PrivacyError, "is there twice"),
    ):
        with pytest.raises(error, match=why) as caught:
            use()
        assert len(str(caught.value)) < 400
        assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "name", [(1 << 63) - 1, -(1 << 63), "x" * 1024, "\u00e9" * 512], ids=["most", "least", "ASCII", "letters of two"]
)
def test_identifiers_up_to_the_limits_are_taken(name):
    roster = fc.secagg.Roster({name: key_of(1).public_key().public_bytes_raw()})
    assert fc.secagg.Roster.from_bytes(roster.to_bytes()).ids == [name]


def test_a_roster_of_bytes_with_numbers_beyond_64_bits_is_refused():
    key = key_of(1).public_key().public_bytes_raw().hex()
    for digits, why in ((20, "as an identifier"), (5000, "damaged")):
        with pytest.raises(PrivacyError, match=f"roster: .*{why}"):
            fc.secagg.Roster.from_bytes(f'[[{"9" * digits}, "{key}"]]'.encode())
