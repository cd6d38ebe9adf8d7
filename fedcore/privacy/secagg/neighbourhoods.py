"""Who holds whose shares and who has a mask with whom, as a server knows it from what members advertised."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Collection, Mapping
from functools import cached_property
from hashlib import sha256
from heapq import heapify, heappop, heappush

from fedcore.privacy.secagg.graph import random_order
from fedcore.privacy.secagg.parameters import Parameters
from fedcore.privacy.secagg.peers import MASK, SEED

#: holders that a member loses at most because others drew them too; each makes it two to eight times as likely that a
#: member's holders become too few
MOST_CUT = 2


class Neighbourhoods:
    """`drawn` is filled as members advertise (`add`), `sealing` when they have shared; the rest follows from them."""

    def __init__(self, p: Parameters):
        self._p = p
        self.drawn: dict[int, list[int]] = {}  # as advertised: the share of each has x = its index here + 1
        self.sealing: set[int] = set()  # who shared, and can be unmasked

    def add(self, position: int, holders: list[int]) -> None:
        """A member's holders, as it advertised them."""
        self.drawn[position] = holders
        for made in ("holders", "wards", "neighbours"):  # before it came, as where a stage was ended with too few
            self.__dict__.pop(made, None)

    @cached_property
    def holders(self) -> dict[int, list[int]]:
        """Member -> who is to hold its shares: those it drew, but for `crowding`.

        Who is left out is to others as if it had advertised nothing, and to each other the two of a pair that is cut.
        """
        out, cut = crowding(self.drawn, self._p.in_degree, self._p.clients)
        if not cut and not out:
            return self.drawn
        going = {i: found for i, found in self.drawn.items() if i not in out}
        return {i: [h for h in found if h not in out and (i, h) not in cut] for i, found in going.items()}

    @cached_property
    def wards(self) -> dict[int, list[int]]:
        """Holder -> whose shares it holds."""
        found: dict[int, list[int]] = {i: [] for i in range(self._p.clients)}
        for position in sorted(self.holders):
            for holder in self.holders[position]:
                found[holder].append(position)
        return found

    @cached_property
    def neighbours(self) -> dict[int, list[int]]:
        """Member -> all that advertised and are its holders or have it as one, ascending."""
        there = self.holders.keys()
        return {i: sorted((set(self.holders[i]) & there) | set(self.wards[i])) for i in there}

    def partners(self, position: int) -> list[int]:
        """Members that shared and have a mask with a member."""
        return [i for i in self.neighbours[position] if i in self.sealing]

    def held_by(self, holder: int) -> list[int]:
        """Members that shared and whose shares a member holds, ascending."""
        return [i for i in self.wards[holder] if i in self.sealing]

    def enough(self, position: int, there: Collection[int]) -> bool:
        """Whether as many holders of a member are there as give its secrets."""
        return sum(holder in there for holder in self.holders.get(position, ())) >= self._p.threshold

    def going(self, done: set[int]) -> set[int]:
        """Of those that are there, who goes on: who is left out holds nobody's shares."""
        there = set(done)
        while True:
            left = {i for i in there if self.enough(i, there)}
            if left == there:
                return there
            there = left

    def needed(self, included: Collection[int]) -> dict[int, int]:
        """Member -> which of its secrets a sum of these vectors needs."""
        there = set(included)
        found = dict.fromkeys(included, SEED)
        for i in self.sealing - there:
            if there & set(self.neighbours[i]):
                found[i] = MASK
        return found


def crowding(drawn: Mapping[int, list[int]], most: int, clients: int) -> tuple[set[int], set[tuple[int, int]]]:
    """Who is left out, and (drawer, holder) that are cut, so that no member is the holder of more than `most` others.

    As long as any has drawn more than `MOST_CUT` of those that are over-drawn, the one that has drawn most of them is
    left out: whoever crowds others has drawn many of them, whoever draws by chance few. Of those that draw one that is
    over-drawn still, as many as are too many lose that holder, and so nobody more than `MOST_CUT`. Pairs that drew each
    other stay, for nobody is to lose a holder for what others drew; there are enough without, since none draws more
    than `most`. Who is first of equals is by chance, but the same for the same draws: no member knows the others' when
    it advertises.
    """
    counts = Counter(holder for found in drawn.values() for holder in found)
    over = {holder: count - most for holder, count in counts.items() if count > most and holder in drawn}
    out: set[int] = set()
    if not over:
        return out, set()
    lists = (struct.pack(f"<{len(drawn[i]) + 1}H", i, *drawn[i]) for i in sorted(drawn))
    order = random_order(clients, sha256(b"".join(lists)).digest()).tolist()
    loads = {i: over.keys() & drawn[i] for i in order if i in drawn}
    heap = [(-len(load), rank, i) for rank, (i, load) in enumerate(loads.items()) if len(load) > MOST_CUT]
    heapify(heap)
    while heap:
        weight, rank, i = heappop(heap)
        load = loads[i] = loads[i] & over.keys()
        if len(load) <= MOST_CUT:
            continue
        if len(load) < -weight:  # some are over-drawn no more, and another may have drawn more of those that are
            heappush(heap, (-len(load), rank, i))
        else:
            out.add(i)
            over.pop(i, None)
            for holder in load:
                over[holder] -= 1
                if not over[holder]:
                    del over[holder]
    drawers: dict[int, list[int]] = {holder: [] for holder in over}
    for i in sorted((i for i in loads if i not in out), key=lambda i: -len(loads[i] & over.keys())):
        for holder in loads[i] & over.keys():
            if i not in drawn[holder]:
                drawers[holder].append(i)
    return out, {(i, holder) for holder, count in over.items() for i in drawers[holder][:count]}
