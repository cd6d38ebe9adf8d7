"""Groups: a row each for a robust rule, what dropouts they outlive, void ones, what is refused."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from secagg.driver import key_of

import fedcore as fc
from fedcore.errors import Forged, PrivacyError, Replayed, Void


def test_group_sums_let_a_median_outvote_a_liar():
    rng = np.random.default_rng(6)
    vectors = rng.integers(40, 61, (30, 20))
    vectors[7] = 100_000
    found = fc.secagg.simulate(list(vectors), {"mask": [2]}, groups=5)
    assert found.sum.shape == (5, 20)
    assert sorted(found.survivors) == [i for i in range(30) if i != 2]
    for members, row in zip(found.groups, found.sum, strict=True):
        assert (row == vectors[members].sum(0)).all()
    means = (found.sum / [[len(members)] for members in found.groups]).astype(np.float32)
    assert np.abs(fc.rules.Median()(means) - 50).max() < 10.1
    assert np.abs(means.mean(0) - 50).max() > 1000
    assert fc.secagg.tolerated(30, 5, 2) == (6, True)
    assert fc.secagg.tolerated(30, 5, 3) == (6, False)
    with pytest.raises(PrivacyError, match="group of one"):
        fc.secagg.simulate(list(vectors), groups=20)


@pytest.mark.parametrize(("members", "groups", "gone"), [(60, 6, 6), (24, 4, 2)])
def test_groups_outlive_all_the_dropouts_that_were_asked_for_in_one_of_them(members, groups, gone):
    p = fc.secagg.Parameters.choose(members, length=2, bound=1, corrupt=0, dropout=gone / members)
    away = fc.secagg.partition(range(members), groups, bytes(32))[0][:gone]
    ones = [np.ones(2, np.int64)] * members
    found = fc.secagg.simulate(ones, {"mask": away}, p, groups=groups, seed=bytes(32))
    assert found.void == []
    assert found.sum[:, 0].tolist() == [members // groups - gone, *[members // groups] * (groups - 1)]


def test_a_void_group_lacks_its_row_and_the_others_go_on():
    parts = fc.secagg.partition(range(12), 3, bytes(32))
    vectors = [np.full(2, i) for i in range(12)]
    made = fc.secagg.group_parameters(12, 3, corrupt=0, dropout=1 / 12, length=2, bound=11)
    found = fc.secagg.simulate(vectors, {"mask": parts[1][:2]}, made, groups=3, seed=bytes(32))
    assert found.groups == [parts[0], parts[2]]
    assert found.sum.tolist() == [[sum(part)] * 2 for part in found.groups]
    assert len(found.void) == 1
    assert (
        found.bytes_up > fc.secagg.simulate(vectors, {"advertise": parts[1]}, made, groups=3, seed=bytes(32)).bytes_up
    )
    none = fc.secagg.simulate(vectors, {"share": range(12)}, made, groups=3)
    assert (none.sum.shape, none.groups, len(none.void)) == ((0, 2), [], 3)
    assert none.bytes_up > 0
    with pytest.raises(PrivacyError, match="expected groups="):
        fc.secagg.simulate(vectors, parameters=made)


def test_dropouts_that_groups_do_not_stand_are_refused_with_what_they_do():
    about = {"length": 1, "bound": 1, "adversary": "malicious", "corrupt": 0.1}
    with pytest.raises(PrivacyError, match=r"groups: 4 of 24 members, 2 .* at most 1 of 24 dropping out$"):
        fc.secagg.group_parameters(24, 4, dropout=0.25, **about)
    assert fc.secagg.group_parameters(24, 4, dropout=1 / 24, **about)[6].dropout == 1
    with pytest.raises(PrivacyError, match=r"3 dropping out: n: 2 clients, .* at most 0 of 4"):
        fc.secagg.group_parameters(4, 2, dropout=0.99, **about)


def exactly(population: int, marked: int, drawn: int, least: int) -> Fraction:
    """P[X >= least] of X marked ones among `drawn` of `population`."""
    ways = sum(math.comb(marked, x) * math.comb(population - marked, drawn - x) for x in range(least, drawn + 1))
    return Fraction(ways, math.comb(population, drawn))


@pytest.mark.parametrize(
    ("members", "groups", "adversary"),
    [
        (1000, 4, "semi_honest"),
        (1000, 2, "malicious"),
        (1000, 4, "malicious"),
        (1003, 7, "semi_honest"),
        (10_000, 40, "semi_honest"),
    ],
)
def test_all_groups_together_keep_both_bounds(members, groups, adversary):
    """By whole numbers: unions over the clients of a group, over the groups, and with what chance puts into one."""
    tenth = members // 10
    made = fc.secagg.group_parameters(members, groups, corrupt=0.1, dropout=0.1, length=1, bound=1, adversary=adversary)
    insecure = void = Fraction(0)
    for size, p in made.items():
        k, t = p.neighbours, p.threshold
        count = members % groups if size * groups > members else groups - members % groups
        worst = 2 * t - k if p.malicious else t
        bad = exactly(members, tenth, size, p.corrupt + 1) + size * exactly(size - 1, p.corrupt, k, worst)
        if p.malicious:
            bad += Fraction(2**p.chances.apart)
        else:
            away = p.corrupt + p.dropout
            bad += Fraction(size * math.comb(away, k // 2), math.comb(size, k // 2))
        lost = exactly(members, tenth, size, p.dropout + 1) + size * exactly(size - 1, p.dropout, k, k - t + 1)
        if p.malicious:
            lost += size * _drawn_by_more_than(p.in_degree, size - 1, Fraction(k, size - 1))
        insecure, void = insecure + count * bad, void + count * lost
        assert (p.groups, fc.secagg.Parameters.from_bytes(p.to_bytes())) == (groups, p)
        assert f"One of {groups} groups: over all of them" in p.explain()
        if not p.complete:
            with pytest.raises(PrivacyError, match=r"of exposure .* expected 2\^-"):
                replace(p, groups=members)
    assert insecure <= Fraction(1, 2**40)
    assert void <= Fraction(1, 2**20)
    one = fc.secagg.group_parameters(members, 1, corrupt=0.1, dropout=0.1, length=1, bound=1, adversary=adversary)
    assert one[members] == fc.secagg.Parameters.choose(members, length=1, bound=1, adversary=adversary)


def _drawn_by_more_than(most: int, others: int, chance: Fraction) -> Fraction:
    return sum(
        (math.comb(others, x) * chance**x * (1 - chance) ** (others - x) for x in range(most + 1, others + 1)),
        Fraction(0),
    )


def test_parameters_of_other_numbers_of_clients_are_refused():
    p = fc.secagg.Parameters.choose(60, length=3, bound=5, corrupt=0.05, adversary="malicious")
    vectors = [np.ones(3, np.int64)] * 24
    with pytest.raises(PrivacyError, match="got some for 60 clients, expected for the 24"):
        fc.secagg.simulate(vectors, parameters=p, groups=2)
    with pytest.raises(PrivacyError, match=r"groups of \[60\], expected also of \[12\]"):
        fc.secagg.simulate(vectors, parameters={60: p}, groups=2)


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("name", ["corrupt", "dropout"])
@pytest.mark.parametrize("part", [1.5, 1.0, -0.1, float("nan"), "0.1"])
def test_parts_of_members_that_are_none_are_refused(groups, name, part):
    with pytest.raises(PrivacyError, match=f"^{name}: got .*, expected a part of the clients"):
        fc.secagg.group_parameters(100, groups, **{"corrupt": 0.1, "length": 1, "bound": 1, name: part})


@pytest.mark.parametrize("adversary", ["semi_honest", "malicious"])
def test_what_has_nothing_to_do_with_groups_is_not_blamed_on_them(adversary):
    about = {"corrupt": 0.0, "dropout": 0.0, "length": 1, "bound": 1, "adversary": adversary}
    assert sorted(fc.secagg.group_parameters(24, 4, **about)) == [6]
    for wrong, why in (({"stream": "x"}, "^parameters: got"), ({"length": 0}, "^length: got 0")):
        with pytest.raises(PrivacyError, match=why) as caught:
            fc.secagg.group_parameters(24, 4, **about | wrong)
        assert "fewer groups" not in str(caught.value)


def test_groups_keep_the_fewest_that_a_sum_is_to_have():
    one = fc.privacy.Distributed(1.0, 1.0, 20, 18, 2, 8, bytes(32))
    with pytest.raises(PrivacyError, match="got 18, which a group of 10"):
        fc.secagg.simulate(
            [np.zeros(8, np.uint32)] * 20, parameters=fc.secagg.Parameters.for_distributed(one), groups=2
        )


@pytest.fixture
def draws():
    roster = fc.secagg.Roster({i: key_of(i + 1).public_key().public_bytes_raw() for i in range(12)})
    return {i: fc.secagg.GroupDraw(roster, i, 3, b"session", 3) for i in roster}


def test_members_draw_the_same_groups_from_what_all_revealed(draws):
    commitments = {i: draw.commitment for i, draw in draws.items()}
    values = {i: draw.reveal(commitments) for i, draw in draws.items()}
    found = [tuple(draw.group(values)) for draw in draws.values()]
    assert all(i in part for i, part in enumerate(found))
    assert sorted(len(part) for part in set(found)) == [4, 4, 4]
    assert draws[0].reveal(dict(reversed(commitments.items()))) == values[0]  # the same again


def test_one_members_value_moves_all_groups(draws):
    commitments = {i: draw.commitment for i, draw in draws.items()}
    values, found = {i: draw.reveal(commitments) for i, draw in draws.items()}, set()
    for _ in range(4):
        other = fc.secagg.GroupDraw(draws[0]._roster, 11, 3, b"session", 3)
        draws[0]._commitments = commitments | {11: other.commitment}
        found.add(tuple(draws[0].group(values | {11: other._value})))
    assert len(found) > 1


def test_who_would_choose_groups_is_refused(draws):
    commitments = {i: draw.commitment for i, draw in draws.items()}
    with pytest.raises(PrivacyError, match="reveal first"):
        draws[0].group({})
    with pytest.raises(
        PrivacyError, match="bytes of 7; a value is revealed once all have"
    ):  # the server holds one back until it has seen a value
        draws[0].reveal({i: c for i, c in commitments.items() if i != 7})
    with pytest.raises(Forged, match="this member's place"):
        draws[0].reveal(commitments | {0: bytes(32)})
    values = {i: draw.reveal(commitments) for i, draw in draws.items()}
    with pytest.raises(Replayed, match="revealed once"):
        draws[0].reveal(commitments | {7: bytes(32)})
    # honest or not: whoever carried it could have changed it, and then groups without 7 would be the carrier's choice
    with pytest.raises(Forged, match="another value of 7 than was committed to: by 7, or by who carried it") as caught:
        draws[0].group(values | {7: bytes(32)})
    assert "without" not in str(caught.value)
    with pytest.raises(Void, match="bytes of 7; the draw is void, begin a new one among the same") as caught:
        draws[0].group({i: v for i, v in values.items() if i != 7})
    assert "without" not in str(caught.value)
    # who copies another's commitment, and its value, did not commit to that
    again = {i: fc.secagg.GroupDraw(draws[0]._roster, i, 3, b"session", 3) for i in draws}
    copied = {i: draw.commitment for i, draw in again.items()} | {7: again[0].commitment}
    value = again[0].reveal(copied)
    with pytest.raises(Forged, match="another value of 7"):
        again[0].group({i: draw._value for i, draw in again.items()} | {7: value})


@pytest.mark.parametrize(
    ("groups", "session", "number"), [(4, b"session", 3), (3, b"another", 3), (3, b"session", 4), (3, b"session", 2)]
)
def test_a_draw_is_of_one_number_of_groups_session_and_round(draws, groups, session, number):
    """A member that was told of another one, or whose commitment and value are those of another round's draw."""
    roster = draws[0]._roster
    other = fc.secagg.GroupDraw(roster, 7, groups, session, number)
    commitments = {i: draw.commitment for i, draw in draws.items()} | {7: other.commitment}
    values = {i: (other if i == 7 else draw).reveal(commitments) for i, draw in draws.items()}
    with pytest.raises(Forged, match="another value of 7"):
        draws[0].group(values)


