"""A seed of groups that nobody can choose, by commitments.

Blum 1983, "Coin flipping by telephone", ACM SIGACT News 15(1): all commit to a value, and reveal it once all have.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping

from fedcore.errors import Forged, PrivacyError, Replayed, Void
from fedcore.numbers import shown
from fedcore.privacy.secagg.groups import check_groups, partition
from fedcore.privacy.secagg.roster import Id, Roster
from fedcore.privacy.secagg.round import check_run
from fedcore.privacy.secagg.uncopied import Uncopied

VALUE_BYTES = 32
#: who is left out of the next draw would be a choice, and what is missing or changed may be the carrier's doing
_VOID = "the draw is void, begin a new one among the same members"


class GroupDraw(Uncopied):
    """One member's part in drawing groups, before the rounds of the groups begin.

    roster      all members that take part; those that will not send a commitment are left out of it first
    groups      how many, as for `partition`: fixed before any value is known, since it chooses among groups as well
    session, round   as for the rounds of the groups

    Each sends `commitment` to the server, which sends all of them to all; then each sends what `reveal` gives, and
    with all of those `group` gives the roster for its `Client`. The seed has the member's own 32 random bytes in it,
    which nobody knows before all others are bound to theirs: whatever the server and other members do, it is no choice
    of theirs. They can end the draw, and then it is void: going on without a value would be a choice.

    No member sees what another was shown. A server can show each one commitments and values that it made itself, beside
    the member's own: groups are then drawn for each member apart, by chance still, but chances of `group_parameters`
    add up over members instead of groups. `digest` tells: members compare it, or have it in the context of their rounds
    (`Client(context=digest_of(model, draw.digest))`), so that masks cancel among members of one draw alone. Raises
    PrivacyError for as many groups as `partition` refuses, and a session or number that no round has.
    """

    def __init__(self, roster: Roster, client_id: Id, groups: int, session: bytes, round: int):
        round, groups = check_run(session, round), check_groups(groups, len(roster))
        self._roster, self._position, self._groups = roster, roster.position(client_id), groups
        about = b"fedcore secagg 1 group draw" + roster.digest() + hashlib.sha256(session).digest()
        self._about = about + round.to_bytes(8, "little") + groups.to_bytes(4, "little")
        self._value = os.urandom(VALUE_BYTES)
        self._commitments: dict[Id, bytes] | None = None
        self._seed: bytes | None = None

    @property
    def commitment(self) -> bytes:
        """32 bytes for all other members."""
        return self._committed(self._position, self._value)

    def reveal(self, commitments: Mapping[Id, bytes]) -> bytes:
        """This member's value, 32 bytes, given the commitments of all.

        Raises PrivacyError where one is missing, Forged where this member's is another, Replayed for others than the
        first time.
        """
        self._all(commitments, PrivacyError, "a value is revealed once all have committed to theirs")
        given = {name: bytes(commitments[name]) for name in self._roster}
        if given[self._roster.ids[self._position]] != self.commitment:
            raise Forged("group draw: the commitments have another one in this member's place; take no part")
        if self._commitments not in (None, given):
            raise Replayed("group draw: got other commitments than before; a value is revealed once")
        self._commitments = given
        return self._value

    def group(self, reveals: Mapping[Id, bytes]) -> Roster:
        """The members of this member's group (`partition`), given what all revealed.

        Raises Void where a value is missing, PrivacyError before `reveal`, and Forged where a member's value is another
        than was committed to, whether by the member or by who carried it.
        """
        if self._commitments is None:
            raise PrivacyError("group draw: got values before this member revealed its own; call reveal first")
        self._all(reveals, Void, _VOID)
        seed = hashlib.sha256(self._about)
        for position, name in enumerate(self._roster):
            if self._committed(position, reveals[name]) != self._commitments[name]:
                raise Forged(
                    f"group draw: got another value of {shown(name)} than was committed to: by {shown(name)}, or by "
                    f"who carried it; {_VOID}"
                )
            seed.update(reveals[name])
        self._seed = seed.digest()
        mine = self._roster.ids[self._position]
        part = next(part for part in partition(self._roster.ids, self._groups, self._seed) if mine in part)
        return Roster({name: self._roster[name] for name in part})

    @property
    def digest(self) -> bytes:
        """32 bytes that are the same for all who drew the same groups from the same values. Raises PrivacyError before
        `group`."""
        if self._seed is None:
            raise PrivacyError("group draw: digest: got no values yet; call group first")
        return self._seed

    def _committed(self, position: int, value: bytes) -> bytes:
        # with the position: who copies another one's commitment cannot open it
        return hashlib.sha256(self._about + position.to_bytes(4, "little") + value).digest()

    def _all(self, given: Mapping[Id, bytes], error: type[PrivacyError] | type[Void], why: str) -> None:
        """Raise `error` unless all members are there, each with 32 bytes, PrivacyError for no mapping."""
        if not isinstance(given, Mapping):
            raise PrivacyError(f"group draw: got {type(given).__name__}, expected a mapping of members to their bytes")
        for name in self._roster:
            if not isinstance(given.get(name), bytes) or len(given[name]) != VALUE_BYTES:
                raise error(f"group draw: expected {VALUE_BYTES} bytes of {shown(name)}; {why}")
