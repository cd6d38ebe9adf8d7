"""The three ways to add noise in a round: at the server, at each client for itself, at each client for the sum."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from fedcore.errors import FormatError, PrivacyError, Void
from fedcore.federation.config import Arm
from fedcore.federation.context import Federation
from fedcore.federation.data import Client
from fedcore.federation.journal import Receipt
from fedcore.federation.method_round import opened
from fedcore.federation.parcel import packed, unpacked
from fedcore.federation.privacy_plan import central, distributed, multiplier_for
from fedcore.federation.private_run import PrivateRun
from fedcore.federation.receipt import check_message
from fedcore.federation.secure_sum import added_up, agreed, context_of
from fedcore.federation.start import Start
from fedcore.lora import Method
from fedcore.privacy import Central, Distributed, Noise, secagg
from fedcore.privacy.seal import derived
from fedcore.privacy.statistic import both_and_b
from fedcore.privacy.terms import WHOLE, Terms
from fedcore.updates import Update


@dataclass(frozen=True)
class Round:
    """One round of one arm."""

    federation: Federation
    arm: Arm
    number: int
    start: Start
    method: Method

    @property
    def private(self) -> PrivateRun:
        """What makes the run private."""
        assert self.federation.private is not None
        return self.federation.private

    @property
    def label(self) -> str:
        """Names this release."""
        return self.private.label(self.arm.name, self.number)

    def terms(self, updates: list[Update]) -> Terms:
        """What the method releases of adapters."""
        both = self.private.settings.both_factors
        return Terms.of_updates(updates, self.start.adapter, self.method, self.number, self.start.fixed, both)

    def row(self, update: Update) -> np.ndarray:
        """One client's term, flat fp32."""
        terms = self.terms([update])
        return np.asarray(terms.rows(0, 1, list(terms.sizes))[0], np.float32)

    @property
    def numbers(self) -> int:
        """Numbers of a term."""
        return sum(self.terms([]).sizes.values())

    def moved(self, mean: np.ndarray) -> Update:
        """The adapter that a released mean of terms makes of the round's."""
        return self.terms([]).released({WHOLE: np.asarray(mean, np.float32)})


@dataclass(frozen=True)
class Released:
    """What a round may publish and what not. The mean is the noisy one, as an adapter; None for a void round."""

    mean: Update | None
    public: dict[str, Any]
    private: dict[str, Any]
    secure: dict[str, Any] | None = None


class Mode(Protocol):
    """Clients make messages, the server releases what is in them."""

    def message(self, client: Client, update: Update) -> bytes:
        """What a client sends of its adapter."""
        ...

    def release(self, receipts: dict[str, Receipt]) -> Released:
        """Charge, then release. Raises PrivacyBudgetError, with nothing charged or released."""
        ...

    @property
    def message_bytes(self) -> int:
        """Bytes of tensors in any message."""
        ...


class CentralMode:
    """The server sees the clients' changes, clips them and adds the noise once."""

    def __init__(self, about: Round):
        self._about = about
        self._sends = about.method.sends(about.number)

    def message(self, client: Client, update: Update) -> bytes:
        """What travels of the adapter, as without privacy; NaN and Inf may be in it and count as no change."""
        data = packed(update, self._sends, self._about.start.fixed).to_bytes()
        check_message(data, client.id, self._expected, "exclude")
        return data

    @cached_property
    def _expected(self) -> Update:
        return packed(self._about.start.adapter, self._sends, self._about.start.fixed)

    @property
    def message_bytes(self) -> int:
        """Of the factors that travel."""
        return self._expected.nbytes

    def release(self, receipts: dict[str, Receipt]) -> Released:
        """The noisy mean over the expected clients."""
        about, private = self._about, self._about.private
        start, mechanism = about.start, self._mechanism()
        updates = [unpacked(opened(one), start.adapter, self._sends, start.fixed) for one in receipts.values()]
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
        return central(about.private.settings, about.private.plan, clip)


class LocalMode:
    """Each client clips its own change and adds all the noise that hides it; the server needs no trust."""

    def __init__(self, about: Round):
        self._about = about
        private = about.private
        # charged before any client draws: what leaves a client is a release
        self._charge = private.budget.reserve(hashlib.sha256(f"local {about.label}".encode()).hexdigest())
        self._mechanism = Central(private.settings.clip, private.plan.charged, expected_clients=1)

    def message(self, client: Client, update: Update) -> bytes:
        """The client's clipped and noised term."""
        about = self._about
        row, key = about.row(update), about.private.key("local noise", about.arm.name, about.number, client.id)
        # another term draws other noise, the same one after a crash the same
        digest = self._mechanism.inputs_digest([row], label=about.label)
        noise = Noise(
            derived(key, digest), digest, self._mechanism.noise_multiplier, len(row), self._charge.number, 0.0
        )
        data = _pack(np.asarray(self._mechanism.release([row], noise, label=about.label).mean, np.float32))
        about.federation.folder.private.mark_sent(about.arm.name, about.number, client.id, data)
        return data

    @property
    def message_bytes(self) -> int:
        """fp32."""
        return 4 * self._about.numbers

    def release(self, receipts: dict[str, Receipt]) -> Released:
        """The mean of the noisy terms over all clients."""
        about, private = self._about, self._about.private
        total = np.zeros(about.numbers)
        for receipt in receipts.values():
            total += _unpack(receipt, "float32", about.numbers)
        mean = about.moved((total / private.plan.expected_clients).astype(np.float32))
        deviation = private.plan.charged * private.settings.clip / np.sqrt(private.plan.expected_clients)
        return Released(mean, _public(about, self._charge, mean, float(deviation)), {})


