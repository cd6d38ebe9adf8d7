"""The server of a secure sum: bytes in, bytes out, and memory for one sum whatever the number of clients."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from functools import cached_property

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fedcore.errors import Forged, Replayed, Void
from fedcore.numbers import shown
from fedcore.privacy.secagg import merkle, wire
from fedcore.privacy.secagg.answers import Answers, Signed, body_of
from fedcore.privacy.secagg.folding import Folding
from fedcore.privacy.secagg.keys import KEY_BYTES, ChunkTags, rooted
from fedcore.privacy.secagg.members import check_signed, longest, read_advertised, read_given, read_list, read_shares
from fedcore.privacy.secagg.neighbourhoods import Neighbourhoods
from fedcore.privacy.secagg.parameters import Parameters
from fedcore.privacy.secagg.recovery import Secrets
from fedcore.privacy.secagg.roster import Id, Roster
from fedcore.privacy.secagg.round import Round
from fedcore.privacy.secagg.server_state import server_fields, take_fields
from fedcore.privacy.secagg.state import check_newest, generation_of, seal, unseal
from fedcore.privacy.secagg.transcripts import Sent
from fedcore.privacy.secagg.uncopied import Uncopied
from fedcore.privacy.secagg.unmasking import SecureSum, unmasked


class Server(Uncopied):
    """One round as its server sees it.

    `receive` every message as it comes; `missing` says whose are not there; `advance` ends a stage with whom is there
    and gives what to send to whom; after the last stage `result`. A member that did not send by then has dropped out.
    parameters, roster, session, round and context are as for `Client`; so are errors. A server is used by one thread.
    `generation`: 32 bytes, new with each `advance`, that name the stage as a client's name its state.
    """

    def __init__(
        self, parameters: Parameters, roster: Roster | dict[Id, bytes], session: bytes, round: int, context: bytes
    ):
        self._start(Round(parameters, Roster.of(roster), session, round, context))

    def _start(self, round: Round) -> None:
        round.require_stream()
        self.round, self._p, self._stage, self.generation = round, round.parameters, 0, generation_of(round, 0)
        self._expected = set(range(self._p.clients))
        self._signed: dict[str, Signed] = {stage: {} for stage in self._p.stages}
        self._lists: Signed = {}  # signed lists of partners, before vectors
        self._done: set[int] = set()  # who has sent all of this stage
        self._around = Neighbourhoods(self._p)
        self._included: frozenset[int] = frozenset()
        self._request: dict[int, list[tuple[int, int]]] = {}
        self._tag, self._sent = round.binding, Sent(self.answers)
        self._private = X25519PrivateKey.from_private_bytes(os.urandom(KEY_BYTES))  # with each member a key for chunks

    @property
    def _public(self) -> bytes:
        return self._private.public_key().public_bytes_raw()

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

    def arriving(self) -> list[Id]:
        """Members whose vectors came in part, first the one not heard of for the longest. Where there is no room for
        more vectors they keep others waiting, until `drop`: whether one has stalled is for a clock to say."""
        waiting = self._folding.waiting if self.stage == "mask" else []
        return [self.round.roster.ids[position] for position in waiting]

    def receive(self, client_id: Id, data: bytes) -> None:
        """Check a message, and keep or fold it.

        Raises Forged for one that its member did not sign, or with what is not the protocol's; Replayed for one that
        came before, late, out of order or from another round; FormatError; RangeError where too many vectors are on
        their way (`arriving`). Such a message changes nothing. Raises Void from where folding one was interrupted.
        """
        stage = self.stage
        who = f"{stage or 'result'}: the message of {shown(client_id)}"
        if client_id not in self.round.roster:
            raise Forged(f"{who}: its sender is not in the roster")
        position = self.round.roster.position(client_id)
        if stage is None:
            raise Replayed(f"{who}: came after the last stage")
        listing = stage == "mask" and self._p.malicious and position not in self._lists
        kind = wire.INCLUDED if listing else stage
        message = wire.unpack(data, wire.kind_of(kind), position, self._tag, longest(self._p, kind), who)
        if position not in self._expected:
            raise Replayed(f"{who}: is not expected, its sender dropped out before or was left out")
        if position in self._done:
            raise Replayed(f"{who}: came before")
        if kind == "mask":
            if whole := self._folding.take(position, message, self._chunk_tags, who):
                self._folding.fold(position, whole, self._done)
            return
        check_signed(self.round, kind, self._tag, message, self._sent, who)
        self._read(kind, position, wire.Reader(message.body, who), who)
        kept = self._lists if listing else self._signed[stage]
        kept[position] = bytes(message.body), message.signature
        if not listing:
            self._done.add(position)

    def _chunk_tags(self, position: int) -> ChunkTags:
        """What checks the chunks of a member."""
        body, mine = self._signed["advertise"][position][0], self._public
        whose = f"mask: the public key of {shown(self.round.roster.ids[position])}"
        return ChunkTags(self._private, body[:KEY_BYTES], self._tag, position, mine, whose)

    def _read(self, kind: str, position: int, reader: wire.Reader, who: str) -> None:
        """Check what a signed message says."""
        p, around = self._p, self._around
        if kind == "advertise":
            around.add(position, read_advertised(self.round, self._private, position, reader, who))
        elif kind == "share":
            read_shares(p, reader, [h for h in around.holders[position] if h in self._signed["advertise"]], who)
        elif kind == wire.INCLUDED:
            read_list(p, reader, around.partners(position), "lists", who)
        elif kind == "acknowledge":
            told = [i for i in around.held_by(position) if i in self._included]
            read_list(p, reader, told, "acknowledges", who)
        else:
            read_given(reader, set(self._request[position]), who)

    def advance(self) -> Mapping[Id, bytes]:
        """End this stage with whom sent; what to send to whom, to start the next. Raises Void where no sum can come.

        Each message is made when it is asked for, and the same one again; those of earlier stages stay what they were.
        """
        stage = self.stage
        if stage is None:
            raise Replayed("advance: the last stage is over; take the result")
        sent = self._sent.following(self._done if stage != "advertise" else ())  # while what was sent is here
        to = set(getattr(self, f"_after_{stage}")(self._done))
        now = generation_of(self.round, self._stage + 1)
        # together: a signal comes between calls only, and half of it would be a state of no stage
        self._stage, self._expected, self._done, self.generation, self._sent = self._stage + 1, to, set(), now, sent
        return self.answers()

    def answers(self) -> Mapping[Id, bytes]:
        """What `advance` gave last, the same bytes, also after a restart; nothing before the first time."""
        stage = self.stage
        if stage in (None, "advertise"):
            return {}
        tag = self.round.binding if stage == "share" else self._tag
        return Answers(self.round, stage, tag, set(self._expected), body_of(self, stage), self._sent.now)

    def _after_advertise(self, done: set[int]) -> set[int]:
        """To each with enough holders: the root, and its neighbours' keys with proofs."""
        advertised, around = self._signed["advertise"], self._around
        going = self._or_void(around.going(done), "advertise")
        tree = merkle.Tree({i: body for i, (body, _) in advertised.items()}, self._p.clients)
        self._tag = rooted(self.round.binding, tree.root)
        return going

    def _or_void(self, going: set[int], stage: str) -> set[int]:
        if len(going) < self._p.min_included:
            raise Void(
                f"{stage}: {len(going)} members can go on, expected at least {self._p.min_included}; the round ends"
            )
        return going

    def _after_share(self, done: set[int]) -> set[int]:
        """To each that enough others hold shares of: with whom to have masks, and the shares it is to hold."""
        around = self._around
        around.sealing = around.going(done)
        return self._or_void(around.sealing, "share")

    def _after_mask(self, done: set[int]) -> set[int]:
        """Ends what comes into the sum. To each in it: who else is, by their signed lists; or what to unmask."""
        if len(done) < self._p.min_included:
            raise Void(f"mask: {len(done)} vectors came, expected at least {self._p.min_included}; the round is void")
        included = sorted(done)
        self._check_needed(included, done, "mask")
        self._included, self._signed["share"] = frozenset(included), {}
        self._lists = {i: self._lists[i] for i in included if i in self._lists}
        self._folding.forget()  # vectors that are still on their way are too late
        return done if self._p.malicious else self._requests(done)

    def _check_needed(self, included: Collection[int], there: set[int], stage: str) -> None:
        for i in self._around.needed(included):
            if not self._around.enough(i, there):
                count = sum(holder in there for holder in self._around.holders[i])
                raise Void(
                    f"{stage}: {count} holders of the shares of {shown(self.round.roster.ids[i])} are left, expected "
                    f"at least {self._p.threshold}; the round is void"
                )

    def _after_acknowledge(self, done: set[int]) -> set[int]:
        """To each that enough of its holders acknowledged: their acknowledgements, and what to unmask."""
        around = self._around
        able = {i for i in done if around.enough(i, done)}
        self._check_needed(self._included, able, "acknowledge")
        return self._requests(able)

    def _requests(self, able: set[int]) -> set[int]:
        needed = self._around.needed(self._included)
        for i in able:
            self._request[i] = [(needed[j], j) for j in self._around.held_by(i) if j in needed]
        return able

    def _after_unmask(self, done: set[int]) -> set[int]:
        self._check_needed(self._included, done, "unmask")
        return set()

    def result(self) -> SecureSum:
        """The sum of the vectors of all survivors. Raises Void where shares do not give the secrets it needs, with whom
        to leave out of the next round, or where a sum leaves its bound; Replayed before the last stage is over."""
        if self.stage is not None:
            raise Replayed(f"result: stage {self.stage} is not over")
        advertised = {i: body for i, (body, _) in self._signed["advertise"].items()}
        secrets = Secrets(self.round, advertised, self._around.drawn.__getitem__)
        for holder, (body, _) in self._signed["unmask"].items():
            secrets.take(holder, body, [of for _, of in self._request[holder]])
        found = secrets.find(self._around.needed(self._included))
        total, partners = self._folding.total, self._around.partners
        total = unmasked(self.round, self._tag, total, found, self._included, advertised, partners)
        ids = self.round.roster.ids
        liars = {ids[i]: why for i, why in secrets.liars.items()}
        return SecureSum(total, [ids[i] for i in sorted(self._included)], liars, secrets.notes)

    def drop(self, client_id: Id) -> None:
        """Count a member out before its stage ends: what came of its vector is forgotten, and nothing more is taken."""
        position = self.round.roster.position(client_id)
        if position not in self._done:
            self._expected.discard(position)
            self._folding.forget(position)

    def to_bytes(self, sealing_key: bytes) -> bytes:
        """This server, sealed under 32 secret bytes. Write it after `advance`, before any of what that gives is sent:
        who is in the sum is decided then, and one that goes on from a state of before could decide otherwise, and be
        given both kinds of shares of one member. Vectors that are not whole are not in it: they are sent again."""
        return seal(server_fields(self), "server", sealing_key)

    @classmethod
    def from_bytes(cls, data: bytes, sealing_key: bytes, generation: bytes | None = None) -> Server:
        """The server of a state. Raises Replayed for one of another stage or round than the newest generation given,
        FormatError for one that was changed."""
        self, fields = cls.__new__(cls), unseal(data, "server", sealing_key)
        check_newest(fields["generation"], generation, "server")
        self._start(Round.from_fields(fields))
        take_fields(self, fields)
        return self
