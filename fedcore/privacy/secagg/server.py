"""The server of a secure sum: bytes in, bytes out, and memory for one sum whatever the number of clients."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fedcore.errors import Forged, Replayed, Void
from fedcore.privacy.secagg import merkle, wire
from fedcore.privacy.secagg.folding import Folding
from fedcore.privacy.secagg.keys import KEY_BYTES, agreed, rooted, signed_text, verified
from fedcore.privacy.secagg.parameters import Parameters
from fedcore.privacy.secagg.peers import MASK, SEED, holders_of
from fedcore.privacy.secagg.roster import Id, Roster
from fedcore.privacy.secagg.round import Round
from fedcore.privacy.secagg.server_state import server_fields, take_fields
from fedcore.privacy.secagg.state import seal, unseal
from fedcore.privacy.secagg.unmasking import Secrets, lifted, mask_keys


@dataclass(frozen=True)
class SecureSum:
    """What a round gave.

    sum        (length,) int64, the exact sum; where there is no bound residues, (length,) uint64 below 2**modulus_bits
    survivors  whose vectors are in it
    liars      member -> what it certainly did, as long as no more than `corrupt` members lie; the sum is true anyhow
    notes      of whose secrets shares were false, whoever it was that lied: their holders or who dealt them
    """

    sum: np.ndarray
    survivors: list[Id]
    liars: dict[Id, str]
    notes: list[str]


class Server:
    """One round as its server sees it.

    `receive` every message as it comes; `missing` says whose are not there; `advance` ends a stage with whom is there
    and gives what to send to whom; after the last stage `result`. A member that did not send by then has dropped out.
    parameters, roster, session, round and context are as for `Client`.
    """

    def __init__(
        self,
        parameters: Parameters,
        roster: Roster | dict[Id, bytes],
        session: bytes,
        round: int,
        context: bytes,
    ):
        known = roster if isinstance(roster, Roster) else Roster(roster)
        self._start(Round(parameters, known, session, round, context))

    def _start(self, round: Round) -> None:
        self.round, self._p, self._stage = round, round.parameters, 0
        self._expected = set(range(self._p.clients))
        self._signed: dict[str, dict[int, tuple[bytes, bytes]]] = {stage: {} for stage in self._p.stages}
        self._lists: dict[int, tuple[bytes, bytes]] = {}  # signed lists of partners, before vectors
        self._done: set[int] = set()  # who has sent all of this stage
        self._sealing: set[int] = set()  # who shared, and can be unmasked
        self._included: list[int] = []
        self._request: dict[int, list[tuple[int, int]]] = {}
        self._tree: merkle.Tree | None = None
        self._tag = round.binding
        self._holders: dict[int, list[int]] = {}
        self._low_order_check = X25519PrivateKey.from_private_bytes(os.urandom(KEY_BYTES))

    @cached_property
    def _folding(self) -> Folding:
        return Folding(self._p)

    @property
    def stage(self) -> str | None:
        """The stage whose messages are received now, or None after the last."""
        return self._p.stages[self._stage] if self._stage < len(self._p.stages) else None

    def missing(self) -> list[Id]:
        """Members whose message of this stage is expected and did not come."""
        return [self.round.roster.ids[position] for position in sorted(self._expected - self._done)]

    def receive(self, client_id: Id, data: bytes) -> None:
        """Check a message, and keep or fold it.

        Raises Forged for one that its member did not sign, or with what is not the protocol's; Replayed for one that
        came before, late, out of order or from another round; FormatError; RangeError where too many vectors are on
        their way at once. Such a message changes nothing.
        """
        stage = self.stage
        who = f"{stage or 'result'}: the message of {client_id!r}"
        if client_id not in self.round.roster:
            raise Forged(f"{who}: its sender is not in the roster")
        position = self.round.roster.position(client_id)
        if stage is None:
            raise Replayed(f"{who}: came after the last stage")
        message = wire.unpack(data, wire.kind_of(stage), position, self._tag, self._most(stage), who)
        if position not in self._expected:
            raise Replayed(f"{who}: is not expected, its sender dropped out before or was left out")
        if position in self._done:
            raise Replayed(f"{who}: came before")
        listing = stage == "mask" and self._p.malicious and position not in self._lists
        text = signed_text("included" if listing else stage, self._tag, position, message.body)
        if not verified(self.round.roster.public(position), message.signature, text):
            raise Forged(f"{who}: is not signed by it for this stage")
        if listing:
            self._take_list(position, message, who)
        elif stage == "mask":
            if self._folding.take(position, message.body, who):
                self._done.add(position)
        else:
            getattr(self, f"_check_{stage}")(position, wire.Reader(message.body, who), who)
            self._signed[stage][position] = bytes(message.body), message.signature
            self._done.add(position)

    def _most(self, stage: str) -> int:
        """Bytes of the longest honest body of a stage."""
        p = self._p
        return {
            "advertise": wire.advertised_bytes(p),
            "share": 2 + p.neighbours * (2 + wire.SEALED),
            "mask": max(4 + wire.chunk_bytes(p, 0), 2 + 2 * wire.degree(p)),
            "acknowledge": 2 + 2 * wire.degree(p),
            "unmask": 2 + wire.degree(p) * (wire.ENTRY + KEY_BYTES),
        }[stage]

    def _check_advertise(self, position: int, reader: wire.Reader, who: str) -> None:
        body = reader.take(wire.advertised_bytes(self._p))
        reader.done()
        for public in (body[:32], body[32:64]):
            agreed(self._low_order_check, public, self.round.roster.ids[position])
        self._holders[position] = holders_of(self.round, position, body, who)

    def _check_share(self, position: int, reader: wire.Reader, who: str) -> None:
        there = reader.positions(self._p.clients, self._p.neighbours)
        if there != [h for h in self._holders[position] if h in self._signed["advertise"]]:
            raise Forged(f"{who}: has shares for others than its holders")
        reader.take(wire.SEALED * len(there))
        reader.done()

    def _take_list(self, position: int, message: wire.Signed, who: str) -> None:
        reader = wire.Reader(message.body, who)
        listed = reader.positions(self._p.clients, wire.degree(self._p))
        reader.done()
        if listed != self._partners(position):
            raise Forged(f"{who}: lists other members than it was told of")
        self._lists[position] = bytes(message.body), message.signature

    def _check_acknowledge(self, position: int, reader: wire.Reader, who: str) -> None:
        listed = reader.positions(self._p.clients, wire.degree(self._p))
        reader.done()
        if listed != [i for i in self._held_by(position) if i in self._included]:
            raise Forged(f"{who}: acknowledges other members than it was told of")

    def _check_unmask(self, position: int, reader: wire.Reader, who: str) -> None:
        asked, given = set(self._request[position]), set()
        for _ in range(reader.number()):
            entry = reader.number(1), reader.number()
            if entry not in asked or entry in given:
                raise Forged(f"{who}: has a share that was not asked for, or one twice")
            given.add(entry)
            reader.take(KEY_BYTES)
        reader.done()

    def _partners(self, position: int) -> list[int]:
        """Members that shared and have a mask with a member."""
        return [i for i in self._neighbours[position] if i in self._sealing]

    def _held_by(self, holder: int) -> list[int]:
        """Members that shared and whose shares a member holds, ascending."""
        return [i for i in self._wards[holder] if i in self._sealing]

    @cached_property
    def _wards(self) -> dict[int, list[int]]:
        """Holder -> whose shares it holds; read first when all have advertised."""
        found: dict[int, list[int]] = {i: [] for i in range(self._p.clients)}
        for position in sorted(self._signed["advertise"]):
            for holder in self._holders[position]:
                found[holder].append(position)
        return found

    @cached_property
    def _neighbours(self) -> dict[int, list[int]]:
        """Member -> all that advertised and are its holders or have it as one, ascending."""
        there = self._signed["advertise"].keys()
        return {i: sorted((set(self._holders[i]) & there) | set(self._wards[i])) for i in there}

    def advance(self) -> dict[Id, bytes]:
        """End this stage with whom sent; what to send to whom, to start the next. Raises Void where no sum can come."""
        stage = self.stage
        if stage is None:
            raise Replayed("advance: the last stage is over; take the result")
        done = self._done
        messages = getattr(self, f"_after_{stage}")(done)
        self._stage += 1
        self._expected, self._done = set(messages), set()
        following = self.stage
        if following is None:
            return {}
        kind, ids = wire.kind_of(following, server=True), self.round.roster.ids
        tag = self.round.binding if following == "share" else self._tag
        return {ids[i]: wire.pack(kind, wire.SERVER, tag, body) for i, body in sorted(messages.items())}

    def _after_advertise(self, done: set[int]) -> dict[int, bytes]:
        """To each with enough holders: the root, and its neighbours' keys with proofs."""
        p, advertised = self._p, self._signed["advertise"]
        self._tree = merkle.Tree({i: body for i, (body, _) in advertised.items()}, p.clients)
        self._tag = rooted(self.round.binding, self._tree.root)
        entries = {}
        for i, (body, signature) in advertised.items():
            entries[i] = body + signature + self._tree.proof(i) if p.malicious else body
        messages = {}
        for i in done:
            crowded = len(self._wards[i]) > p.in_degree
            if self._enough(i, done) and not crowded:
                found = self._neighbours[i]
                messages[i] = self._tree.root + wire.positions(found) + b"".join(entries[j] for j in found)
        return self._or_void(messages, "advertise")

    def _enough(self, position: int, there: set[int]) -> bool:
        return sum(holder in there for holder in self._holders[position]) >= self._p.threshold

    def _or_void(self, messages: dict[int, bytes], stage: str) -> dict[int, bytes]:
        if len(messages) < self._p.min_included:
            raise Void(
                f"{stage}: {len(messages)} members can go on, expected at least {self._p.min_included}; the round ends"
            )
        return messages

    def _after_share(self, done: set[int]) -> dict[int, bytes]:
        """To each that enough others hold shares of: with whom to have masks, and the shares it is to hold."""
        sealing = set(done)
        while True:  # who is left out holds nobody's shares
            left = {i for i in sealing if self._enough(i, sealing)}
            if left == sealing:
                break
            sealing = left
        self._sealing = sealing
        messages = {}
        for i in sealing:
            partners = self._partners(i)
            wards = set(self._wards[i])
            messages[i] = wire.positions(partners) + b"".join(self._share_for(j, i) for j in partners if j in wards)
        return self._or_void(messages, "share")

    def _share_for(self, sender: int, holder: int) -> bytes:
        """The sealed shares from one member to another."""
        body = self._signed["share"][sender][0]
        count = int.from_bytes(body[:2], "little")
        there = struct.unpack_from(f"<{count}H", body, 2)
        start = 2 + 2 * count + wire.SEALED * there.index(holder)
        return body[start : start + wire.SEALED]

    def _after_mask(self, done: set[int]) -> dict[int, bytes]:
        """Ends what comes into the sum. To each in it: who else is, by their signed lists; or what to unmask."""
        self._included = sorted(done)
        self._signed["share"].clear()
        if len(done) < self._p.min_included:
            raise Void(f"mask: {len(done)} vectors came, expected at least {self._p.min_included}; the round is void")
        self._check_needed(done, "mask")
        if not self._p.malicious:
            return self._requests(done, dict.fromkeys(done, wire.members(done, self._p.clients)))
        messages = {}
        for i in done:
            wards = [j for j in self._held_by(i) if j in done]
            parts = [struct.pack("<H", j) + b"".join(self._lists[j]) for j in wards]
            messages[i] = len(wards).to_bytes(2, "little") + b"".join(parts)
        return messages

    def _needed(self) -> dict[int, int]:
        """Member -> which of its secrets the sum needs."""
        included = set(self._included)
        needed = dict.fromkeys(self._included, SEED)
        for i in self._sealing - included:
            if included & set(self._neighbours[i]):
                needed[i] = MASK
        return needed

    def _check_needed(self, there: set[int], stage: str) -> None:
        for i in self._needed():
            if not self._enough(i, there):
                count = sum(holder in there for holder in self._holders[i])
                raise Void(
                    f"{stage}: {count} holders of the shares of {self.round.roster.ids[i]!r} are left, expected "
                    f"at least {self._p.threshold}; the round is void"
                )

    def _after_acknowledge(self, done: set[int]) -> dict[int, bytes]:
        """To each that enough of its holders acknowledged: their acknowledgements, and what to unmask."""
        able = {i for i in done if self._enough(i, done)}
        self._check_needed(able, "acknowledge")
        heads = {}
        for i in able:
            holders = [j for j in self._holders[i] if j in done]
            parts = [struct.pack("<H", j) + b"".join(self._signed["acknowledge"][j]) for j in holders]
            heads[i] = len(holders).to_bytes(2, "little") + b"".join(parts)
        return self._requests(able, heads)

    def _requests(self, able: set[int], heads: dict[int, bytes]) -> dict[int, bytes]:
        needed, messages = self._needed(), {}
        for i in able:
            asked = [(needed[j], j) for j in self._held_by(i) if j in needed]
            self._request[i] = asked
            body = b"".join(struct.pack("<BH", kind, j) for kind, j in asked)
            messages[i] = heads[i] + len(asked).to_bytes(2, "little") + body
        return messages

    def _after_unmask(self, done: set[int]) -> dict[int, bytes]:
        self._check_needed(done, "unmask")
        return {}

    def result(self) -> SecureSum:
        """The sum of the vectors of all survivors. Raises Void where shares do not give the secrets it needs, or where
        a sum leaves its bound, as when masks do not cancel; Replayed before the last stage is over."""
        if self.stage is not None:
            raise Replayed(f"result: stage {self.stage} is not over")
        secrets = self._secrets()
        found = {i: secrets.find(i, kind) for i, kind in self._needed().items()}
        total = self._unmasked(found)
        ids = self.round.roster.ids
        liars = {ids[i]: why for i, why in secrets.liars.items()}
        return SecureSum(total, [ids[i] for i in self._included], liars, secrets.notes)

    def _secrets(self) -> Secrets:
        advertised = {i: body for i, (body, _) in self._signed["advertise"].items()}
        secrets = Secrets(self.round, advertised, self._holders.__getitem__)
        for holder, (body, _) in self._signed["unmask"].items():
            for at in range(2, len(body), wire.ENTRY + KEY_BYTES):
                _, of = struct.unpack_from("<BH", body, at)
                secrets.add(of, holder, body[at + wire.ENTRY : at + wire.ENTRY + KEY_BYTES])
        return secrets

    def _unmasked(self, found: dict[int, bytes]) -> np.ndarray:
        from fedcore.ops import unmask_sum

        p, included = self._p, set(self._included)
        keys, signs = mask_keys(
            self.round,
            self._tag,
            {i: found[i] for i in self._included},
            {i: secret for i, secret in found.items() if i not in included},
            lambda i: self._signed["advertise"][i][0][32:64],
            self._partners,
        )
        total = unmask_sum(self._folding.total, keys, signs, p.modulus_bits, stream=p.stream)
        if not p.bound:
            return total.astype(np.uint64)
        return lifted(total, p, len(included))

    def drop(self, client_id: Id) -> None:
        """Count a member out before its stage ends: what came of its vector is forgotten, and nothing more is taken."""
        position = self.round.roster.position(client_id)
        if position not in self._done:
            self._expected.discard(position)
            self._folding.forget(position)

    def to_bytes(self, sealing_key: bytes) -> bytes:
        """This server, sealed under 32 secret bytes. Write it before what `advance` gives is sent: `advance` of the
        same state gives the same bytes. Vectors that are not whole are not in it: their clients send them again."""
        return seal(server_fields(self), "server", sealing_key)

    @classmethod
    def from_bytes(cls, data: bytes, sealing_key: bytes) -> Server:
        """The server of a state. Raises FormatError for one that was changed."""
        self, fields = cls.__new__(cls), unseal(data, "server", sealing_key)
        self._start(Round.from_fields(fields))
        take_fields(self, fields)
        return self
