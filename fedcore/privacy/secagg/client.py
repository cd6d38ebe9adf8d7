"""A client of a secure sum: bytes in, bytes out, no sockets, no clock.

Bonawitz et al. 2017, "Practical Secure Aggregation for Privacy-Preserving Machine Learning", CCS, on the graphs of Bell
et al. 2020. fedcore/privacy/secagg/README.md says what it protects from whom.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from hashlib import sha256
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedcore.errors import PrivacyError, Replayed
from fedcore.numbers import as_whole, got, shown
from fedcore.privacy.secagg import wire
from fedcore.privacy.secagg.client_state import client_fields, take_fields
from fedcore.privacy.secagg.graph import drawn
from fedcore.privacy.secagg.keys import KEY_BYTES, ChunkTags, RoundKeys, Seals, rooted, signed_text, signing_key
from fedcore.privacy.secagg.masking import fingerprint, mask_keys, masked
from fedcore.privacy.secagg.parameters import Parameters
from fedcore.privacy.secagg.peers import SEED, Peer, read_included, read_keys, read_request, read_sealed
from fedcore.privacy.secagg.roster import Id, Roster
from fedcore.privacy.secagg.round import Round
from fedcore.privacy.secagg.sharing import opened_shares, sealed_shares, seals_of
from fedcore.privacy.secagg.state import seal, unseal
from fedcore.privacy.secagg.vector import checked


class Client:
    """One member of one round.

    parameters   as all have them; they were checked to be secure when they were made
    client_id    its identifier in the roster
    signing_key  its long-term Ed25519 key, or the key's 32 bytes
    roster       `Roster`, or identifier -> public key, from outside the server
    session      bytes that no other run has
    round        number
    context      SHA-256 of the broadcast adapter and configuration, as this client got them
    after        number of the newest round that this client took part in, which it keeps: no round up to it is joined
    save         called with the client whenever it is about to send something new; write `to_bytes` to disk there. What
                 it raises is raised: nothing is sent, and only the same input is taken again, to be saved first

    A client is used by one thread. Each stage takes the server's message and returns what to send. Called again with
    the same input it returns the same bytes, also after a restart; with another it raises Replayed: a second answer
    would break the masks. Bad messages raise Forged, Replayed, Void or FormatError and change nothing; a stream that
    does not run here BackendError.
    """

    def __init__(
        self,
        parameters: Parameters,
        client_id: Id,
        signing_key: bytes | Ed25519PrivateKey,
        roster: Roster | dict[Id, bytes],
        session: bytes,
        round: int,
        context: bytes,
        save: Callable[[Client], object] | None = None,
        after: int | None = None,
    ):
        made = Round(parameters, Roster.of(roster), session, round, context)
        last = as_whole(after)
        if after is not None and last is None:
            raise PrivacyError(f"{got('after', after)}, expected the number of a round, or None before the first")
        if last is not None and made.number <= last:
            raise Replayed(
                f"{got('round', made.number)}, but this client took part in round {shown(last)}; join a later one"
            )
        self._start(made, client_id, signing_key, os.urandom(KEY_BYTES))
        self._save = save

    def _start(self, round: Round, client_id: Id, key: bytes | Ed25519PrivateKey, secret: bytes) -> None:
        self.round, self.client_id, self._me = round, client_id, round.roster.position(client_id)
        round.require_stream()
        self._signing, self._secret = signing_key(key), secret
        if self._signing.public_key().public_bytes_raw() != round.roster.public(self._me):
            raise PrivacyError(f"signing_key: is not the one that the roster has for {client_id!r}")
        self._keys = RoundKeys(secret, round.binding)
        if round.graph.public:
            self._holders = round.graph.holders(self._me)
        else:
            self._holders = drawn(round.parameters, self._keys.derived("draw"), self._me)
        self._tag = round.binding  # of messages: rooted once the keys are committed to
        self._peers: dict[int, Peer] = {}
        self._tags: ChunkTags | None = None  # from 'share' on, as are `_server` and `_seals`
        self._partners: list[int] = []
        self._held: dict[int, bytes] = {}
        self._included: set[int] | None = None
        self._answered: dict[str, bytes] = {}  # stage -> SHA-256 of the message that was answered
        self._vector = b""
        self._fresh = self._saved = True

    @property
    def generation(self) -> int:
        """How many stages were answered, or may be in a state that a failed save wrote: to be kept where an old state
        cannot be put in place of the newest, before the state itself is."""
        return len(self._answered)

    @property
    def faults(self) -> dict[Id, str]:
        """Sender -> why, of shares that do not open: they are left out of the answer."""
        ids = self.round.roster.ids
        return {ids[sender]: "mask: its shares do not open" for sender, shares in self._held.items() if not shares}

    @property
    def noise_key(self) -> bytes:
        """32 secret bytes of this round for `fc.privacy.Distributed.encode`, the same ones after a restart."""
        return self._keys.derived("noise")

    def advertise(self) -> bytes:
        """Public keys, and against a malicious server the holders that this client drew."""
        body = self._keys.advertised()
        if not self.round.graph.public:
            body += wire.positions(self._holders)[2:]
        self._accept("advertise", b"")
        return self._message("advertise", body)

    def share(self, message: bytes) -> bytes:
        """Shares of this client's seed and mask secret, sealed to each holder."""
        self._expect("share", message)
        found = read_keys(self.round, self._me, self._holders, message)
        tag = rooted(self.round.binding, found.root)
        seals = seals_of(self.round, self._keys, self._me, tag)
        body = sealed_shares(self.round, self._keys, seals, self._holders, found.peers)
        self._take_keys(tag, found.server, found.peers, seals)
        self._accept("share", message)
        return self._message("share", body)

    def _take_keys(self, tag: bytes, server: bytes, peers: dict[int, Peer], seals: Seals) -> None:
        """What all further messages are bound to, the server's key, from which that of chunks comes, and neighbours."""
        whose = "share: the server's own public key"
        self._tags = ChunkTags(self._keys.share, server, tag, self._me, server, whose)
        self._tag, self._server, self._peers, self._seals = tag, server, peers, seals

    def mask(self, message: bytes, vector: Any) -> Iterator[bytes]:
        """The masked vector in chunks, to be sent in their order.

        vector: (length,) integers within the bound, or a `Quantizer`'s `weighted`. Raises also ShapeError, DTypeError,
        RangeError, NonFiniteError: then nothing was sent, and another vector may be.
        """
        p, values = self.round.parameters, checked(vector, self.round.parameters)
        self._expect("mask", message)
        partners, sealed = read_sealed(self.round, self._holders, self._peers, self._tag, message)
        keys = mask_keys(self._keys, self._tag, self._me, partners, self._peers, self.round.roster.ids)
        packed = masked(values, *keys, p)
        known = fingerprint(packed, self._keys.derived("vector"))
        if self._vector and known != self._vector:
            raise Replayed("mask: this client masked another vector in this round; the same one may be sent again only")
        self._held = opened_shares(self._seals, self._peers, sealed)
        self._partners, self._vector = partners, known
        self._accept("mask", message)
        return self._chunks(packed)

    def _chunks(self, packed: np.ndarray) -> Iterator[bytes]:
        """The messages that carry a masked vector, in order, after the list of those whose masks are in it."""
        p, at = self.round.parameters, 0
        assert self._tags is not None
        if p.malicious:
            yield self._message(wire.INCLUDED, wire.positions(self._partners))
        for number in range(wire.chunks(p)):
            part = packed[at : at + wire.chunk_bytes(p, number)].data
            yield wire.chunk(self._me, self._tag, number, part, self._tags.tag(number, part))
            at += len(part)

    def acknowledge(self, message: bytes) -> bytes:
        """Whose signed lists this client saw: it will never give a share of their mask secrets."""
        self._expect("acknowledge", message)
        self._included = read_included(self.round, self._me, self._partners, self._held, self._tag, message)
        self._accept("acknowledge", message)
        return self._message("acknowledge", wire.positions(sorted(self._included)))

    def unmask(self, message: bytes) -> bytes:
        """The shares that the server asks for, if it may: one request a round is answered."""
        self._expect("unmask", message)
        asked = read_request(self.round, self._me, self._holders, self._held, self._included, self._tag, message)
        self._accept("unmask", message)
        parts = []
        for kind, position in asked:
            shares = self._held[position]
            if shares:
                half = shares[KEY_BYTES:] if kind == SEED else shares[:KEY_BYTES]
                parts.append(bytes([kind]) + position.to_bytes(2, "little") + half)
        return self._message("unmask", len(parts).to_bytes(2, "little") + b"".join(parts))

    def _message(self, stage: str, body: bytes) -> bytes:
        """A signed message."""
        tag = self.round.binding if stage == "advertise" else self._tag
        signature = self._signing.sign(signed_text(stage, tag, self._me, body))
        return wire.pack(wire.kind_of(stage), self._me, tag, body, signature)

    def _expect(self, stage: str, message: bytes) -> None:
        """Raise Replayed unless this stage is next, or was answered for the same message before."""
        stages = self.round.parameters.stages
        if stage in self._answered:
            if self._answered[stage] != sha256(wire.readable(message, f"{stage}: the server's message")).digest():
                raise Replayed(f"{stage}: this client has answered another message; one a round is answered")
            return
        if stage not in stages or stages.index(stage) != len(self._answered):
            following = stages[len(self._answered)] if len(self._answered) < len(stages) else "no stage"
            raise Replayed(f"{stage}: came out of order, {following} is next")
        if not self._fresh:
            raise Replayed(
                f"{stage}: this client was restored from a state that may be an old one; it repeats what it sent, and "
                "goes on only if from_bytes is told the newest generation"
            )

    def _accept(self, stage: str, message: bytes) -> None:
        """Remember what is about to be answered, and have it saved before anything is sent.

        A save that raises may have written: a restart could send what it wrote. So what was to be answered stays, for
        the same input to be answered once it is saved, and for no other.
        """
        if stage not in self._answered:
            self._saved, self._answered[stage] = False, sha256(message).digest()
        if not self._saved and self._save is not None:
            self._save(self)
        self._saved = True

    def to_bytes(self, sealing_key: bytes) -> bytes:
        """This client, sealed under 32 secret bytes: its keys, what it was told, and hashes of what it answered."""
        return seal(client_fields(self), "client", sealing_key)

    @classmethod
    def from_bytes(
        cls,
        data: bytes,
        sealing_key: bytes,
        generation: int | None = None,
        save: Callable[[Client], object] | None = None,
    ) -> Client:
        """The client of a state.

        generation: of the newest state, from where an old one cannot be put back together with it. With it the client
        goes on; without it, it repeats what it sent and refuses anything new: were the state an old one, a second
        vector or answer would be under the keys of the first. Raises Replayed for another generation, FormatError.
        """
        fields = unseal(data, "client", sealing_key)
        self, round = cls.__new__(cls), Round.from_fields(fields)
        self._start(round, round.roster.ids[int(fields["client"])], fields["signing"], fields["secret"])
        take_fields(self, fields)
        if generation is not None and generation != self.generation:
            raise Replayed(f"state of a client: is of generation {self.generation}, the newest is {generation}")
        self._fresh, self._save = generation is not None, save
        return self
