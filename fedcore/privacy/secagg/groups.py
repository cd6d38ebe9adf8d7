"""Groups: several smaller sums in place of one, so that a robust rule has rows to choose from.

A sum hides its members from a robust rule as well: one liar can replace it. Sums over g random groups give a rule such
as `fc.rules.Median` g rows, of which each liar spoils one. The price is privacy: a member hides among n/g, not n.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from fedcore.errors import PrivacyError
from fedcore.numbers import as_whole, got, shown
from fedcore.privacy.secagg.counts import counted
from fedcore.privacy.secagg.graph import random_order
from fedcore.privacy.secagg.parameters import Parameters
from fedcore.privacy.secagg.roster import Id
from fedcore.privacy.secagg.search import FAILURE, MOST_SHARES, SECURITY
from fedcore.privacy.secagg.tails import hypergeometric

SEED_BYTES = 32


def partition(members: Sequence[Id], groups: int, seed: bytes) -> list[list[Id]]:
    """Members in `groups` random groups whose sizes differ by at most one, each sorted.

    seed: 32 bytes, the same for all sides, which fix the groups: who chooses them, or is the last to add to them, tries
    until the corrupt members meet whom it likes. Against a malicious server each client makes the groups itself, from a
    seed that nobody could choose (`GroupDraw`) or know when the members were fixed (a public beacon's), and takes its
    own as the roster of its round. Raises PrivacyError for a group of one, whose sum is its member's vector, for a
    member that is there twice, and for a seed that is not 32 bytes.
    """
    groups = check_groups(groups, len(members))
    known = isinstance(seed, (bytes, bytearray, memoryview))
    if not known or len(seed) != SEED_BYTES:
        given = f"{len(seed)} bytes" if known else type(seed).__name__
        raise PrivacyError(f"seed: got {given}, expected {SEED_BYTES} bytes, the same for all sides")
    if len(set(members)) < len(members):
        twice = next(name for name, count in Counter(members).items() if count > 1)
        raise PrivacyError(f"members: {shown(twice)} is there twice, expected each once")
    order = random_order(len(members), seed).tolist()
    names = sorted(members)
    return [sorted(names[i] for i in order[g::groups]) for g in range(groups)]


def check_groups(groups: Any, members: int) -> int:
    """A number of groups as an int. Raises PrivacyError for one that so many members do not form."""
    found = as_whole(groups)
    if found is None or not 1 <= found <= members // 2:
        raise PrivacyError(
            f"{got('groups', groups)} of {members} members, expected a whole number from 1 to {members // 2}: a group "
            "of one is not hidden by its sum"
        )
    return found


def group_parameters(
    members: int, groups: int, *, corrupt: float, dropout: float = 0.1, **others: Any
) -> dict[int, Parameters]:
    """Size of a group -> its parameters, which stand what chance may put into one group, and keep both bounds for all.

    corrupt, dropout   parts of all members, in [0, 1), rounded down to members
    others             as for `Parameters.choose`, of each group

    With c corrupt members and d dropouts in all, some random group has more than its parameters allow for with chances
    of at most 2^-41 and 2^-21: unions over the groups of hypergeometric tails. The sums of groups that have no more add
    as much again, each its share of it (`Targets`), so that one group of all is not secure with a chance of 2^-40 at
    most, and one void with 2^-20. Both count on a seed of the groups that the adversary neither chose nor knew. Raises
    PrivacyError where that leaves fewer than two honest members in a group, fewer than least_included, or admits no
    threshold.
    """
    groups = check_groups(groups, members)
    liars, gone = counted("corrupt", corrupt, members), counted("dropout", dropout, members)
    # what is wrong in any number of groups
    Parameters.choose(2, **{**others, "corrupt": 0.0, "dropout": 0.0, "least_included": 0})
    try:
        return _allowing(members, groups, liars, gone, others)
    except PrivacyError as error:
        if groups == 1:
            raise
        small = members // groups <= MOST_SHARES  # above it a search takes seconds
        fits = _most_dropouts(members, groups, liars, gone, others) if small else None
        raise PrivacyError(
            f"groups: {groups} of {members} members, {liars} of them corrupt and {gone} dropping out: "
            f"{str(error).partition(';')[0]}; form fewer groups"
            + (f", or allow for at most {fits} of {members} dropping out" if fits is not None else "")
        ) from None


def _allowing(members: int, groups: int, liars: int, gone: int, others: dict[str, Any]) -> dict[int, Parameters]:
    """`group_parameters`, of counts."""
    found = {}
    for size in sorted({members // groups, -(-members // groups)}):
        corrupt = _most_in_one(members, groups, liars, size, SECURITY - 1)
        dropout = min(size - 1, _most_in_one(members, groups, gone, size, FAILURE - 1))
        if size - corrupt < 2:
            raise PrivacyError(
                f"chance may put {corrupt} corrupt ones into a group of {size}, expected two honest ones in each but "
                f"for a chance of 2^{SECURITY - 1:g}"
            )
        if groups > 1 and size - dropout < others.get("least_included", 0):
            raise PrivacyError(
                f"least_included: got {others['least_included']}, which a group of {size} with up to {dropout} "
                "dropping out does not keep"
            )
        found[size] = Parameters.choose(size, groups=groups, corrupt=corrupt / size, dropout=dropout / size, **others)
    return found


def _most_dropouts(members: int, groups: int, liars: int, gone: int, others: dict[str, Any]) -> int | None:
    """The most dropouts below `gone` that there are parameters for, by bisection; None where none are."""
    low, high = -1, gone - 1
    while low < high:
        middle = (low + high + 1) // 2
        try:
            _allowing(members, groups, liars, middle, others)
        except PrivacyError:
            high = middle - 1
        else:
            low = middle
    return low if low >= 0 else None


def _most_in_one(members: int, groups: int, marked: int, size: int, most: float) -> int:
    """The most of `marked` members that a random group of `size` has, but for a chance of 2**most that any has more."""
    return next(count for count in range(size + 1) if _is_most(members, groups, marked, size, count, most))


def _is_most(members: int, groups: int, marked: int, size: int, count: int, most: float) -> bool:
    """Whether the chance that any of so many random groups has more than `count` of the marked is at most 2**most."""
    return math.log2(groups) + hypergeometric(members, marked, size, count + 1) <= most


def allows_for(p: Parameters, members: int, liars: int) -> bool:
    """Whether a group with these parameters has no more corrupt ones than they say, of `liars` among all members.

    But for the chance that `group_parameters` leaves to all groups together.
    """
    return _is_most(members, p.groups, liars, p.clients, p.corrupt, SECURITY - 1)


def tolerated(members: int, groups: int, liars: int) -> tuple[int, bool]:
    """(clients a member hides among, whether a median over the groups' sums withstands so many liars).

    Each liar spoils at most its own group: fewer than half of the groups must hold one, or be void for want of others.
    Raises PrivacyError.
    """
    groups = check_groups(groups, members)
    return members // groups, 2 * min(liars, groups) < groups