def test_members_that_were_shown_other_values_have_other_digests(draws):
    """A server may show each member commitments and values of its own making beside the member's: none can tell."""
    commitments = {i: draw.commitment for i, draw in draws.items()}
    with pytest.raises(PrivacyError, match=r"digest: .* call group first"):
        _ = draws[0].digest
    made = {i: fc.secagg.GroupDraw(draws[0]._roster, i, 3, b"session", 3) for i in draws}
    shown = {i: draw.commitment for i, draw in made.items()} | {0: draws[0].commitment}
    draws[0].group({i: draw._value for i, draw in made.items()} | {0: draws[0].reveal(shown)})
    values = {i: draw._value for i, draw in draws.items()}
    for i in range(1, 12):
        draws[i].reveal(commitments)
        draws[i].group(values)
    assert len({draws[i].digest for i in range(1, 12)}) == 1
    assert draws[0].digest != draws[1].digest
    assert len(draws[0].digest) == 32


def test_no_draw_is_of_groups_of_one(draws):
    with pytest.raises(PrivacyError, match="group of one"):
        fc.secagg.GroupDraw(draws[0]._roster, 0, 7, b"session", 3)


@pytest.mark.parametrize("seed", [b"x", b"", bytes(33), "0" * 32, 7, [0] * 32])
def test_a_seed_of_groups_is_of_32_bytes(seed):
    got = f"{len(seed)} bytes" if isinstance(seed, bytes) else type(seed).__name__
    for use in (
        lambda: fc.secagg.partition(range(6), 2, seed),
        lambda: fc.secagg.simulate([[1]] * 6, groups=2, seed=seed),
    ):
        with pytest.raises(PrivacyError, match=f"^seed: got {got}, expected 32 bytes, the same for all sides"):
            use()
