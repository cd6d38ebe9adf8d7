"""A client of a secure sum: bytes in, bytes out, no sockets, no clock.

Bonawitz et al. 2017, "Practical Secure Aggregation for Privacy-Preserving Machine Learning", CCS, on the graphs of Bell
et al. 2020. fedcore/privacy/secagg/README.md says what it protects from whom.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import cached_property
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
from fedcore.privacy.secagg.state import check_newest, seal, unseal
from fedcore.privacy.secagg.turns import Turns
from fedcore.privacy.secagg.vector import checked


class Client(Turns):
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

    Each stage takes the server's message and returns what to send. Called again with the same input it returns the same
    bytes, also after a restart; with another it raises Replayed: a second answer would break the masks. With 'unmask'
    keys are wiped, and that answer alone is repeated. Bad messages raise Forged, Replayed, Void or FormatError and
    change nothing; a stream that does not run here BackendError. Threads wait for one another. A client is not copied;
    of two that come from one state `save` has to stop one (README.md). `close` it, or use `with`: rounds may end early.
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
        self._start(made, client_id, signing_key, bytearray(os.urandom(KEY_BYTES)), save)

    def _start(
        self,
        round: Round,
        client_id: Id,
        key: bytes | Ed25519PrivateKey | None,
        secret: bytearray,
        save: Callable[[Client], object] | None,
    ) -> None:
        """No key and an empty secret are those of a client that has wiped them."""
        self._begin(round, save)
        self.client_id, self._me = client_id, round.roster.position(client_id)
        round.require_stream()
        self._signing, self._secret = None if key is None else signing_key(key), secret
        if self._signing and self._signing.public_key().public_bytes_raw() != round.roster.public(self._me):
            raise PrivacyError(f"signing_key: is not the one that the roster has for {shown(client_id)}")
        self._keys = RoundKeys(secret, round.binding)
        self._tag = round.binding  # of messages: rooted once the keys are committed to
        self._peers: dict[int, Peer] = {}
        self._tags: ChunkTags | None = None  # from 'share' on, as is `_server`
        self._seals: Seals | None = None  # from 'share' until shares are opened
        self._partners: list[int] = []
        self._held: dict[int, bytearray] = {}
        self._included: set[int] | None = None
        self._vector = b""

    @cached_property
    def _holders(self) -> list[int]:
        graph = self.round.graph
        if graph.public:
            return graph.holders(self._me)
        return drawn(self.round.parameters, self._keys.derived("draw"), self._me)

    @property
    def faults(self) -> dict[Id, str]:
        """Sender -> why, of shares that do not open, whoever made them so: they are left out of the answer."""
        ids = self.round.roster.ids
        return {ids[sender]: "mask: its shares do not open" for sender, shares in self._held.items() if not shares}

    @property
    def noise_key(self) -> bytes:
        """32 secret bytes of this round for `fc.privacy.Distributed.encode`, the same ones after a restart."""
        self._require_keys("noise_key")
        return self._keys.derived("noise")

    def advertise(self) -> bytes:
        """Public keys, and against a malicious server the holders that this client drew."""
        with self._alone("advertise"):
            self._expect("advertise", b"")
            body = self._keys.advertised()
            if not self.round.graph.public:
                body += wire.positions(self._holders)[2:]
            self._accept("advertise", b"")
            return self._message("advertise", body)

    def share(self, message: bytes) -> bytes:
        """Shares of this client's seed and mask secret, sealed to each holder."""
        with self._alone("share"):
            self._expect("share", message)
            found = read_keys(self.round, self._me, self._holders, message)
            tag = rooted(self.round.binding, found.root)
            seals = seals_of(self.round, self._keys, self._me, tag)
            body = sealed_shares(self.round, self._keys, seals, self._holders, found.peers)
            if "share" not in self._answered:
                self._take_keys(tag, found.server, found.peers, seals)
            self._accept("share", message)
            return self._message("share", body, self._told("share", message))

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
        with self._alone("mask"):
            self._expect("mask", message)
            partners, sealed = read_sealed(self.round, self._holders, self._peers, self._tag, message)
            keys = mask_keys(self._keys, self._tag, self._me, partners, self._peers, self.round.roster.ids)
            packed = masked(values, *keys, p)
            known = fingerprint(packed, self._keys.derived("vector"))
            if self._vector and known != self._vector:
                raise Replayed("mask: this client masked another vector in this round; send that one again")
            if "mask" not in self._answered:
                assert self._seals is not None
                self._held = opened_shares(self._seals, self._peers, sealed)
                self._partners, self._vector = partners, known
            self._accept("mask", message)
            self._seals = None  # opened once: a share message that is repeated makes its own
            first = [self._message(wire.INCLUDED, wire.positions(partners))] if p.malicious else []
            return self._chunks(first, packed)

    def _chunks(self, first: list[bytes], packed: np.ndarray) -> Iterator[bytes]:
        """The messages that carry a masked vector, in order, after the list of those whose masks are in it."""
        p, at = self.round.parameters, 0
        yield from first
        for number in range(wire.chunks(p)):
            part = packed[at : at + wire.chunk_bytes(p, number)].data
            self._require_keys("mask")
            assert self._tags is not None
            yield wire.chunk(self._me, self._tag, number, part, self._tags.tag(number, part))
            at += len(part)

    def acknowledge(self, message: bytes) -> bytes:
        """Whose signed lists this client saw: it will never give a share of their mask secrets."""
        with self._alone("acknowledge"):
            self._expect("acknowledge", message)
            self._included = read_included(self.round, self._me, self._partners, self._held, self._tag, message)
            self._accept("acknowledge", message)
            return self._message("acknowledge", wire.positions(sorted(self._included)))

    def unmask(self, message: bytes) -> bytes:
        """The shares that the server asks for, if it may: one request a round is answered. Keys are wiped with it."""
        with self._alone("unmask"):
            self._expect("unmask", message)
            sent = self._sent
            if "unmask" not in self._answered:
                holders, held = self._holders, self._held
                asked = read_request(self.round, self._me, holders, held, self._included, self._tag, message)
                sent = self._message("unmask", self._shares(asked), self._told("unmask", message))
            self._accept("unmask", message, sent)
            return sent

    def _shares(self, asked: list[tuple[int, int]]) -> bytes:
        """The shares of these kinds and members, but for those that did not open."""
        parts = []
        for kind, position in asked:
            if shares := self._held[position]:
                half = shares[KEY_BYTES:] if kind == SEED else shares[:KEY_BYTES]
                parts.append(bytes([kind]) + position.to_bytes(2, "little") + half)
        return len(parts).to_bytes(2, "little") + b"".join(parts)

    def _message(self, stage: str, body: bytes, told: bytes = b"") -> bytes:
        """A signed message."""
        assert self._signing is not None
        tag = self.round.binding if stage == "advertise" else self._tag
        signature = self._signing.sign(signed_text(stage, tag, self._me, body, told))
        return wire.pack(wire.kind_of(stage), self._me, tag, body, signature)

    def _forget(self) -> None:
        """Overwrite secrets, and let go of what they can be found from; which shares did not open stays known."""
        self._keys.wipe()
        for shares in self._held.values():
            shares[:] = bytes(len(shares))
        self._held = {sender: shares for sender, shares in self._held.items() if not shares}
        self._signing = self._tags = self._seals = None
        self._peers, self._vector = {}, b""

    def to_bytes(self, sealing_key: bytes) -> bytes:
        """This client, sealed under 32 secret bytes: its keys, what it was told, and hashes of what it answered; after
        'unmask' that answer alone."""
        with self._lock.shared("to_bytes"):  # between stages, or in `save`
            self._require_open("to_bytes")
            return seal(client_fields(self), "client", sealing_key)

    @classmethod
    def from_bytes(
        cls,
        data: bytes,
        sealing_key: bytes,
        generation: bytes | None = None,
        save: Callable[[Client], object] | None = None,
    ) -> Client:
        """The client of a state.

        generation: of the newest state, from where an old one cannot be put back together with it. With it the client
        goes on; without it, it repeats what it sent and refuses anything new: were the state an old one, a second
        vector or answer would be under the keys of the first. Raises Replayed for a state of another generation, be it
        of another round, session, member or process; PrivacyError, FormatError.
        """
        fields = unseal(data, "client", sealing_key)
        check_newest(fields["generation"], generation, "client")
        self, round = cls.__new__(cls), Round.from_fields(fields)
        name, secret = round.roster.ids[int(fields["client"])], bytearray(fields.get("secret", b""))
        self._start(round, name, fields.get("signing"), secret, save)
        take_fields(self, fields)
        self._fresh = generation is not None
        return self
