"""Who holds whose shares and who has a mask with whom, as a server knows it from what members advertised."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cached_property

from fedcore.privacy.secagg.crowding import uncrowded
from fedcore.privacy.secagg.parameters import Parameters
from fedcore.privacy.secagg.peers import MASK, SEED


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
    def holders(self) -> Mapping[int, list[int]]:
        """Member -> who is to hold its shares: those it drew, but for what `uncrowded` cuts, and whom it leaves out.

        Who is left out is to others as if it had advertised nothing, and to each other the two of a pair that is cut.
        """
        return uncrowded(self.drawn, self._p.in_degree, self._p.clients)

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
