"""Groups: several smaller sums in place of one, so that a robust rule has rows to choose from.

A sum hides its members from a robust rule as well: one liar can replace it. Sums over g random groups give a rule such
as `fc.rules.Median` g rows, of which each liar spoils one. The price is privacy: a member hides among n/g, not n.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from fedcore.errors import PrivacyError
from fedcore.privacy.secagg.graph import random_order
from fedcore.privacy.secagg.parameters import Parameters
from fedcore.privacy.secagg.roster import Id
from fedcore.privacy.secagg.search import SECURITY
from fedcore.privacy.secagg.tails import hypergeometric


def partition(members: Sequence[Id], groups: int, seed: bytes) -> list[list[Id]]:
    """Members in `groups` random groups whose sizes differ by at most one, each sorted.

    seed: 32 bytes that nobody could choose, such as SHA-256 of what members published; the same for all sides. Raises
    PrivacyError for a group of one, whose sum is its member's vector.
    """
    if not 1 <= groups <= len(members) // 2:
        raise PrivacyError(
            f"groups: got {groups} of {len(members)} members, expected at most {len(members) // 2}: a group of one is "
            "not hidden by its sum"
        )
    order = random_order(len(members), seed).tolist()
    names = sorted(members)
    return [sorted(names[i] for i in order[g::groups]) for g in range(groups)]


def group_parameters(members: int, groups: int, *, corrupt: float, **others: Any) -> dict[int, Parameters]:
    """Size of a group -> its parameters, which withstand as many corrupt members as chance may put into one group.

    corrupt   part of all members, rounded down to members; others: as for `Parameters.choose`, of each group

    With c corrupt members in all, some random group has more than is allowed for with a chance of at most 2^-41: a
    union over the groups of hypergeometric tails. Raises PrivacyError where that leaves fewer than two honest members
    in a group, or admits no threshold.
    """
    found, count = {}, int(corrupt * members + 1e-9)
    for size in sorted({members // groups, -(-members // groups)}):
        allowed = next(
            c
            for c in range(size + 1)
            if math.log2(groups) + hypergeometric(members, count, size, c + 1) <= SECURITY - 1
        )
        if size - allowed < 2:
            raise PrivacyError(
                f"groups: {groups} of {members} members, {count} of them corrupt, may put {allowed} corrupt ones into "
                f"a group of {size}; expected two honest ones in each but for a chance of 2^{SECURITY - 1:g}: form "
                "fewer groups"
            )
        try:
            found[size] = Parameters.choose(size, corrupt=allowed / size, **others)
        except PrivacyError as error:
            where = f"groups: {groups} of {members} members: " if groups > 1 else ""
            raise PrivacyError(f"{where}{error}") from None
    return found


def tolerated(members: int, groups: int, liars: int) -> tuple[int, bool]:
    """(clients a member hides among, whether a median over the groups' sums withstands so many liars).

    Each liar spoils at most its own group: fewer than half of the groups must hold one.
    """
    return members // groups, 2 * min(liars, groups) < groups
