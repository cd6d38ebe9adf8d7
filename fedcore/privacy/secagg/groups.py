"""Groups: several smaller sums in place of one, so that a robust rule has rows to choose from.

A sum hides its members from a robust rule as well: one liar can replace it. Sums over g random groups give a rule such
as `fc.rules.Median` g rows, of which each liar spoils one. The price is privacy: a member hides among n/g, not n.
"""

from __future__ import annotations

from collections.abc import Sequence

from fedcore.errors import PrivacyError
from fedcore.privacy.secagg.graph import random_order
from fedcore.privacy.secagg.roster import Id


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


def tolerated(members: int, groups: int, liars: int) -> tuple[int, bool]:
    """(clients a member hides among, whether a median over the groups' sums withstands so many liars).

    Each liar spoils at most its own group: fewer than half of the groups must hold one.
    """
    return members // groups, 2 * min(liars, groups) < groups
