"""Clients add the noise: each all that hides its own change, or its share of what hides the sum."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from fedcore.errors import FormatError, PrivacyError, Void
from fedcore.federation.client_policy import agreed, masks_of
from fedcore.federation.data import Client
from fedcore.federation.journal import Receipt
from fedcore.federation.privacy_mechanisms import central, distributed, multiplier_for
from fedcore.federation.private_modes import PrivateRound, Released
from fedcore.federation.private_run import PrivateRun
from fedcore.federation.secure_sum import added_up, context_of
from fedcore.ops.clip_round import clip_grid
from fedcore.privacy import Distributed, Noise, secagg
from fedcore.privacy.noise import steps
from fedcore.privacy.seal import derived
from fedcore.privacy.sent_once import all_received, mark_sent
from fedcore.privacy.statistic import FARTHEST, both_and_b
from fedcore.privacy.terms import WHOLE
from fedcore.updates import Update

#: all that the public ledger says of a void round
FEW = "fewer messages came than the noise is made for: the round is void, nothing is released"
UNOPENED = "the masked sum could not be opened: the round is void, and its charge stays"
TOO_LARGE = "the sum is beyond what clients of the protocol make: the round is void, and its charge stays"


class LocalMode:
    """Each client clips its own change and adds all the noise that hides it; the server needs no trust."""

    def __init__(self, about: PrivateRound):
        self._about = about
        private = about.private
        clip, plan = private.settings.clip, private.plan
        self._mechanism = central(private.settings, 1, plan.charged, clip)
        grid = clip_grid(clip, about.numbers)
        #: the largest number of a clipped term with its noise
        self._most = clip + FARTHEST * steps(plan.charged * clip / grid) * grid
        # of the clients that a sample has at most, but once in 2^100 rounds
        expected = plan.expected_clients
        clients = min(plan.population, expected + FARTHEST * math.sqrt(expected) + 100)
        about.terms([]).check_fits(expected, {WHOLE: (self._most * clients / expected, 0.0)})
        # charged before any client draws: what leaves a client is a release
        self._charge = private.budget.reserve(_local_inputs(about.label))

    def message(self, client: Client, update: Update) -> bytes:
        """The client's clipped and noised term."""
        about = self._about
        row, key = about.row(update), about.private.key("local noise", about.arm.name, about.number, client.id)
        # another term draws other noise, the same one after a crash the same
        digest = self._mechanism.inputs_digest([row], label=about.label)
        noise = replace(self._charge, key=derived(key, digest), inputs_digest=digest)
        data = _pack(np.asarray(self._mechanism.release([row], noise, label=about.label).mean, np.float32))
        return mark_sent(about.private.budget.path, self._charge, client.id, data)

    @property
    def message_bytes(self) -> int:
        """fp32."""
        return 4 * self._about.numbers

    def release(self, receipts: dict[str, Receipt]) -> Released:
        """The mean of the noisy terms over all clients, where what no client makes by the protocol counts as zero."""
        about, private = self._about, self._about.private
        total, refused = np.zeros(about.numbers), {}
        for client, receipt in receipts.items():
            try:
                sent = _unpack(receipt, "float32", about.numbers)
            except (FormatError, PrivacyError):  # as it came: the journal has checked its digest
                refused[client] = f"statistic: not a message of {about.numbers} float32"
                continue
            if np.abs(sent).max(initial=0) <= self._most:  # false for NaN
                total += sent
            else:
                refused[client] = f"statistic: not finite, or beyond {self._most:.4g}, which no term with its noise is"
        mean = about.moved((total / private.plan.expected_clients).astype(np.float32))
        deviation = private.plan.charged * private.settings.clip / np.sqrt(private.plan.expected_clients)
        return Released(mean, _public(about, self._charge, mean, float(deviation)), {"not_counted": refused})


def forget_messages(private: PrivateRun, arm: str, number: int) -> None:
    """Delete what clients of a round in local mode keep to send again: the round is in the ledger."""
    all_received(private.budget.path, _local_inputs(private.label(arm, number)))


def _local_inputs(label: str) -> str:
    return hashlib.sha256(f"local {label}".encode()).hexdigest()


class DistributedMode:
    """Each client adds its share of the noise to integers; the server charges, and then sees their sum."""

    def __init__(self, about: PrivateRound):
        self._about = about
        settings, plan = about.private.settings, about.private.plan
        multiplier = multiplier_for(settings, plan.population, about.numbers, plan.charged)
        # the rotation's signs are public, and the same for all clients of a round
        seed = hashlib.sha256(f"rotation {about.arm.name} {about.number}".encode()).digest()
        self._mechanism: Distributed = distributed(settings, plan.population, about.numbers, multiplier, seed)
        part = self._mechanism.step / plan.expected_clients
        clips = math.sqrt(self._mechanism.bound) * plan.population * part
        #: the largest number of a mean of all clients
        self._most = clips + FARTHEST * self._mechanism.sigma * math.sqrt(plan.population) * part
        about.terms([]).check_fits(plan.expected_clients, {WHOLE: (self._most, 0.0)})
        #: of the masks, None where messages are open
        self._masks: secagg.Parameters | None = None
        config, arm = about.federation.config, about.arm
        if config.secure_of(arm) is not None:
            self._masks = masks_of(config, arm, self._mechanism)
            agreed(config, arm, [self._masks], plan.population, about.federation.learner.digest)

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
            few = f"{len(receipts)} messages of at least {mechanism.fewest}"
            return Released(None, delta | {"void": FEW, "epsilon": private.budget.spent}, {"void": few})
        said = json.dumps([about.label, sorted(receipt.sha256 for receipt in receipts.values())])
        charge = private.budget.reserve(hashlib.sha256(f"distributed {said}".encode()).hexdigest())
        try:
            total, included, facts = self._total(receipts)
        except Void as error:
            # the reason may name clients
            spent = {"void": UNOPENED, "charge": charge.number, "epsilon": charge.epsilon}
            return Released(None, delta | spent, {"void": str(error)})
        decoded = mechanism.decode(total & np.uint32(mechanism.modulus - 1), included)
        decoded /= np.float32(private.plan.expected_clients)
        if not (found := float(np.abs(decoded).max())) <= self._most:  # one client can replace a sum
            spent = {"void": TOO_LARGE, "charge": charge.number, "epsilon": charge.epsilon}
            return Released(None, delta | spent, {"void": f"a number of the mean is {found:.4g} of {self._most:.4g}"})
        mean = about.moved(decoded)
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
        sums = added_up(self._masks, vectors, about.number, context_of(about.federation.config, about.start))
        return sums.rows[0].astype(np.uint32), sums.survivors[0], sums.facts()


def _public(about: PrivateRound, charge: Noise, mean: Update, deviation: float) -> dict[str, Any]:
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
