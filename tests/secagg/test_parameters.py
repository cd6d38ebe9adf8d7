"""Neighbours and thresholds: tails against whole numbers, bounds that hold, parameters that were received."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from secagg.driver import complete, sparse

import fedcore as fc
from fedcore.errors import FormatError, PrivacyError, RangeError
from fedcore.ops.streams import word_counter
from fedcore.privacy.secagg.graph import Graph, drawn
from fedcore.privacy.secagg.parameters import Parameters
from fedcore.privacy.secagg.search import FAILURE, SECURITY, bounds, most_in_degree
from fedcore.privacy.secagg.tails import binomial, gap_in_circle, hypergeometric, least_closed


def exact_hypergeometric(population, marked, drawn, least) -> Fraction:
    ways = sum(math.comb(marked, x) * math.comb(population - marked, drawn - x) for x in range(least, drawn + 1))
    return Fraction(ways, math.comb(population, drawn))


def log2(value: Fraction) -> float:
    """Of a fraction, however small."""
    return -math.inf if not value else math.log2(value.numerator) - math.log2(value.denominator)


@pytest.mark.parametrize(("population", "marked", "drawn"), [(9, 4, 3), (99, 30, 20), (999, 100, 100), (999, 333, 60)])
def test_hypergeometric_tails_are_exact(population, marked, drawn):
    for least in range(0, drawn + 2):
        exact = log2(exact_hypergeometric(population, marked, drawn, least)) if least <= drawn else -math.inf
        found = hypergeometric(population, marked, drawn, least)
        assert found == exact or (exact <= found + 1e-12 and found <= exact + 1e-5)  # never below


@pytest.mark.parametrize("chance", [Fraction(1, 10), Fraction(9, 10)])
def test_binomial_tails_are_exact(chance):
    for least in range(0, 42):
        ways = [math.comb(40, x) * chance**x * (1 - chance) ** (40 - x) for x in range(least, 41)]
        exact, found = log2(sum(ways, Fraction(0))), binomial(40, float(chance), least)
        assert found == exact or (exact - 1e-12 <= found <= exact + 1e-5)


def test_gaps_and_closed_sets_are_bounded_by_what_is_seen():
    """Rates of random graphs, each seen more often than the bound allows for."""
    rng, trials, n = np.random.default_rng(1), 4000, 12
    gone = np.array([rng.permutation(n) < 6 for _ in range(trials)])
    seen = np.any(np.all([np.roll(gone, i, 1) for i in range(3)], 0), 1).mean()
    assert 0.2 < seen <= 2 ** gap_in_circle(n, 6, 3) * 1.02
    size = least_closed(n, 0, 3, 2, -0.5)
    closed = 0
    for _ in range(100):
        draws = [set(rng.permutation([j for j in range(n) if j != i])[:3]) for i in range(n)]
        closed += any(_closed(draws, subset, 2) for subset in _subsets(n, size - 1))
    assert 0 < closed / 100 <= 2**-0.5


def _subsets(n, most):
    return (s for s in range(1, 1 << n) if bin(s).count("1") <= most)


def _closed(draws, subset, t):
    members = {i for i in range(len(draws)) if subset >> i & 1}
    return all(len(draws[i] & members) >= t for i in members)


@pytest.mark.parametrize(
    ("n", "adversary"),
    [(n, adversary) for n in (2, 3, 10, 64, 65, 100, 500) for adversary in ("semi_honest", "malicious")]
    + [(10_000, "semi_honest")],
)
def test_what_is_chosen_keeps_both_bounds(n, adversary):
    p = Parameters.choose(n, length=7, bound=100, corrupt=0.1, dropout=0.1, adversary=adversary)
    found = bounds(adversary, n, n // 10, n // 10, p.neighbours, p.threshold, p.in_degree)
    assert found.insecure <= SECURITY
    assert found.void <= FAILURE
    assert p.min_included >= 2
    assert p.complete == (n <= 64)
    assert p.modulus_bits == math.ceil(math.log2(n * 201))
    assert Parameters.from_bytes(p.to_bytes()) == p
    if adversary == "malicious":
        assert 2 * p.threshold > p.neighbours + (n // 10 if p.complete else 0)
    if not p.complete and adversary == "semi_honest":
        fewer = bounds(adversary, n, n // 10, n // 10, p.neighbours - 2, p.threshold - 2, p.neighbours - 2)
        assert not fewer.hold()


def test_the_choice_is_explained():
    text = Parameters.choose(300, length=7, bound=100, adversary="malicious").explain()
    for part in (
        "300 clients, at most 30 of them corrupt",
        "2t = ",
        "2^-40",
        "2^-20",
        "modulo 2^16",
        "whatever the server",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"threshold": 2}, "honest clients in a sum|exposure"),
        ({"corrupt": 3}, "exposure"),
        ({"modulus_bits": 13}, "would wrap"),
        ({"modulus_bits": 65}, "modulus_bits"),
        ({"neighbours": 0}, "neighbours"),
        ({"threshold": 5}, "threshold"),
        ({"adversary": "kind"}, "expected one of"),
        ({"length": 0}, "length"),
    ],
)
def test_parameters_that_do_not_protect_cannot_be_made(change, why):
    with pytest.raises(PrivacyError, match=why):
        replace(complete(5, 3, "malicious"), **change)


def test_parameters_from_others_are_checked():
    data = bytearray(sparse("semi_honest").to_bytes())
    with pytest.raises(FormatError):
        Parameters.from_bytes(bytes(data[:-1]))
    rng, refused = np.random.default_rng(2), 0
    for _ in range(300):
        changed = bytearray(data)
        changed[rng.integers(len(data))] = rng.integers(256)
        try:
            p = Parameters.from_bytes(bytes(changed))
        except (PrivacyError, FormatError):
            refused += 1
        else:
            assert p.chances.insecure <= SECURITY
    assert refused > 100


def test_parameters_made_to_be_slow_to_check_are_not():
    """The largest cohort, beyond a power of two by one, in which only sets of nearly all are closed."""
    started = time.process_time()
    p = Parameters(65535, 1, 1, 18, 0, 0, "malicious", 255, 200, 400)
    assert Parameters.from_bytes(p.to_bytes()).chances.honest == p.chances.honest > 50_000
    assert time.process_time() - started < 5  # size by size, with a new table for each, it was a minute


def test_the_most_that_may_draw_a_client_is_the_first_that_does():
    n, k = 300, 40
    chances = [math.log2(n) + binomial(n - 1, k / (n - 1), most + 1) for most in range(k, n)]
    assert most_in_degree(n, k) == k + next(i for i, chance in enumerate(chances) if chance <= FAILURE - 1)


@pytest.mark.parametrize(("stream", "bits", "most"), [("aes256ctr", 33, 1 << 33), ("aes256ctr", 32, 1 << 34)])
def test_no_vector_is_longer_than_its_stream(stream, bits, most):
    about = {"bound": 0, "modulus_bits": bits, "stream": stream}
    assert word_counter("mask_add", stream, 0, complete(3, 2, length=most, **about).length, 8 if bits > 32 else 4) == 0
    with pytest.raises(PrivacyError, match=rf"length: got {most + 1}, but {stream} masks at most 2\^.. coordinates"):
        complete(3, 2, length=most + 1, **about)
    with pytest.raises(RangeError, match="past the end"):
        word_counter("mask_add", stream, 0, most + 1, 8 if bits > 32 else 4)
    longest = complete(3, 2, length=1 << 35, **about | {"stream": "chacha20"}).length
    assert word_counter("mask_add", "chacha20", 0, longest, 8 if bits > 32 else 4) == 0


def test_impossible_cohorts_are_refused_in_words():
    with pytest.raises(PrivacyError, match="admit no threshold"):
        Parameters.choose(10, length=1, bound=1, corrupt=0.5, dropout=0.5)
    with pytest.raises(PrivacyError, match="expected a whole number from 2"):
        Parameters.choose(1, length=1, bound=1)
    with pytest.raises(PrivacyError, match="neither or both"):
        Parameters.choose(5, length=1)


@pytest.mark.parametrize(("n", "corrupt", "dropout"), [(257, 0.2, 0.2), (280, 0.1, 0.25), (350, 0.1, 0.33)])
def test_clients_may_draw_more_than_half_of_all_others(n, corrupt, dropout):
    """Just above where each shares with all others, a client needs more neighbours than n / 2, and can have them."""
    p = Parameters.choose(n, length=10, bound=5, corrupt=corrupt, dropout=dropout, adversary="malicious")
    assert (n - 2) // 2 < p.neighbours <= 255
    assert bounds("malicious", n, p.corrupt, p.dropout, p.neighbours, p.threshold, p.in_degree).hold()


def test_the_circle_is_symmetric_regular_and_another_each_round():
    p = Parameters.choose(100, length=1, bound=1)
    one, other = Graph(p, bytes(32)), Graph(p, b"\x01" * 32)
    lists = [one.holders(i) for i in range(100)]
    assert all(
        len(set(held)) == p.neighbours and i not in held and held == sorted(held) for i, held in enumerate(lists)
    )
    assert all(i in lists[j] for i, held in enumerate(lists) for j in held)
    assert sum(lists[i] == other.holders(i) for i in range(100)) == 0


def test_draws_are_uniform_over_all_others():
    p = sparse("malicious")
    counts = np.zeros(12)
    for seed in range(1000):
        held = drawn(p, seed.to_bytes(32, "big"), 5)
        assert len(set(held)) == 4
        assert held == sorted(held)
        counts[held] += 1
    assert counts[5] == 0
    assert ((np.delete(counts, 5) - 1000 * 4 / 11) ** 2).sum() / (1000 * 4 / 11) < 40  # χ² with ten degrees


def test_messages_of_distributed_noise_have_parameters_of_their_own():
    one = fc.privacy.Distributed(1.0, 1.0, 20, 15, 2, 100, bytes(32))
    p = Parameters.for_distributed(one)
    assert (p.clients, p.length, 1 << p.modulus_bits, p.bound) == (20, one.padded, one.modulus, 0)
    assert p.min_honest >= one.fewest - one.corrupt
    with pytest.raises(PrivacyError, match="make the mechanism with fewest"):
        Parameters.for_distributed(
            fc.privacy.Distributed(1.0, 1.0, 100, 90, 5, 100, bytes(32)), adversary="malicious", dropout=0.2
        )
    for adversary, fewest in (("malicious", 60), ("semi_honest", 200)):  # 1 - fewest / n alone admits no threshold
        large = Parameters.for_distributed(
            fc.privacy.Distributed(1.0, 1.0, 300, fewest, 30, 10, bytes(32)), adversary=adversary
        )
        assert (large.min_included, large.complete) == (
            max(fewest, large.chances.honest * (adversary == "malicious")),
            False,
        )
        assert large.min_honest >= fewest - 30
        assert large.dropout > 0


def test_numbers_of_other_libraries_become_pythons():
    made = Parameters.choose(np.int64(10), length=np.prod((3, 4)), bound=np.int32(9))
    assert made == Parameters.choose(10, length=12, bound=9)
    assert {type(getattr(made, name)) for name in ("clients", "length", "bound", "threshold")} == {int}
    assert made.to_bytes() == Parameters.choose(10, length=12, bound=9).to_bytes()
    for bad in (True, 3.0, "3", np.float64(3)):
        with pytest.raises(PrivacyError, match=r"length: got .*, expected a whole number from 1"):
            Parameters.choose(10, length=bad, bound=9)


def test_honest_clients_are_promised_only_where_their_sum_cannot_come_apart():
    """54 of 100 away in two arcs as wide as half a neighbourhood would leave two sums of 23 on a circle."""
    noise = fc.privacy.Distributed(1.0, 1.0, 100, 46, 0, 8, bytes(32))
    for dropout in (0.4, None):
        p = Parameters.for_distributed(noise, dropout=dropout)
        assert p.min_honest == 46
        assert p.complete or p.neighbours > 54
    few = Parameters.choose(1000, length=3, bound=9, corrupt=0.05, least_included=60)
    assert few.min_included == 60
    assert few.min_honest == max(few.threshold + 1 - 50, 2) < 10
    few = replace(few, least_included=1000 - few.dropout)
    assert few.min_honest == 1000 - few.dropout - 50


def test_groups_allow_for_the_corrupt_members_that_chance_puts_into_one():
    """c of a group by whole numbers: the least that a union over the groups leaves a chance of 2^-41 at most."""
    for members, groups in ((1000, 4), (203, 2)):
        made, count = fc.secagg.group_parameters(members, groups, corrupt=0.02, length=3, bound=9), members // 50
        assert sorted(made) == sorted({members // groups, -(-members // groups)})
        for size, p in made.items():
            more = [groups * exact_hypergeometric(members, count, size, p.corrupt + i) for i in (0, 1)]
            assert log2(more[1]) <= -41 < log2(more[0])
            assert (p.clients, p.length, p.bound) == (size, 3, 9)
            assert p.corrupt > size // 50
    assert fc.secagg.group_parameters(50, 1, corrupt=0.1, length=1, bound=1)[50].corrupt == 5
    with pytest.raises(PrivacyError, match="two honest ones in each"):
        fc.secagg.group_parameters(60, 20, corrupt=0.1, length=1, bound=1)
    whole = Parameters.choose(30, length=2, bound=5, corrupt=0.1, dropout=0)
    with pytest.raises(PrivacyError, match=r"3 of them corrupt .* may put 3 corrupt ones into a group of 3"):
        fc.secagg.simulate([np.zeros(2, np.int64)] * 30, parameters=whole, groups=10)
    ran = fc.secagg.simulate([np.ones(2, np.int64)] * 30, parameters=whole, groups=4)
    assert sorted(ran.sum[:, 0].tolist()) == [7, 7, 8, 8]


@pytest.mark.parametrize("marked", [-1, 101])
def test_more_marked_ones_than_there_are_have_no_chance(marked):
    with pytest.raises(PrivacyError, match="expected from 0 to 100"):
        hypergeometric(100, marked, 25, 1)


@pytest.mark.parametrize(("members", "groups", "gone"), [(60, 6, 6), (24, 4, 2), (1000, 8, 30)])
def test_groups_allow_for_the_dropouts_that_chance_puts_into_one(members, groups, gone):
    """d of a group by whole numbers: the least that leaves all groups a chance of 2^-21 at most."""
    made = fc.secagg.group_parameters(members, groups, corrupt=0, dropout=gone / members, length=1, bound=1)
    for size, p in made.items():
        more = [groups * exact_hypergeometric(members, gone, size, p.dropout + i) for i in (0, 1)]
        assert log2(more[0]) > -21
        assert more[1] == 0 or log2(more[1]) <= -21
        assert p.dropout > gone // groups + 1


@pytest.mark.parametrize(("n", "most"), [(2, (1 << 62) - 1), (3, (2**64 // 3 - 1) // 2)])
def test_a_bound_whose_sums_need_more_than_64_bits_is_told_as_that(n, most):
    assert Parameters.choose(n, length=1, bound=most).modulus_bits == 64
    said = rf"bound: got {most + 1}, {n} clients' sums of it need 65 bits, expected at most .* = {most}$"
    with pytest.raises(PrivacyError, match=said):
        Parameters.choose(n, length=1, bound=most + 1)
