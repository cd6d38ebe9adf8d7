"""Messages that are anything but what they should be, some of them under the true signatures of corrupt members."""

from __future__ import annotations

import contextlib
import random
import struct

import pytest
from secagg.driver import BOTH, SEALING, Rig, body_of, complete, rig_of, signed, sparse

from fedcore.errors import FedcoreError, Forged, FormatError
from fedcore.privacy.secagg import wire
from fedcore.privacy.secagg.keys import KEY_BYTES
from fedcore.privacy.secagg.peers import MASK, SEED
from fedcore.privacy.secagg.server import Server

KINDS = pytest.mark.parametrize(
    "make", [lambda: complete(3, 2), lambda: complete(4, 3, "malicious"), lambda: sparse("malicious")]
)


def refused(rig, name, kind, body, error=Forged) -> str:
    """What a signed body is refused for; it changes nothing."""
    before, start = rig.server.missing(), f"{rig.server.stage}: the message of {name}: "
    with pytest.raises(error, match=f"^{start}") as caught:
        rig.server.receive(name, signed(rig, name, kind, body))
    assert rig.server.missing() == before
    return str(caught.value).removeprefix(start)


def ends_well(rig) -> bool:
    """Whether the round gives the sum of all with the messages that are right."""
    rig.run()
    return bool((rig.server.result().sum == rig.vectors.sum(0)).all())


@pytest.mark.parametrize("make", [lambda: rig_of("semi_honest"), lambda: rig_of(), lambda: Rig(sparse("malicious"))])
def test_shares_for_others_than_a_members_holders_are_refused(make):
    rig = make().run("share")
    body, holders = body_of(rig.answers(0)[0]), rig.holders(0)
    other = next((i for i in range(1, rig.p.clients) if i not in holders), 0)  # in a complete graph itself

    def sealed_for(names):
        return wire.positions(names) + bytes(wire.SEALED * len(names))

    for names in (sorted([other, *holders[1:]]), holders[1:], []):
        assert "has shares for others than its holders" in refused(rig, 0, "share", sealed_for(names))
    assert "names a member twice or out of order" in refused(rig, 0, "share", sealed_for([holders[0], *holders[:-1]]))
    assert "names member 40000 of" in refused(rig, 0, "share", sealed_for([*holders[:-1], 40_000]))
    assert "is cut short" in refused(rig, 0, "share", body[:-1], FormatError)
    assert "lists 60000 members" in refused(rig, 0, "share", struct.pack("<H", 60_000) + body[2:], FormatError)
    assert ends_well(rig)


@pytest.mark.parametrize(("stage", "what"), [("mask", "lists"), ("acknowledge", "acknowledges")])
@pytest.mark.parametrize("make", [rig_of, lambda: Rig(sparse("malicious"))])
def test_a_list_of_others_than_its_member_was_told_of_is_refused(stage, what, make):
    """Who signs that it has masks with, or saw the list of, other members could have these called gone, or there."""
    rig = make().run(stage)
    kind = wire.INCLUDED if stage == "mask" else stage
    bodies = {name: body_of(next(iter(rig.answers(name)))) for name in rig.messages}
    name, body = max(bodies.items(), key=lambda item: len(item[1]))  # the graph is drawn anew in every run
    told = wire.Reader(memoryview(body), "").positions(rig.p.clients, rig.p.clients)
    untold = next((i for i in rig.ids if i not in (name, *told)), name)
    lists = [told[1:], [], sorted([*told[1:], untold])]
    if wire.degree(rig.p) > len(told):
        lists.append(sorted([*told, untold]))
    for names in lists:
        assert f"{what} other members than it was told of" in refused(rig, name, kind, wire.positions(names))
    assert "names a member twice or out of order" in refused(rig, name, kind, wire.positions([told[0], *told[:-1]]))
    assert "is cut short" in refused(rig, name, kind, body[:-1], FormatError)
    assert "has 2 bytes too many" in refused(rig, name, kind, wire.positions(told[1:]) + b"\0\0", FormatError)
    assert ends_well(rig)


@BOTH
def test_a_share_that_was_not_asked_for_or_is_there_twice_is_refused(adversary):
    """Both kinds of share of one member would open its vector; the server has to refuse what corrupt members offer."""
    rig = rig_of(adversary).run("unmask")
    asked = rig.server._request[0]
    assert asked
    share = bytes(KEY_BYTES)

    def given(entries):
        return struct.pack("<H", len(entries)) + b"".join(struct.pack("<BH", *entry) + share for entry in entries)

    kind, of = asked[0]
    other = {SEED: MASK, MASK: SEED}[kind]
    instead = [[entry, *asked[1:]] for entry in ((other, of), (kind, 0), (3, of), (0, of), (kind, 40_000))]
    for entries in (*instead, [*asked[1:], asked[1]]):
        assert "has a share that was not asked for, or one twice" in refused(rig, 0, "unmask", given(entries))
    assert "is cut short" in refused(rig, 0, "unmask", given(asked)[:-1], FormatError)
    assert "has 1 bytes too many" in refused(rig, 0, "unmask", given(asked[1:]) + b"\0", FormatError)
    assert ends_well(rig)


