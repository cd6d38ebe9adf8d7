"""Rounds driven by hand, so that a test can come between any two messages."""

from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedcore.privacy.secagg import wire
from fedcore.privacy.secagg.client import Client
from fedcore.privacy.secagg.keys import KEY_BYTES, SIGNATURE_BYTES, signed_text
from fedcore.privacy.secagg.parameters import Parameters
from fedcore.privacy.secagg.roster import Roster
from fedcore.privacy.secagg.server import Server
from fedcore.privacy.secagg.simulate import answer
from fedcore.privacy.secagg.transcripts import ANSWERING, transcript

SEALING = bytes(range(32))
CONTEXT = bytes(32)
BOUND = 1000


def complete(n: int, threshold: int, adversary: str = "semi_honest", length: int = 5, **changes) -> Parameters:
    """Each a neighbour of all others."""
    given = {"clients": n, "length": length, "bound": BOUND, "corrupt": 0, "dropout": 0, "stream": "chacha20"} | changes
    given.setdefault("modulus_bits", (n * (2 * given["bound"] + 1) - 1).bit_length())
    return Parameters(adversary=adversary, neighbours=n - 1, threshold=threshold, in_degree=n - 1, **given)


def sparse(adversary: str, length: int = 5) -> Parameters:
    """A small graph that is not complete."""
    k, t = (4, 3) if adversary == "malicious" else (6, 4)
    bits = (12 * (2 * BOUND + 1) - 1).bit_length()
    return Parameters(12, length, BOUND, bits, 0, 2, adversary, k, t, 11 if adversary == "malicious" else k)


def key_of(name: int) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(name.to_bytes(32, "big"))


class Rig:
    """A server and its clients; `messages` is what the server sent last, by client."""

    def __init__(
        self, p: Parameters, contexts: dict[int, bytes] | None = None, seed: int = 1, context: bytes = CONTEXT
    ):
        self.p, self.ids = p, list(range(p.clients))
        self.roster = Roster({name: key_of(name + 1).public_key().public_bytes_raw() for name in self.ids})
        self.contexts = contexts or {}
        about = (self.roster, b"session", 7)
        self.server = Server(p, *about, context)
        self.clients = {
            name: Client(p, name, key_of(name + 1), *about, self.contexts.get(name, context)) for name in self.ids
        }
        self.vectors = np.random.default_rng(seed).integers(-BOUND, BOUND + 1, (p.clients, p.length))
        self.messages: dict[int, bytes] = dict.fromkeys(self.ids, b"")

    def answers(self, name: int) -> list[bytes]:
        """What a client says to the server's last message."""
        return list(answer(self.clients[name], self.server.stage, self.messages[name], self.vectors[name]))

    def run(self, until: str | None = None, gone: tuple[int, ...] = ()) -> Rig:
        """Run stages until `until` is the one whose messages are received; those in `gone` send nothing."""
        while self.server.stage != until:
            for name in self.messages:
                if name not in gone:
                    for data in self.answers(name):
                        self.server.receive(name, data)
            self.messages = dict(self.server.advance())
        return self

    def holders(self, name: int) -> list[int]:
        return self.clients[name]._holders


def signature_of(rig: Rig, name: int, kind: str, body: bytes) -> bytes:
    """A member's signature on a body, and where it is of shares on what it was sent."""
    told = transcript(*rig.server._sent.digests(name)) if kind in ANSWERING else b""
    return key_of(name + 1).sign(signed_text(kind, rig.server._tag, name, body, told))


def signed(rig: Rig, name: int, kind: str, body: bytes) -> bytes:
    """What a corrupt member sends: a body of its choice, under its own signature."""
    signature = signature_of(rig, name, kind, body)
    return wire.pack(wire.kind_of(kind), name, rig.server._tag, body, signature)


def body_of(data: bytes) -> bytes:
    """The body of a message that a member signed."""
    return data[wire.HEADER.size : -SIGNATURE_BYTES]


def lying(rig: Rig, bend: Callable[[int, int, bytearray], object]) -> Server:
    """The server after an unmask stage in which every share went through bend(holder, of whom, share), in place."""
    for name in rig.messages:
        (data,) = rig.answers(name)
        body = bytearray(body_of(data))
        for at in range(2, len(body), wire.ENTRY + KEY_BYTES):
            share = body[at + wire.ENTRY : at + wire.ENTRY + KEY_BYTES]
            bend(name, int.from_bytes(body[at + 1 : at + wire.ENTRY], "little"), share)
            body[at + wire.ENTRY : at + wire.ENTRY + KEY_BYTES] = share
        rig.server.receive(name, signed(rig, name, "unmask", bytes(body)))
    rig.server.advance()
    return rig.server


BOTH = pytest.mark.parametrize("adversary", ["semi_honest", "malicious"])


def rig_of(adversary: str = "malicious", n: int = 5, t: int = 3) -> Rig:
    return Rig(complete(n, t, adversary))


def from_server(rig: Rig, stage: str, body: bytes) -> bytes:
    tag = rig.server.round.binding if stage == "share" else rig.server._tag
    return wire.pack(wire.kind_of(stage, server=True), wire.SERVER, tag, body)


def request(rig: Rig, name: int, asked: list[tuple[int, int]]) -> bytes:
    """The server's last message to a client with other shares asked for, everything else as it was."""
    body = rig.messages[name][wire.HEADER.size :]
    old = len(rig.server._request[name])
    head = body[: len(body) - 2 - wire.ENTRY * old]
    return from_server(
        rig, "unmask", head + struct.pack("<H", len(asked)) + b"".join(struct.pack("<BH", *a) for a in asked)
    )
