"""Hashes of what a server sent to a member, which the member signs together with its shares.

Without them whoever changes messages on their way could keep a member's shares from opening, or from being asked for,
and have it named as one that dealt none. A member whose messages were changed has nothing counted: it drops out.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from hashlib import sha256
from typing import Any

#: stages whose answers are signed with all that was sent to their member up to then
ANSWERING = ("share", "unmask")


def transcript(*digests: bytes) -> bytes:
    """32 bytes for the messages that started 'share' to this stage, of the SHA-256 of each in their order."""
    return sha256(b"".join(digests)).digest()


class Sent:
    """What a server sent to each member: SHA-256 of its messages, of `earlier` stages and of the one that is `now`.

    `now` is filled as messages are made (`Answers`). It is not in a state: after a restart `again` makes all of them.
    """

    def __init__(self, again: Callable[[], Mapping[Any, bytes]], earlier: dict[int, tuple[bytes, ...]] | None = None):
        self._again, self.earlier, self.now = again, earlier or {}, dict[int, bytes]()

    def digests(self, position: int) -> tuple[bytes, ...]:
        """Of all messages to a member that is expected to answer."""
        if position not in self.now:
            for _ in self._again().values():
                pass
        return *self.earlier.get(position, ()), self.now[position]

    def following(self, done: Collection[int]) -> Sent:
        """The same for the next stage, of those that answered in this one."""
        return Sent(self._again, {position: self.digests(position) for position in done})
