"""The server adds the noise, new in each round or such that later rounds take part of it back."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from fedcore.federation.data import Client
from fedcore.federation.journal import Receipt
from fedcore.federation.parcel import packed, unpacked
from fedcore.federation.privacy_mechanisms import central, correlated
from fedcore.federation.private_modes import PrivateRound, Released
from fedcore.federation.receipt import check_message
from fedcore.privacy import Central
from fedcore.updates import Update


class CentralMode:
    """The server sees the clients' changes, clips them and adds the noise once."""

    def __init__(self, about: PrivateRound):
        self._about = about
        self._sends = about.method.sends(about.number)

    def message(self, client: Client, update: Update) -> bytes:
        """What travels of the adapter, as without privacy; NaN and Inf may be in it and count as no change."""
        data = packed(update, self._sends, self._about.start.fixed).to_bytes()
        check_message(data, client.id, self._expected, None)
        return data

    @cached_property
    def _expected(self) -> Update:
        return packed(self._about.start.adapter, self._sends, self._about.start.fixed)

    @property
    def message_bytes(self) -> int:
        """Of the factors that travel."""
        return self._expected.nbytes

    def updates(self, receipts: dict[str, Receipt]) -> list[Update]:
        """The adapters that were sent."""
        start = self._about.start
        return [unpacked(one.update(), start.adapter, self._sends, start.fixed) for one in receipts.values()]

    def release(self, receipts: dict[str, Receipt]) -> Released:
        """The noisy mean over the expected clients."""
        about, private = self._about, self._about.private
        start, mechanism = about.start, self._mechanism()
        updates = self.updates(receipts)
        given: dict[str, Any] = {"method": about.method, "reference": start.adapter, "fixed": start.fixed}
        given |= {"number": about.number, "label": about.label}
        noise = private.budget.reserve(mechanism.inputs_digest(updates, **given))
        found = mechanism.release(updates, noise, **given)
        public = {"mode": "central", "delta": private.settings.delta, **found.public}
        if mechanism.adaptive is not None:
            public["next_clip"] = found.next.clip
        return Released(found.mean, public, found.private)

    def _mechanism(self) -> Central:
        """With the clip of this round, which adaptive clipping made of the noisy counts of the last."""
        about, clip = self._about, self._about.private.settings.clip
        before = about.federation.folder.ledger.find(arm=about.arm.name, round=about.number - 1)
        if before is not None and "next_clip" in before["privacy"]:
            clip = before["privacy"]["next_clip"]
        plan = about.private.plan
        return central(about.private.settings, plan.expected_clients, plan.charged, clip)


class CorrelatedMode(CentralMode):
    """As central, but for the noise: later rounds take part of it back, and one charge covers all rounds."""

    def __init__(self, about: PrivateRound):
        super().__init__(about)
        private, plan = about.private, about.private.plan
        rounds = about.federation.config.run.rounds
        self._correlated = correlated(private.settings, plan.expected_clients, plan.charged, rounds)
        size = self._correlated.size(about.start.adapter, method=about.method, fixed=about.start.fixed)
        self._rounds = private.rounds_of(about.arm.name, self._correlated.factor, size)
        # charged before anybody trains, and found again in every later round
        self._charge = private.budget.reserve(self._correlated.inputs_digest(self._rounds))

    def release(self, receipts: dict[str, Receipt]) -> Released:
        """The noisy mean over the clients of a turn."""
        about, start = self._about, self._about.start
        found = self._correlated.release(
            self.updates(receipts),
            self._charge,
            self._rounds,
            about.number,
            clients=list(receipts),
            method=about.method,
            reference=start.adapter,
            fixed=start.fixed,
        )
        public = {"mode": "correlated", "delta": about.private.settings.delta, **found.public}
        public["round_head"] = public.pop("head")  # the budget's head goes beside it
        return Released(found.mean, public, found.private)
