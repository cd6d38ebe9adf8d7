"""In a complete graph clients hold a malicious server to one set of members for all, with at least `min_included`."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np
import pytest
from secagg.driver import BOUND, Rig, body_of, from_server, signed

import fedcore as fc
from fedcore import ops
from fedcore.errors import Forged, Void
from fedcore.privacy.secagg import wire
from fedcore.privacy.secagg.keys import KEY_BYTES, TAG_BYTES
from fedcore.privacy.secagg.parameters import Parameters
from fedcore.privacy.secagg.peers import MASK, SEED
from fedcore.privacy.secagg.recovery import Secrets
from fedcore.privacy.secagg.unmasking import unmasked


def lists(found: Collection[int], signed_by: Mapping[int, bytes]) -> bytes:
    return struct.pack("<H", len(found)) + b"".join(struct.pack("<H", j) + signed_by[j] for j in sorted(found))


def learned(p: Parameters, out: Collection[int], hidden: Mapping[int, Collection[int]], corrupt: int = 0) -> int:
    """Of how many a server learns the sum that hides the lists of some of `out` from each client; 0: it learns none.

    hidden: client -> whose lists it does not see. The last `corrupt` members give both of all their shares and sign
    what the server likes; of the others' acknowledgements a client is shown all, and then, if it must, those it takes.
    """
    rig = Rig(p).run("mask")
    chunks = {}
    for i in rig.ids:
        first, *chunks[i] = rig.answers(i)
        for data in (first, *chunks[i]):
            rig.server.receive(i, data)
    rig.server.advance()
    server, liars = rig.server, rig.ids[p.clients - corrupt :]
    inside = [i for i in rig.ids if i not in out]
    honest = [i for i in inside if i not in liars]
    views = {i: set(rig.ids) - set(hidden.get(i, ())) for i in honest}
    before = {i: b"".join(server._lists[i]) for i in rig.ids}
    acks = {
        i: rig.clients[i].acknowledge(from_server(rig, "acknowledge", lists(views[i] - {i}, before))) for i in honest
    }
    advertised = {i: body for i, (body, _) in server._signed["advertise"].items()}
    secrets = Secrets(server.round, advertised, rig.holders)
    for i in honest:
        lies = {j: signed(rig, j, "acknowledge", wire.positions(sorted(views[i] - {j}))) for j in liars}
        shown = {j: ack[wire.HEADER.size :] for j, ack in (acks | lies).items() if j != i}
        request = struct.pack("<H", p.clients - 1) + b"".join(
            struct.pack("<BH", SEED if j in views[i] else MASK, j) for j in rig.ids if j != i
        )
        for which in (shown.keys(), {j for j in shown if j in lies or views[j] == views[i]}):
            with contextlib.suppress(Forged, Void):
                data = rig.clients[i].unmask(from_server(rig, "unmask", lists(which, shown) + request))
                secrets.take(i, body_of(data), [])
                break
    for j in liars:
        half = {i: slice(KEY_BYTES, None) if i in inside else slice(KEY_BYTES) for i in rig.ids}
        given = [struct.pack("<BH", 0, i) + held[half[i]] for i, held in rig.clients[j]._held.items()]
        secrets.take(j, bytes(2) + b"".join(given), [])
    try:
        found = secrets.find({i: SEED if i in inside else MASK for i in rig.ids})
    except Void:
        return 0
    total = np.zeros(p.length, np.uint32)
    for data in (data for i in inside for data in chunks[i]):
        ops.unpack_add(data[wire.HEADER.size + 4 : -TAG_BYTES], p.modulus_bits, total)
    plain = unmasked(server.round, server._tag, total, found, inside, advertised, rig.holders)
    assert (plain == rig.vectors[inside].sum(0)).all()
    return len(inside)


@pytest.mark.parametrize(
    ("n", "least", "dropout", "corrupt"), [(16, 14, 0.45, 0), (40, 32, 0.48, 0), (30, 24, 0.45, 1)]
)
def test_no_sum_is_over_fewer_than_the_least_however_lists_are_hidden(n, least, dropout, corrupt):
    """Each client may miss w = n − min_included lists. Were clients to miss different ones, each of r members would be
    unseen by t of them, and r > w left out of the sum: each of n − c − r honest ones gives w of r (t − c) shares."""
    p = Parameters.choose(
        n, length=5, bound=BOUND, corrupt=corrupt / n, dropout=dropout, adversary="malicious", least_included=least
    )
    assert p.complete
    assert (p.min_included, p.corrupt) == (least, corrupt)
    w = n - least
    everyone = range(n - corrupt)
    assert learned(p, range(w), {i: range(w) for i in everyone}, corrupt) == least  # what it may learn
    r = w * (n - corrupt) // (p.threshold - corrupt + w)
    assert r > w
    in_turns = {i: {(i * w + q) % r for q in range(w)} for i in everyone}
    assert learned(p, range(r), in_turns, corrupt) == 0
    by_halves = {i: range(w) if i % 2 else range(w, 2 * w) for i in everyone}
    assert learned(p, range(2 * w), by_halves, corrupt) == 0


def test_acknowledgements_of_other_members_are_refused_and_as_few_as_the_dropouts_expected_leave_do():
    p = Parameters.choose(12, length=5, bound=BOUND, corrupt=0, dropout=0.34, adversary="malicious")
    rig = Rig(p).run("acknowledge")
    one_less = lists(range(1, 11), {i: b"".join(rig.server._lists[i]) for i in rig.ids})
    ack = rig.clients[0].acknowledge(from_server(rig, "acknowledge", one_less))
    rig.clients[1].acknowledge(rig.messages[1])
    body = struct.pack("<HH", 1, 0) + ack[wire.HEADER.size :] + bytes(2)
    with pytest.raises(Forged, match="0 acknowledged other members than the client did"):
        rig.clients[1].unmask(from_server(rig, "unmask", body))
    rig = Rig(p).run("share").run("mask", gone=(0,)).run("acknowledge", gone=(1,)).run("unmask", gone=(2,))
    rig.run(None, gone=(3,))
    assert p.dropout == 4
    assert (rig.server.result().sum == rig.vectors[2:].sum(0)).all()


def test_the_least_in_a_complete_graph_makes_honest_clients_certain():
    """In a sparse graph the same floor says nothing of what a malicious server can learn."""
    about = {"length": 1, "bound": 1, "corrupt": 0.1, "dropout": 0.3, "adversary": "malicious"}
    p = Parameters.choose(20, **about)
    assert p.complete
    assert p.min_honest == p.threshold - p.corrupt + 1 == 12
    assert Parameters.choose(20, **about, least_included=18).min_honest == 16
    mechanism = fc.privacy.Distributed(1.0, 1.0, 20, 18, 2, 100, bytes(32))
    assert Parameters.for_distributed(mechanism, adversary="malicious", dropout=0.3).min_honest == 16
    about |= {"corrupt": 0.05, "dropout": 0.05}
    sparse = Parameters.choose(300, **about)
    assert not sparse.complete
    assert replace(sparse, least_included=290).min_honest == sparse.min_honest < 290 - 15
