"""Any pattern of dropouts, restarts and repetitions: the exact sum where every needed neighbourhood keeps the
threshold, void everywhere else. The model knows who holds whose shares, and no more of the protocol."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from secagg.driver import SEALING, Rig, complete, sparse

from fedcore.errors import Replayed, Void
from fedcore.privacy.secagg.client import Client
from fedcore.privacy.secagg.server import Server
from fedcore.privacy.secagg.simulate import answer


class Rounds(RuleBasedStateMachine):
    @initialize(
        adversary=st.sampled_from(["semi_honest", "malicious"]),
        shape=st.sampled_from([(2, 1), (4, 3), (5, 3), (6, 4), None]),
    )
    def start(self, adversary, shape):
        p = sparse(adversary) if shape is None else complete(*shape, adversary)
        # one graph and one order of keys for all examples: hypothesis runs each more than once
        with mock.patch("os.urandom", np.random.default_rng(0).bytes):
            self.rig, self.gone, self.void, self.sent = Rig(p), set(), False, {}
        self.holders = {name: set(self.rig.holders(name)) for name in self.rig.ids}
        self.at: list[set[int]] = []  # who sent in each stage

    @precondition(lambda self: not self.void and self.rig.server.stage)
    @rule(name=st.integers(0, 11))
    def drop(self, name):
        self.gone.add(name % self.rig.p.clients)

    @precondition(lambda self: not self.void and self.rig.server.stage)
    @rule(backwards=st.booleans())
    def stage(self, backwards):
        rig = self.rig
        for name in sorted(rig.messages.keys() - self.gone, reverse=backwards):
            self.sent[name] = rig.answers(name)
            for data in self.sent[name]:
                rig.server.receive(name, data)
        assert set(rig.server.missing()) == rig.messages.keys() & self.gone
        self.at.append(rig.messages.keys() - self.gone)
        try:
            rig.messages = rig.server.advance()
        except Void:
            self.void = True

    @precondition(lambda self: not self.void and self.rig.server.stage)
    @rule(name=st.integers(0, 11))
    def restart_a_client(self, name):
        """From its newest state; what it sends is what it would have sent."""
        rig, name = self.rig, name % self.rig.p.clients
        before = rig.clients[name]
        rig.clients[name] = Client.from_bytes(before.to_bytes(SEALING), SEALING, before.generation)
        if name in rig.messages and name not in self.gone and rig.server.stage:
            assert rig.answers(name) == list(answer(before, rig.server.stage, rig.messages[name], rig.vectors[name]))

    @rule()
    def restart_the_server(self):
        """From the state after the last `advance`: it says again what it said, to the byte."""
        self.rig.server = Server.from_bytes(self.rig.server.to_bytes(SEALING), SEALING)
        if not self.void and self.at and self.rig.server.stage:
            assert dict(self.rig.server.answers()) == dict(self.rig.messages)

    @precondition(lambda self: not self.void and self.sent and self.rig.server.stage)
    @rule(data=st.data())
    def repeat(self, data):
        """What was taken is refused when it comes again."""
        name = data.draw(st.sampled_from(sorted(self.sent)))
        with pytest.raises(Replayed):
            self.rig.server.receive(name, data.draw(st.sampled_from(self.sent[name])))

    def teardown(self):
        if not hasattr(self, "rig"):
            return
        while not self.void and self.rig.server.stage:
            self.stage(False)
        expected = self.expected()
        if self.void:
            assert expected is None, f"void, though {expected} could be summed"
        elif expected is None:
            with pytest.raises(Void):
                self.rig.server.result()
        else:
            found = self.rig.server.result()
            assert found.survivors == sorted(expected)
            assert (found.sum == self.rig.vectors[sorted(expected)].sum(0)).all()
            assert not found.liars

    def expected(self) -> set[int] | None:
        """Who is in the sum, or None for a void round, from who could send in each stage that was run."""
        p = self.rig.p
        at = {stage: self.at[i] if i < len(self.at) else None for i, stage in enumerate(p.stages)}

        def held(i, there):
            return len(self.holders[i] & there) >= p.threshold

        def going(there):
            while any(not held(i, there) for i in there):
                there = {i for i in there if held(i, there)}
            return there

        if at["share"] is None:
            return None if len(going(at["advertise"])) < p.min_included else set()
        sealing = going(at["share"])
        if len(sealing) < p.min_included:
            return None
        if at["mask"] is None:
            return set()
        included = at["mask"]
        lost = {i for i in sealing - included if any(j in self.holders[i] or i in self.holders[j] for j in included)}
        answering = at["unmask"]
        if answering is None:
            answering = {i for i in at.get("acknowledge") or included if held(i, at.get("acknowledge") or included)}
        whole = len(included) >= p.min_included and all(held(i, answering) for i in included | lost)
        return included if whole else None


def test_the_exact_sum_or_void():
    run_state_machine_as_test(
        Rounds,
        settings=settings(
            max_examples=30,
            stateful_step_count=14,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )
