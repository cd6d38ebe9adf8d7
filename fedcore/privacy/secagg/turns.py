"""What a client answered, one call at a time: the same again for the same message, and nothing for another."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from hashlib import sha256
from typing import Any, TypeVar

from fedcore.errors import PrivacyError, Replayed
from fedcore.lock import Lock
from fedcore.privacy.secagg import wire
from fedcore.privacy.secagg.round import Round
from fedcore.privacy.secagg.state import generation_of
from fedcore.privacy.secagg.transcripts import transcript
from fedcore.privacy.secagg.uncopied import Uncopied

Party = TypeVar("Party", bound="Turns")


class Turns(Uncopied, ABC):
    """The part of a client that has each stage answered once, and saved before it is sent."""

    def _begin(self, round: Round, save: Callable[[Any], object] | None) -> None:
        self.round, self._save = round, save
        self._answered: dict[str, bytes] = {}  # stage -> SHA-256 of the message that was answered
        self._sent = b""  # the answer to 'unmask': what it was made of is wiped
        self._generation = generation_of(round, 0)
        self._fresh = self._saved = True
        self._closed = False
        self._lock = Lock(PrivacyError, "`save`; save to_bytes there, and call it afterwards")

    @property
    def generation(self) -> bytes:
        """32 bytes that name this state and no other of any round, session, member or process; they compare as rounds
        and stages follow one another. To be kept where an old one cannot be put in the place of the newest, and written
        there before the state itself."""
        return self._generation

    def _alone(self, what: str) -> AbstractContextManager[Any]:
        """One call at a time: two at once would both find that nothing was answered yet."""
        return self._lock.alone(what)

    def _expect(self, stage: str, message: bytes) -> None:
        """Raises Replayed unless the stage is next, or was answered for the same message."""
        self._require_open(stage)
        stages = self.round.parameters.stages
        if stage in self._answered:
            if self._answered[stage] != sha256(wire.readable(message, f"{stage}: the server's message")).digest():
                raise Replayed(f"{stage}: this client has answered another message; one a round is answered")
            if stage != "unmask":
                self._require_keys(stage)
            return
        if stage not in stages or stages.index(stage) != len(self._answered):
            following = stages[len(self._answered)] if len(self._answered) < len(stages) else "no stage"
            raise Replayed(f"{stage}: came out of order, {following} is next")
        if not self._fresh:
            raise Replayed(
                f"{stage}: this client was restored from a state that may be an old one; it repeats what it sent, and "
                "goes on only if from_bytes is told the newest generation"
            )

    def _told(self, stage: str, message: bytes) -> bytes:
        """What the server said up to this message, for the signature on shares."""
        stages = self.round.parameters.stages
        earlier = stages[1 : stages.index(stage)]
        return transcript(*(self._answered[each] for each in earlier), sha256(message).digest())

    def _require_open(self, what: str) -> None:
        if self._closed:
            raise PrivacyError(f"{what}: this client was closed, its secrets are wiped; restore what it saved last")

    def _require_keys(self, what: str) -> None:
        self._require_open(what)
        if "unmask" in self._answered:
            raise Replayed(
                f"{what}: this client has answered 'unmask' and wiped its keys; it repeats that answer alone"
            )

    def _accept(self, stage: str, message: bytes, sent: bytes = b"") -> None:
        """Remember what is about to be answered, and have it saved before anything is sent; keys go with the last.

        A save that raises may have written: a restart could send what it wrote. So what was to be answered stays, for
        the same input to be answered once it is saved, and for no other.
        """
        if stage not in self._answered:
            self._saved, self._sent = False, sent
            self._generation = generation_of(self.round, len(self._answered) + 1)
            self._answered[stage] = sha256(message).digest()
        if stage == "unmask":
            self._forget()
        if not self._saved and self._save is not None:
            self._save(self)
        self._saved = True

    @abstractmethod
    def _forget(self) -> None:
        """Overwrite secrets, and let go of what they can be found from."""

    def close(self) -> None:
        """Overwrite this client's secrets and let go of all it holds: it says nothing any more, and what it saved stays
        as it is. Raises PrivacyError from within `save`."""
        with self._alone("close"):
            self._closed = True
            self._forget()
            self._sent = b""

    def __enter__(self: Party) -> Party:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
