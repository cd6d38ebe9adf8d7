"""The part of a round that a LoRA method decides: what clients train and send, and how the server aggregates."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedcore.clients.settings import Metrics
from fedcore.dtypes import to_float64
from fedcore.federation.config import Arm
from fedcore.federation.context import Clock, Federation
from fedcore.federation.journal import Receipt
from fedcore.federation.methods import method_of
from fedcore.federation.norms import change_norms
from fedcore.federation.parcel import kept, packed, unpacked
from fedcore.federation.server_move import move, optimizer_facts
from fedcore.federation.start import Start
from fedcore.lora import FedSB, FlexLoRA, Method
from fedcore.updates import Cohort, Update


def step_of(federation: Federation, arm: Arm, number: int) -> Method | None:
    """The method of round `number`, None for a rule.

    Fed-SB's first round is an ordinary one, whose result estimates where training goes and fixes the factors. In a
    private run it is like the others: that estimate would cost both factors' noise. So it is under masks, which hide
    what the estimate is made of.
    """
    method = method_of(federation.config, arm)
    open_messages = federation.config.privacy_of(arm) is None and federation.config.secure_of(arm) is None
    return FlexLoRA() if isinstance(method, FedSB) and number == 1 and open_messages else method


def training_options(federation: Federation, arm: Arm, number: int, start: Start) -> dict[str, Any]:
    """What `Learner.train` is told beside the usual: which factors train, and what lies beside or around them."""
    method = step_of(federation, arm, number)
    if method is None:
        return {}
    return {"trains": method.trains(number), "side": start.side} | ({"fixed": start.fixed} if start.fixed else {})


def sent(federation: Federation, arm: Arm, number: int, start: Start, update: Update) -> Update:
    """What travels of a client's adapter. What trained and does not travel is kept for it in the run folder."""
    method = step_of(federation, arm, number)
    if method is None:
        return update
    if own := kept(method.trains(number), method.sends(number)):
        federation.folder.rounds.save_beside(arm.name, number, f"kept-{update.client_id}", packed(update, own))
    return packed(update, method.sends(number), start.fixed)


def expected(federation: Federation, arm: Arm, number: int, start: Start, client_id: str) -> Update:
    """What a client's message has the tensors of: what travels of the adapter that it was sent."""
    method, own = step_of(federation, arm, number), start.of(client_id)
    return own if method is None else packed(own, method.sends(number), start.fixed)


def received(federation: Federation, arm: Arm, number: int, start: Start, messages: dict[str, Update]) -> list[Update]:
    """The adapters that the clients have, of what they sent, what was frozen and what stayed with them."""
    method, adapters = step_of(federation, arm, number), []
    assert method is not None
    own = kept(method.trains(number), method.sends(number))
    for client_id, message in messages.items():
        held = start.of(client_id)
        if own:
            held = unpacked(federation.folder.rounds.load_beside(arm.name, number, f"kept-{client_id}"), held, own)
        adapters.append(unpacked(message, held, method.sends(number), start.fixed))
    return adapters


def method_step(
    federation: Federation,
    arm: Arm,
    number: int,
    start: Start,
    receipts: dict[str, Receipt],
    messages: dict[str, Update],
    clock: Clock,
) -> tuple[Start, dict[str, Any]]:
    """Aggregate the messages by the arm's method and keep what came out: (the next start, the ledger's entry)."""
    settings, folder = federation.config.aggregation_of(arm), federation.folder
    method, step = method_of(federation.config, arm), step_of(federation, arm, number)
    assert method is not None
    assert step is not None
    cohort = Cohort(received(federation, arm, number, start, messages))
    with clock.phase("aggregation"):
        equal = settings.weights == "equal" and step.traits.weighted
        weights = np.ones(len(cohort)) if equal else None
        reference = start.fixed or start.adapter
        result = step.aggregate(cohort, weights, reference, side=start.side, number=number)
        moved, state = move(federation, arm, number, start.adapter, result.update)
        following = Start(moved, result.side, start.fixed, result.starts)
        if isinstance(method, FedSB) and not isinstance(step, FedSB):
            following = fixing(method, result.update)
    with clock.phase("journal"):
        also = optimizer_facts(federation, arm, number, result.update, state)
        following, names = folder.rounds.save_start(arm.name, number, following)
    report = {name: value for name, value in result.report.items() if name not in ("n", "round")}
    return following, {
        "arm": arm.name,
        "round": number,
        "base": federation.learner.digest,
        "reference": start.adapter.digest(),
        "side_before": None if start.side is None else start.side.digest(),
        "inputs": {client: receipts[client].sha256 for client in sorted(receipts)},
        "rule": settings.method,
        "parameters": settings.parameters,
        "weights": settings.weights,
        "coefficients": result.coefficients,
        "divisor": report.pop("divisor"),
        "excluded": {},
        "not_counted": {},
        "poisoned": federation.poisoned(arm),
        "change_norms": change_norms(cohort, start),
        "report": report,
        **also,
        **names,
    }


def fixing(method: FedSB, estimate: Update) -> Start:
    """The factors that an estimate fixes, and the estimate as a product of B₀, a core and A₀."""
    fixed, tensors = method.fixed(estimate), dict[str, np.ndarray]()
    for pair in estimate.modules.values():
        left, right = (to_float64(fixed.tensors[name]) for name in (pair.b, pair.a))
        b, a = (to_float64(estimate.tensors[name]) for name in (pair.b, pair.a))
        tensors |= {pair.a: fixed.tensors[pair.a], pair.b: (left @ ((left.T @ b) @ (a @ right.T))).astype(np.float32)}
    return Start(estimate.with_tensors(tensors), fixed=fixed)


def evaluate(federation: Federation, start: Start) -> Metrics:
    """Score what clients hold after the round; where they hold several models, the mean over clients."""
    found = {}
    for client in federation.clients:
        own = start.of(client.id)
        if id(own) not in found:
            found[id(own)] = federation.learner.evaluate(own, start.side)
    if len(found) == 1:
        return next(iter(found.values()))
    each = [found[id(start.of(client.id))] for client in federation.clients]
    loss = float(np.mean([metrics.loss for metrics in each]))
    scored = [metrics.accuracy for metrics in each if metrics.accuracy is not None]
    return Metrics(loss, float(np.exp(min(loss, 700.0))), float(np.mean(scored)) if scored else None)
