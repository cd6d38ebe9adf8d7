"""Groups: a row each for a robust rule, what dropouts they outlive, void ones, what is refused."""

from __future__ import annotations

import numpy as np
import pytest

import fedcore as fc
from fedcore.errors import PrivacyError


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


def test_groups_keep_the_fewest_that_a_sum_is_to_have():
    one = fc.privacy.Distributed(1.0, 1.0, 20, 18, 2, 8, bytes(32))
    with pytest.raises(PrivacyError, match="got 18, which a group of 10"):
        fc.secagg.simulate(
            [np.zeros(8, np.uint32)] * 20, parameters=fc.secagg.Parameters.for_distributed(one), groups=2
        )
