"""What identifies a round to all its members."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fedcore.errors import PrivacyError
from fedcore.numbers import keep
from fedcore.privacy.limits import check_whole
from fedcore.privacy.secagg.graph import Graph
from fedcore.privacy.secagg.keys import round_binding
from fedcore.privacy.secagg.parameters import Parameters
from fedcore.privacy.secagg.roster import Roster
from fedcore.privacy.secagg.wire import readable

CONTEXT_BYTES = 32


@dataclass(frozen=True)
class Round:
    """Parameters, members, session (1 to 64 bytes), number, and context: SHA-256 of the adapter and configuration that
    the server sent. Members that were sent different ones have different keys: their masks do not cancel."""

    parameters: Parameters
    roster: Roster
    session: bytes
    number: int
    context: bytes

    def __post_init__(self) -> None:
        if not isinstance(self.parameters, Parameters):
            got = type(self.parameters).__name__
            raise PrivacyError(f"parameters: got {got}, expected fc.secagg.Parameters, which from_bytes reads")
        if len(self.roster) != self.parameters.clients:
            raise PrivacyError(
                f"roster: got {len(self.roster)} members, the parameters are for {self.parameters.clients}; choose "
                "parameters for this cohort"
            )
        keep(self, number=check_run(self.session, self.number))
        if not isinstance(self.context, bytes) or len(self.context) != CONTEXT_BYTES:
            raise PrivacyError(
                f"context: expected the {CONTEXT_BYTES} bytes of SHA-256 of the broadcast adapter and configuration"
            )

    @cached_property
    def binding(self) -> bytes:
        """What every key, signature and seal of the round covers."""
        p = self.parameters.to_bytes()
        return round_binding(p, self.roster.digest(), self.session, self.number, self.context)

    @cached_property
    def graph(self) -> Graph:
        """The neighbours that all members find alike."""
        return Graph(self.parameters, self.binding)

    def require_stream(self) -> None:
        """Raise BackendError where masks cannot be made on this machine, before keys are used."""
        from fedcore.ops import keystream

        keystream(1, bytes(32), bytes(12), 0, self.parameters.stream)

    def fields(self) -> dict[str, bytes]:
        """For a sealed state."""
        return {
            "parameters": self.parameters.to_bytes(),
            "roster": self.roster.to_bytes(),
            "session": self.session,
            "round": self.number.to_bytes(8, "little"),
            "context": self.context,
        }

    @classmethod
    def from_fields(cls, fields: dict[str, bytes]) -> Round:
        """What `fields` gave."""
        return cls(
            Parameters.from_bytes(fields["parameters"]),
            Roster.from_bytes(fields["roster"]),
            fields["session"],
            int.from_bytes(fields["round"], "little"),
            fields["context"],
        )


def check_run(session: bytes, number: Any) -> int:
    """The number of a round as an int. Raises PrivacyError for a session or a number that no round has."""
    if not isinstance(session, bytes) or not 1 <= len(session) <= 64:
        raise PrivacyError("session: expected 1 to 64 bytes that no other run has, from os.urandom")
    return check_whole("round", number, 0, (1 << 63) - 1)


def digest_of(*parts: bytes) -> bytes:
    """SHA-256 of what the server broadcast, part after part, each with its length: a round's context.

    Raises FormatError for what is no bytes.
    """
    found = hashlib.sha256()
    for number, part in enumerate(parts):
        view = readable(part, f"part {number} of the broadcast")
        found.update(len(view).to_bytes(8, "little"))
        found.update(view)
    return found.digest()
