"""Who loses a holder where more members drew the same one than it is to have."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256

import numpy as np

from fedcore.privacy.secagg.graph import random_order

#: holders that a member loses at most before it is left out: each makes it two to eight times as likely that a
#: member's holders become too few
MOST_CUT = 2


def uncrowded(drawn: Mapping[int, list[int]], most: int, clients: int) -> Mapping[int, list[int]]:
    """Member -> the holders that it keeps, so that none is the holder of more than `most` others; `drawn` if all do.

    drawn: member -> as many holders each, ascending. Who is left out is missing, as a holder too. A pair that drew each
    other is never cut, for nobody is to lose a holder for what others drew; there are enough without, since none draws
    more than `most`.

    A member's load is how many holders it drew that are over-drawn still and that it has not lost. Whoever has the
    highest load loses one of them, or is left out if it has lost `MOST_CUT`, again and again, until none is over-drawn.
    Of equals first who has lost fewer, then who had the highest load before any was cut, then by chance. Why: to keep V
    holders over-drawn, c members have to draw each s times, s being what honest draws leave of `most`, so that the
    highest load is at least V s / c; an honest member's is k V / n on average, and s is k c / n and some standard
    deviations more. So it falls on who crowds others, whether it draws few or many of them, and on honest members that
    chance made draw far more than most.

    The same for the same draws, in whatever order they came: chance comes from a hash of all, and no member knows the
    others' when it advertises. Each pass lowers the highest load, so that there are at most as many passes as holders.
    """
    members = np.array(sorted(drawn), np.uint16)
    lists = np.array([drawn[i] for i in members.tolist()], np.uint16)
    excess = np.zeros(clients, np.int64)
    excess[members] = np.maximum(np.bincount(lists.ravel(), minlength=clients)[members] - most, 0)
    if not excess.any():
        return drawn
    key = sha256(np.column_stack([members, lists]).astype("<u2").tobytes()).digest()
    row, column = _cuttable(members, lists, excess)
    cut, out = _cut(members[row], lists[row, column], excess, random_order(clients, key), drawn)
    kept = ~out[lists]
    kept[row[cut], column[cut]] = False
    found = {i: holders for i, holders in drawn.items() if not out[i]}
    for i in np.flatnonzero(~kept.all(1) & ~out[members]).tolist():
        found[int(members[i])] = lists[i, kept[i]].tolist()
    return found


def _cuttable(members: np.ndarray, lists: np.ndarray, excess: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns in `lists` of holders that are over-drawn and did not draw back, by holder."""
    row, column = np.nonzero(excess[lists])
    order = np.argsort(lists[row, column], kind="stable")
    row, column = row[order], column[order]
    over, starts = np.unique(lists[row, column], return_index=True)
    back, found = np.zeros(len(excess), bool), np.empty(len(row), bool)
    for own, start, end in zip(np.searchsorted(members, over), starts, [*starts[1:], len(row)], strict=True):
        back[lists[own]] = True
        found[start:end] = ~back[members[row[start:end]]]
        back[lists[own]] = False
    return row[found], column[found]


def _cut(
    member: np.ndarray, holder: np.ndarray, excess: np.ndarray, by_chance: np.ndarray, drawn: Mapping[int, list[int]]
) -> tuple[np.ndarray, np.ndarray]:
    """(which of the pairs, given by holder, are cut, who is left out). `excess` falls to 0."""
    clients, rank = len(excess), np.argsort(by_chance)
    load = np.bincount(member, minlength=clients)
    first = by_chance[np.argsort(-load[by_chance], kind="stable")]
    # pairs by member, each member's from another holder on, so that the cuts of a pass fall on many holders
    turned = ((rank[holder] + rank[member]) % clients).astype(np.uint16)
    queue = np.argsort(turned, kind="stable")
    queue = queue[np.argsort(member[queue], kind="stable")]
    ends = np.cumsum(load)
    following = ends - load  # of each member the place in the queue of the pair that it may lose next
    begins, starts = following.copy(), np.searchsorted(holder, np.arange(clients + 1))
    lost, out = np.zeros(clients, np.int64), np.zeros(clients, bool)
    counts, cut = np.ones(len(member), bool), np.zeros(len(member), bool)  # pairs that count in a load; that are cut

    def settle(holders: np.ndarray) -> None:
        for h in holders.tolist():
            those = np.flatnonzero(counts[starts[h] : starts[h + 1]]) + starts[h]
            counts[those] = False
            load[member[those]] -= 1

    while (over := excess > 0).any():
        top = load.max()
        at = first[load[first] == top]
        at, spent = at[lost[at] < MOST_CUT], at[lost[at] == MOST_CUT]
        at = at[np.argsort(lost[at], kind="stable")]
        while (gone := ~counts[queue[following[at]]]).any():
            following[at[gone]] += 1
        pairs = queue[following[at]]
        pairs = pairs[np.argsort(holder[pairs], kind="stable")]
        wanted = holder[pairs]
        turn = np.arange(len(pairs)) - np.searchsorted(wanted, wanted)
        pairs = pairs[turn < excess[wanted]]  # of the others the holder is settled, and the load lower all the same
        cut[pairs], counts[pairs] = True, False
        load[member[pairs]] -= 1
        lost[member[pairs]] += 1
        excess -= np.bincount(holder[pairs], minlength=clients)
        settle(np.flatnonzero(over & (excess == 0)))
        for i in spent.tolist():
            if load[i] < top or out[i]:
                continue
            own = queue[begins[i] : ends[i]]
            left = np.setdiff1d(drawn[i], holder[own[cut[own]]])
            left = left[excess[left] > 0]
            excess[left] -= 1
            out[i], counts[own], load[i] = True, False, 0
            settled = left[excess[left] == 0]
            if excess[i]:
                excess[i], settled = 0, np.append(settled, i)
            settle(settled)
    return cut, out