@KINDS
def test_decoders_raise_nothing_but_our_errors(make):
    """Every message of a round, changed at random, to the side that reads it, which then still takes the right one.

    Of what members sign, once with the signature left as it was and once with their own of what it says now.
    """
    p = make()
    rig, rng, read = Rig(p), random.Random(p.clients), set()
    while rig.server.stage:
        for name in list(rig.messages):
            client, stage, vector = rig.clients[name], rig.server.stage, rig.vectors[name]
            if stage != "advertise" and name < 2:
                for data in _changed(rng, rig.messages[name], 25):
                    if not _means_the_same(rig.messages[name], data):
                        _must_refuse(lambda data=data, c=client, s=stage, v=vector: _read(c, s, data, v))
            for data in rig.answers(name):
                if name < 2:
                    for bad in _changed(rng, data, 25):
                        _must_refuse(lambda bad=bad, n=name: rig.server.receive(n, bad))
                    kind = wire._KINDS[data[5]]
                    if kind != "mask":
                        read |= {(kind, taken) for taken in _signed_anew(rng, rig, name, kind, data)}
                rig.server.receive(name, data)
        rig.messages = rig.server.advance()
    assert (rig.server.result().sum == rig.vectors.sum(0)).all()
    kinds = {wire.INCLUDED, *p.stages} - ({"mask"} if p.malicious else {"mask", wire.INCLUDED})
    assert {kind for kind, taken in read if not taken} == kinds
    taken = {kind for kind, taken in read if taken}
    assert {"advertise", "share"} <= taken <= {"advertise", "share", "unmask"}


def _signed_anew(rng, rig, name, kind, data):
    """Whether the server took each changed body; it takes no other than one whose form is that of the right one."""
    good, state = body_of(data), rig.server.to_bytes(SEALING)
    for body in _changed(rng, good, 60):
        server, said = Server.from_bytes(state, SEALING), ""
        try:
            server.receive(name, signed(rig, name, kind, body))
        except FedcoreError as error:
            said = str(error)
        yield not said
        if said:
            assert said.startswith(f"{server.stage}: ")
            assert str(name) in said
            server.receive(name, data)
        else:
            assert _form(rig.p, name, kind, body) == _form(rig.p, name, kind, good)


def _form(p, name, kind, body):
    """What of a body is for the server to check: keys, sealed shares and shares are tried when they are used."""
    if kind == "advertise":
        assert len(body) % 2 == 0
        drawn = list(struct.unpack_from(f"<{(len(body) - wire.ADVERTISED) // 2}H", body, wire.ADVERTISED))
        return len(body), drawn == sorted({*drawn} - {name}), max(drawn, default=0) < p.clients
    if kind == "share":
        listed = 2 + 2 * int.from_bytes(body[:2], "little")
        return len(body), body[:listed]
    if kind == "unmask":
        size = wire.ENTRY + KEY_BYTES
        return len(body), body[:2], sorted(body[at : at + wire.ENTRY] for at in range(2, len(body), size))
    return body


def _read(client, stage, data, vector):
    if stage == "mask":
        return client.mask(data, vector)
    return getattr(client, stage)(data)


def _must_refuse(read):
    with contextlib.suppress(FedcoreError):
        read()
        raise AssertionError("a changed message was taken")


def _changed(rng, good, count):
    """Others than `good`: bytes set, cut off, put in, left out, put twice."""
    for _ in range(count):
        data, (start, end) = bytearray(good), sorted(rng.randrange(len(good)) for _ in range(2))
        for _ in range(rng.choice((0, 1, 1, 3))):
            # counts and lists are at the beginning
            data[rng.randrange(rng.choice((min(8, len(data)), len(data))))] = rng.choice(
                (0, 1, 2, 255, rng.randrange(256))
            )
        data[start:end] = rng.choice((data[start:end], data[start:end], b"", 2 * data[start:end]))
        changed = bytes(data[: rng.choice((None, None, start))]) + rng.randbytes(rng.choice((0, 0, 5)))
        if changed != good:
            yield changed


def _means_the_same(good, changed):
    """A sealed share that was changed is taken: it is left out later. So is a key that was, by clients that trust."""
    kind = good[5]
    return kind in (17, 18) and len(good) == len(changed) and good[: wire.HEADER.size] == changed[: wire.HEADER.size]
