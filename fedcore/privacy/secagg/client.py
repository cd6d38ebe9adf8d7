"""A client of a secure sum: bytes in, bytes out, no sockets, no clock.

Bonawitz et al. 2017, "Practical Secure Aggregation for Privacy-Preserving Machine Learning", CCS, on the graphs of Bell
et al. 2020. fedcore/privacy/secagg/README.md says what it protects from whom.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedcore.errors import PrivacyError, Replayed
from fedcore.privacy.secagg import wire
from fedcore.privacy.secagg.graph import drawn
from fedcore.privacy.secagg.keys import (
    KEY_BYTES,
    SIGNATURE_BYTES,
    RoundKeys,
    Sealed,
    pair_key,
    rooted,
    self_key,
    signed_text,
    signing_key,
)
from fedcore.privacy.secagg.parameters import Parameters
from fedcore.privacy.secagg.peers import SEED, Peer, read_included, read_keys, read_request, read_sealed
from fedcore.privacy.secagg.roster import Id, Roster
from fedcore.privacy.secagg.round import Round
from fedcore.privacy.secagg.state import seal, unseal
from fedcore.privacy.secagg.vector import Integers, Weighted, checked


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
    save         called with the client whenever it is about to send something new; write `to_bytes` to disk there

    Each stage takes the server's message and returns what to send. Called again with the same input it returns the same
    bytes, also after a restart; with another input it raises Replayed, since a second answer would break the masks.
    Messages that are not as the protocol has them raise Forged, Replayed, Void or FormatError and change nothing.
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
        if after is not None and round <= after:
            raise Replayed(
                f"round: got {round}, but this client took part in round {after}; only later ones are joined"
            )
        known = roster if isinstance(roster, Roster) else Roster(roster)
        self._start(Round(parameters, known, session, round, context), client_id, signing_key, os.urandom(KEY_BYTES))
        self._save = save

    def _start(self, round: Round, client_id: Id, key: bytes | Ed25519PrivateKey, secret: bytes) -> None:
        self.round, self.client_id, self._me = round, client_id, round.roster.position(client_id)
        self._signing, self._secret = signing_key(key), secret
        if self._signing.public_key().public_bytes_raw() != round.roster.public(self._me):
            raise PrivacyError(f"signing_key: is not the one that the roster has for {client_id!r}")
        self._keys = RoundKeys(secret, round.binding)
        public = round.graph.public
        self._holders = round.graph.holders(self._me) if public else drawn(round.parameters, self._keys.draw, self._me)
        self._tag = round.binding  # of messages: rooted once the keys are committed to
        self._peers: dict[int, Peer] = {}
        self._partners: list[int] = []
        self._held: dict[int, bytes] = {}
        self._included: set[int] | None = None
        self._inputs: dict[str, bytes] = {}  # what each stage was answered for
        self._vector = b""
        self._fresh = True
        #: sender -> why, of shares that do not open: they are left out of the answer
        self.faults: dict[Id, str] = {}

    @property
    def generation(self) -> int:
        """How many stages were answered: what to keep where an old state cannot be put in place of the newest."""
        return len(self._inputs)

    @property
    def noise_key(self) -> bytes:
        """32 secret bytes of this round for `fc.privacy.Distributed.encode`, the same ones after a restart."""
        return self._keys.noise

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
        root, peers = read_keys(self.round, self._me, self._holders, message)
        tag = rooted(self.round.binding, root)
        body = self._sealed(peers, tag)
        self._peers, self._tag = peers, tag
        self._accept("share", message)
        return self._message("share", body)

    def _sealed(self, peers: dict[int, Peer], tag: bytes) -> bytes:
        """Positions of the holders that are there, then 80 bytes for each."""
        from fedcore.ops import shamir_split

        p = self.round.parameters
        secret = np.frombuffer(self._keys.mask_bytes + self._keys.seed, np.uint8)[None]
        shares = shamir_split(secret, p.threshold, p.neighbours, self._keys.polynomials)
        there = [(x, holder) for x, holder in enumerate(self._holders) if holder in peers]
        parts = [wire.positions([holder for _, holder in there])]
        for x, holder in there:
            name = self.round.roster.ids[holder]
            box = Sealed(self._keys.share, peers[holder].share_public, tag, self._me, holder, name)
            parts.append(box.seal(shares[x, 0].tobytes()))
        shares[:] = 0
        return b"".join(parts)

    def mask(self, message: bytes, vector: Any) -> Iterator[bytes]:
        """The masked vector in chunks, to be sent in their order.

        vector: (length,) integers within the bound, or a `Quantizer`'s `weighted`; it must not change until the last
        chunk is made. Raises also ShapeError, DTypeError, RangeError, NonFiniteError, before the keys are used.
        """
        values = checked(vector, self.round.parameters)
        self._expect("mask", message)
        tag = values.tag(self._keys.vector)
        if self._vector and tag != self._vector:
            raise Replayed("mask: this client masked another vector in this round; the same one may be sent again only")
        partners, sealed = read_sealed(self.round, self._me, self._holders, self._peers, self._tag, message)
        keys, signs = self._mask_keys(partners)
        self._take_shares(partners, sealed)
        self._vector = tag
        self._accept("mask", message)
        return self._chunks(values, keys, signs)

    def _mask_keys(self, partners: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """The client's own mask's key and one for each partner; the lower position adds, the higher one subtracts."""
        keys = [self_key(self._keys.seed, self._tag)]
        for other in partners:
            name = self.round.roster.ids[other]
            keys.append(pair_key(self._keys.mask, self._peers[other].mask_public, self._tag, self._me, other, name))
        signs = [1] + [1 if self._me < other else -1 for other in partners]
        return np.frombuffer(b"".join(keys), np.uint8).reshape(-1, KEY_BYTES).copy(), np.array(signs, np.int8)

    def _take_shares(self, partners: list[int], sealed: dict[int, bytes]) -> None:
        """Open the shares that this client is to hold; one that does not open only cannot be given later."""
        held, faults = {}, {}
        for sender, data in sealed.items():
            name = self.round.roster.ids[sender]
            box = Sealed(self._keys.share, self._peers[sender].share_public, self._tag, sender, self._me, name)
            shares = box.open(data)
            if shares is None:
                faults[name] = "mask: its shares do not open"
            held[sender] = shares or b""
        self._partners, self._held, self.faults = partners, held, faults

    def _chunks(self, values: Weighted | Integers, keys: np.ndarray, signs: np.ndarray) -> Iterator[bytes]:
        from fedcore.ops import pack_bits

        p = self.round.parameters
        if p.malicious:
            yield self._message("mask", wire.positions(self._partners), "included")
        residues = np.empty(min(wire.CHUNK, p.length), np.uint32 if p.modulus_bits <= 32 else np.uint64)
        message = bytearray()
        try:
            for number in range(wire.chunks(p)):
                start, size = number * wire.CHUNK, wire.chunk_bytes(p, number)
                part = residues[: p.length - start]
                values.masked(start, part, keys, signs, p)
                if len(message) != wire.HEADER.size + 4 + size + SIGNATURE_BYTES:
                    message = wire.room(wire.kind_of("mask"), self._me, self._tag, 4 + size)
                body = memoryview(message)[wire.HEADER.size : -SIGNATURE_BYTES]
                body[:4] = number.to_bytes(4, "little")
                pack_bits(part, p.modulus_bits, np.frombuffer(body[4:], np.uint8))
                message[-SIGNATURE_BYTES:] = self._signing.sign(signed_text("mask", self._tag, self._me, body))
                yield bytes(message)
        finally:
            keys[:] = 0

    def acknowledge(self, message: bytes) -> bytes:
        """Whose signed lists this client saw: it will never give a share of their mask secrets."""
        self._expect("acknowledge", message)
        included = read_included(self.round, self._me, self._partners, self._held, self._tag, message)
        self._included = included
        self._accept("acknowledge", message)
        return self._message("acknowledge", wire.positions(sorted(included)))

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

    def _message(self, stage: str, body: bytes, label: str | None = None) -> bytes:
        """A signed message."""
        tag = self.round.binding if stage == "advertise" else self._tag
        signature = self._signing.sign(signed_text(label or stage, tag, self._me, body))
        return wire.pack(wire.kind_of(stage), self._me, tag, body, signature)

    def _expect(self, stage: str, message: bytes) -> None:
        """Raise Replayed unless this stage is next, or was answered for the same message before."""
        stages = self.round.parameters.stages
        if stage in self._inputs:
            if self._inputs[stage] != message:
                raise Replayed(f"{stage}: this client has answered another message; one a round is answered")
            return
        if stage not in stages or stages.index(stage) != len(self._inputs):
            following = stages[len(self._inputs)] if len(self._inputs) < len(stages) else "no stage"
            raise Replayed(f"{stage}: came out of order, {following} is next")
        if not self._fresh:
            raise Replayed(
                f"{stage}: this client was restored from a state that may be an old one; it repeats what it sent, and "
                "goes on only if from_bytes is told the newest generation"
            )

    def _accept(self, stage: str, message: bytes) -> None:
        """Remember what is about to be answered, and have it saved before anything is sent.

        What could not be saved is not remembered either: sent by a second try, it would be unknown to a restart, which
        then answers otherwise under the same keys.
        """
        if stage in self._inputs:
            return
        self._inputs[stage] = bytes(message)
        try:
            if self._save is not None:
                self._save(self)
        except BaseException:
            del self._inputs[stage]
            if stage == "mask":
                self._vector = b""
            raise

    def to_bytes(self, sealing_key: bytes) -> bytes:
        """This client, sealed under 32 secret bytes: its keys, and what it answered."""
        fields = self.round.fields() | {
            "client": str(self._me).encode(),
            "signing": self._signing.private_bytes_raw(),
            "secret": self._secret,
            "vector": self._vector,
        }
        fields |= {f"input {stage}": message for stage, message in self._inputs.items()}
        return seal(fields, "client", sealing_key)

    @classmethod
    def from_bytes(
        cls,
        data: bytes,
        sealing_key: bytes,
        generation: int | None = None,
        save: Callable[[Client], object] | None = None,
    ) -> Client:
        """The client of a state.

        generation: of the newest state, from where an old state cannot be put back together with it. With it the client
        goes on; without it, it repeats what it sent and refuses anything new: were the state an old one, a second
        vector or a second answer to an unmask request would be under the keys of the first. Raises Replayed for a state
        of another generation, FormatError for one that was changed.
        """
        fields = unseal(data, "client", sealing_key)
        self, round = cls.__new__(cls), Round.from_fields(fields)
        self._save = None
        self._start(round, round.roster.ids[int(fields["client"])], fields["signing"], fields["secret"])
        inputs = {stage: fields[f"input {stage}"] for stage in round.parameters.stages if f"input {stage}" in fields}
        if generation is not None and generation != len(inputs):
            raise Replayed(f"state of a client: is of generation {len(inputs)}, the newest is {generation}")
        self._repeat(inputs, fields["vector"])
        self._fresh, self._save = generation is not None, save
        return self

    def _repeat(self, inputs: dict[str, bytes], vector: bytes) -> None:
        """Find again what the messages said."""
        if "share" in inputs:
            root, self._peers = read_keys(self.round, self._me, self._holders, inputs["share"])
            self._tag = rooted(self.round.binding, root)
        if "mask" in inputs:
            found = read_sealed(self.round, self._me, self._holders, self._peers, self._tag, inputs["mask"])
            self._take_shares(*found)
        if "acknowledge" in inputs:
            message = inputs["acknowledge"]
            self._included = read_included(self.round, self._me, self._partners, self._held, self._tag, message)
        self._inputs, self._vector = inputs, vector


def digest_of(*parts: bytes) -> bytes:
    """SHA-256 of what the server broadcast, part after part, each with its length: a round's context."""
    found = hashlib.sha256()
    for part in parts:
        found.update(len(part).to_bytes(8, "little") + part)
    return found.digest()