class DistributedMode:
    """Each client adds its share of the noise to integers; the server charges, and then sees their sum."""

    def __init__(self, about: Round):
        self._about = about
        settings, plan = about.private.settings, about.private.plan
        multiplier = multiplier_for(settings, plan.population, about.numbers, plan.charged)
        # the rotation's signs are public, and the same for all clients of a round
        seed = hashlib.sha256(f"rotation {about.arm.name} {about.number}".encode()).digest()
        self._mechanism: Distributed = distributed(settings, plan.population, about.numbers, multiplier, seed)
        #: of the masks, None where messages are open
        self._masks: secagg.Parameters | None = None
        if (secure := about.federation.config.secure_of(about.arm)) is not None:
            self._masks = secagg.Parameters.for_distributed(
                self._mechanism, dropout=secure.dropout, adversary=secure.adversary, stream=secure.stream
            )
            agreed(secure, [self._masks], settings.epsilon, about.federation.learner.digest, about.method.traits.name)

    def message(self, client: Client, update: Update) -> bytes:
        """The client's noisy integers."""
        about = self._about
        key = about.private.key("distributed noise", about.arm.name, about.number, client.id)
        return _pack(self._mechanism.encode(about.row(update), key))

    @property
    def message_bytes(self) -> int:
        """uint32."""
        return 4 * self._mechanism.padded

    def release(self, receipts: dict[str, Receipt]) -> Released:
        """The decoded sum over the expected clients.

        Too few messages void the round, and cost nothing. What voids it under the masks is known after the charge,
        which stays: the sum may have been seen.
        """
        about, private, mechanism = self._about, self._about.private, self._mechanism
        delta = {"mode": "distributed", "delta": private.settings.delta}
        if len(receipts) < mechanism.fewest:
            few = f"{len(receipts)} messages of at least {mechanism.fewest}: the round is void, nothing is released"
            return Released(None, delta | {"void": few, "epsilon": private.budget.spent}, {})
        said = json.dumps([about.label, sorted(receipt.sha256 for receipt in receipts.values())])
        charge = private.budget.reserve(hashlib.sha256(f"distributed {said}".encode()).hexdigest())
        try:
            total, included, facts = self._total(receipts)
        except Void as error:
            spent = {"void": f"{error}; its charge stays", "charge": charge.number, "epsilon": charge.epsilon}
            return Released(None, delta | spent, {})
        decoded = mechanism.decode(total & np.uint32(mechanism.modulus - 1), included)
        mean = about.moved(decoded / np.float32(private.plan.expected_clients))
        deviation = mechanism.sigma * mechanism.step * np.sqrt(len(included)) / private.plan.expected_clients
        public = _public(about, charge, mean, float(deviation)) | {"modulus": mechanism.modulus}
        hidden: dict[str, Any] = {name: facts.pop(name) for name in ("survivors", "liars") if name in facts}
        return Released(mean, public | {"wrap_chance": mechanism.wrap_chance}, hidden, facts or None)

    def _total(self, receipts: dict[str, Receipt]) -> tuple[np.ndarray, list[str], dict[str, Any]]:
        """(the sum of the messages, whose, what the ledger says of the masks). Raises Void under masks."""
        about, mechanism = self._about, self._mechanism
        vectors = {name: _unpack(one, "uint32", mechanism.padded) for name, one in receipts.items()}
        if self._masks is None:
            return np.asarray(sum(vectors.values(), np.zeros(mechanism.padded, np.uint32))), list(vectors), {}
        sums = added_up(self._masks, vectors, (), about.number, context_of(about.federation.config, about.start))
        return sums.parts[0].sum.astype(np.uint32), [str(name) for name in sums.parts[0].survivors], sums.facts()


#: privacy.mode -> what does it
MODES: dict[str, type[CentralMode] | type[LocalMode] | type[DistributedMode]] = {
    "central": CentralMode,
    "local": LocalMode,
    "distributed": DistributedMode,
}


def _public(about: Round, charge: Noise, mean: Update, deviation: float) -> dict[str, Any]:
    """What `Release.public` has, where clients added the noise."""
    plan, factors = about.private.plan, about.method.sends(about.number)
    found = {
        "mode": plan.mode,
        "delta": plan.delta,
        "charge": charge.number,
        "epsilon": charge.epsilon,
        "expected_clients": plan.expected_clients,
        "noise_multiplier": plan.charged,
        "clip": plan.clip,
        "noise_of_mean": deviation,
        "output": mean.digest(),
        "inputs": derived(charge.key, f"commitment to {charge.inputs_digest}").hex(),
    }
    if set(factors) == {"a", "b"}:
        found["error_of_delta"] = both_and_b(about.start.adapter, deviation)
    return found


def _pack(values: np.ndarray) -> bytes:
    return save({"statistic": np.ascontiguousarray(values)})


def _unpack(receipt: Receipt, dtype: str, size: int) -> np.ndarray:
    """The numbers in a message. Raises FormatError naming its file, PrivacyError for what is no term of this round."""
    try:
        found = load(bytes(receipt.open()))["statistic"]
    except (SafetensorError, KeyError, ValueError) as error:
        raise FormatError(f"{receipt.path}: not a private message ({error}); delete it and resume") from None
    if found.shape != (size,) or found.dtype != np.dtype(dtype):
        raise PrivacyError(f"{receipt.path}: got {found.dtype} of shape {found.shape}, expected ({size},) {dtype}")
    return found
