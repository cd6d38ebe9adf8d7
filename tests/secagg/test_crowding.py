"""Members that all draw the same holders: they lose them, hardly anybody else does, and the sum comes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from secagg.crowds import draws
from secagg.driver import BOUND, SEALING, Rig

from fedcore.privacy.secagg.crowding import MOST_CUT, uncrowded
from fedcore.privacy.secagg.neighbourhoods import Neighbourhoods
from fedcore.privacy.secagg.parameters import Parameters
from fedcore.privacy.secagg.server import Server


@pytest.mark.parametrize(
    ("n", "corrupt", "dropout", "victims", "each", "lose"),
    [
        (400, 0.2, 0.02, 60, None, 12),
        (150, 0.3, 0.02, 11, 11, 4),
        (400, 0.3, 0.02, 7, 5, 20),
        (1000, 0.3, 0.05, 10, 4, 40),
        (1000, 0.3, 0.05, 5, 2, 40),
        (1000, 0.1, 0.05, 98, None, 12),
        (1000, 0.1, 0.05, 2, 2, 20),
        (1000, 0.3, 0.05, 1, 1, 60),
    ],
)
def test_who_crowds_others_loses_them_and_hardly_anybody_else_does(n, corrupt, dropout, victims, each, lose):
    p = Parameters.choose(n, length=4, bound=BOUND, corrupt=corrupt, dropout=dropout, adversary="malicious")
    drawn, around, other = draws(n, p.neighbours, p.corrupt, victims, 1, each), Neighbourhoods(p), Neighbourhoods(p)
    assert max(np.bincount(np.concatenate([*drawn.values()]))) > p.in_degree
    for i in drawn:
        around.add(i, drawn[i])
        other.add(n - 1 - i, drawn[n - 1 - i])
    assert other.holders == around.holders
    assert max(map(len, around.wards.values())) == p.in_degree
    out = drawn.keys() - around.holders.keys()
    lost = {i: set(drawn[i]) - set(holders) - out for i, holders in around.holders.items()}
    assert not any(i in drawn[j] or i in around.neighbours[j] for i, cut in lost.items() for j in cut)
    assert max(map(len, lost.values())) <= MOST_CUT
    assert sum(i >= p.corrupt for i in drawn.keys() - around.going(set(drawn))) <= 1
    assert sum(i >= p.corrupt and len(cut) > 0 for i, cut in lost.items()) <= lose


def test_nobody_is_drawn_too_often_and_no_pair_that_drew_each_other_is_cut():
    rng, left_out = np.random.default_rng(3), 0
    for trial in range(300):
        n = int(rng.integers(3, 15))
        k = int(rng.integers(1, n))
        most, popular = int(rng.integers(k, n)), rng.random(n) ** (trial % 3)
        drawn = {}
        for i in rng.permutation(n)[: rng.integers(1, n + 1)].tolist():
            order = np.argsort(-rng.random(n) * popular)
            drawn[i] = sorted(order[order != i][:k].tolist())
        kept = uncrowded(drawn, most, n)
        out = drawn.keys() - kept.keys()
        before, after = (Counter(h for holders in of.values() for h in holders) for of in (drawn, kept))
        assert all(after[h] <= most for h in kept)
        for i, holders in kept.items():
            cut = set(drawn[i]) - set(holders) - out
            assert holders == [h for h in drawn[i] if h not in cut | out]
            assert len(cut) <= MOST_CUT
            assert all(before[h] > most and i not in drawn[h] for h in cut)
        left_out += len(out)
    assert left_out


def test_a_round_that_nobody_leaves_gives_its_sum_though_members_crowd_others():
    n, k, corrupt = 40, 8, 9
    p = Parameters(n, 5, BOUND, 17, 0, 2, "malicious", k, 5, 11)
    rig = Rig(p)
    for i, holders in draws(n, k, corrupt, 4, 9, 3).items():
        rig.clients[i]._holders = holders
    rig.run("share")
    assert rig.messages.keys() == set(range(n))
    assert {i for i in range(n) if rig.server._around.holders[i] != rig.holders(i)}
    assert (rig.run().server.result().sum == rig.vectors.sum(0)).all()


@pytest.mark.parametrize("gone", [(), (9, 15)])
def test_a_round_in_which_members_crowd_others_gives_its_sum(gone):
    n, k, corrupt = 40, 8, 9
    p = Parameters(n, 5, BOUND, 17, 0, 2, "malicious", k, 5, 11)
    rig = Rig(p)
    for i, holders in draws(n, k, corrupt, k, 9).items():
        rig.clients[i]._holders = holders
    rig.run("share")
    left_out = set(range(n)) - rig.messages.keys()
    assert left_out < set(range(corrupt))
    cut = {i for i in rig.messages if set(rig.holders(i)) != set(rig.server._around.holders[i])}
    assert cut - set(range(corrupt))  # honest ones too lose a holder
    restored = Server.from_bytes(rig.server.to_bytes(SEALING), SEALING)
    assert dict(restored.answers()) == rig.messages
    rig.server = restored
    rig.run("mask").run("unmask", gone=gone)
    rig.server = Server.from_bytes(rig.server.to_bytes(SEALING), SEALING)
    found = rig.run().server.result()
    assert set(found.survivors) == set(range(n)) - left_out - set(gone)
    assert (found.sum == rig.vectors[found.survivors].sum(0)).all()


def test_who_has_too_few_holders_that_go_on_does_not_go_on():
    """9 has two holders, one too few, and 8 three, of which 9 is one."""
    around = Neighbourhoods(Parameters(12, 5, BOUND, 15, 0, 2, "malicious", 4, 3, 11))
    for i in range(8):
        around.add(i, sorted((i + step) % 9 for step in (1, 2, 3, 4)))
    around.add(8, [0, 1, 9, 10])
    around.add(9, [0, 1, 10, 11])
    assert around.going(set(range(10))) == set(range(8))
