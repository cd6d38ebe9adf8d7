"""Members that all draw the same holders: nobody is left out for what others drew, and the sum comes."""

from __future__ import annotations

import numpy as np
import pytest
from secagg.driver import BOUND, SEALING, Rig

from fedcore.privacy.secagg.neighbourhoods import MOST_CUT, Neighbourhoods
from fedcore.privacy.secagg.parameters import Parameters
from fedcore.privacy.secagg.server import Server


def draws(n: int, k: int, corrupt: int, victims: int, seed: int) -> dict[int, list[int]]:
    """What members draw by chance, but for the first ones, who draw among the last ones as far as these go."""
    rng, found = np.random.default_rng(seed), {}
    for i in range(n):
        order = rng.permutation([j for j in range(n) if j != i])
        if i < corrupt:
            order = np.concatenate([order[order >= n - victims], order[order < n - victims]])
        found[i] = sorted(order[:k].tolist())
    return found


@pytest.mark.parametrize(
    ("n", "corrupt", "victims"), [(400, 0.2, 105), (1000, 0.1, 98), (1000, 0.1, 2), (1000, 0.3, 1)]
)
def test_who_crowds_others_goes_and_who_is_crowded_stays(n, corrupt, victims):
    p = Parameters.choose(n, length=4, bound=BOUND, corrupt=corrupt, dropout=0.05, adversary="malicious")
    drawn, around, other = draws(n, p.neighbours, p.corrupt, victims, 1), Neighbourhoods(p), Neighbourhoods(p)
    assert max(np.bincount(np.concatenate([*drawn.values()]))) > p.in_degree
    for i in drawn:
        around.add(i, drawn[i])
        other.add(n - 1 - i, drawn[n - 1 - i])
    out = drawn.keys() - around.holders.keys()
    assert other.holders == around.holders
    assert around.going(set(drawn)) == around.holders.keys()
    assert not out & set(range(n - victims, n))
    assert sum(i >= p.corrupt for i in out) <= 3
    assert max(map(len, around.wards.values())) == p.in_degree
    for i, holders in around.holders.items():
        cut = set(drawn[i]) - set(holders) - out
        assert len(cut) <= MOST_CUT
        assert not any(i in drawn[j] or i in around.neighbours[j] or j in around.neighbours[i] for j in cut)


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
    cut = {i for i in rig.messages if set(rig.holders(i)) - left_out - set(rig.server._around.holders[i])}
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
