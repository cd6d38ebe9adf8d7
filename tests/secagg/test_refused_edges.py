"""What is refused by one more or one fewer than what is taken, and by whoever is no longer expected."""

from __future__ import annotations

import struct
from dataclasses import replace

import numpy as np
import pytest
from secagg.driver import BOTH, Rig, complete, from_server, rig_of, sparse

from fedcore.errors import Forged, PrivacyError, Replayed, Void
from fedcore.privacy.secagg import wire
from fedcore.privacy.secagg.keys import SIGNATURE_BYTES, TAG_BYTES
from fedcore.privacy.secagg.unmasking import lifted


@BOTH
def test_a_member_that_dropped_out_is_taken_back_in_no_later_stage(adversary):
    rig = rig_of(adversary).run("mask", gone=(3,))

    def late(stage: str) -> bytes:
        return wire.pack(wire.kind_of(stage), 3, rig.server._tag, bytes(2), bytes(SIGNATURE_BYTES))

    chunk = wire.chunk(3, rig.server._tag, 0, bytes(wire.chunk_bytes(rig.p, 0)), bytes(TAG_BYTES))
    before = rig.server.missing()
    with pytest.raises(Replayed, match="mask: the message of 3: is not expected, its sender dropped out before"):
        rig.server.receive(3, late(wire.INCLUDED) if adversary == "malicious" else chunk)
    assert rig.server.missing() == before == [0, 1, 2, 4]
    rig.run("unmask", gone=(3,))
    with pytest.raises(Replayed, match="unmask: the message of 3: is not expected"):
        rig.server.receive(3, late("unmask"))
    assert (rig.run(gone=(3,)).server.result().sum == rig.vectors[[0, 1, 2, 4]].sum(0)).all()


def test_vectors_of_too_few_of_a_members_holders_end_the_round_before_any_share_is_asked_for():
    rig = Rig(sparse("semi_honest")).run("mask")
    gone = rig.holders(0)[: rig.p.neighbours - rig.p.threshold + 1]
    there = [name for name in rig.ids if name not in gone]
    assert len(there) >= rig.p.min_included
    for name in there:
        for data in rig.answers(name):
            rig.server.receive(name, data)
    with pytest.raises(Void, match=r"^mask: \d holders of the shares of \d+ are left, expected at least 4"):
        rig.server.advance()


def test_a_modulus_holds_each_sum_of_the_clients():
    p = complete(4, 3, bound=2)
    assert 4 * 2 * p.bound == 1 << 4
    assert p.modulus_bits == 5
    with pytest.raises(PrivacyError, match=r"modulus_bits: got 4, sums of 4 clients within 2 would wrap; .* least 5"):
        replace(p, modulus_bits=4)


def test_a_sum_of_which_one_client_alone_may_be_honest_is_refused():
    with pytest.raises(PrivacyError, match="leave a chance of 2\\^-inf of exposure and 1 honest clients in a sum"):
        complete(3, 2, corrupt=1, dropout=1)


def test_a_sum_is_void_beyond_the_bound_of_those_that_are_in_it():
    p = complete(5, 3, bound=10)
    assert lifted(np.array([30, (1 << p.modulus_bits) - 30]), p, 3).tolist() == [30, -30]
    for beyond in (31, (1 << p.modulus_bits) - 31):
        with pytest.raises(Void, match="the sum leaves ±30, which 3 clients within their bound cannot"):
            lifted(np.array([0, beyond]), p, 3)


def test_a_list_or_an_acknowledgement_that_is_shown_twice_is_refused():
    rig = rig_of().run("acknowledge")
    lists = rig.server._lists
    one = struct.pack("<H", 1) + b"".join(lists[1])
    with pytest.raises(Forged, match="names member 1 twice"):
        rig.clients[0].acknowledge(from_server(rig, "acknowledge", struct.pack("<H", 2) + one + one))
    rig.run("unmask")
    one = struct.pack("<H", 1) + b"".join(rig.server._signed["acknowledge"][1])
    with pytest.raises(Forged, match="names acknowledging member 1 twice"):
        rig.clients[0].unmask(from_server(rig, "unmask", struct.pack("<H", 2) + one + one + struct.pack("<H", 0)))
    assert (rig.run().server.result().sum == rig.vectors.sum(0)).all()


@pytest.mark.parametrize("most", [4, 5])
def test_as_many_members_as_may_have_a_client_as_their_holder(most):
    """Members 1 to 5 drew client 0."""
    rig = Rig(replace(sparse("malicious"), in_degree=most))
    for name in rig.ids:
        others = [(name + step) % 6 + 6 for step in range(1, 5)]
        drawn = [1, 2, 3, 4] if name == 0 else [0, *others[:3]] if name <= 5 else others
        rig.clients[name]._holders = sorted(drawn)
        rig.server.receive(name, rig.clients[name].advertise())
    rig.server._around._p = sparse("malicious")  # a server that does not mind
    message = rig.server.advance()[0]
    if most == 5:
        assert rig.clients[0].share(message)
    else:
        with pytest.raises(Forged, match="more than 4 members have the client as a holder"):
            rig.clients[0].share(message)
