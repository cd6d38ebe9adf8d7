"""The part of a round that a LoRA method decides: what clients train and send, and how the server aggregates."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedcore.clients.settings import Metrics
from fedcore.dtypes import to_float64
from fedcore.federation.context import Federation, Round
from fedcore.federation.journal import Receipt
from fedcore.federation.methods import method_of
from fedcore.federation.norms import change_norms
from fedcore.federation.parcel import kept, packed, unpacked
from fedcore.federation.server_move import move, optimizer_facts
from fedcore.federation.start import Start
from fedcore.lora import FedSB, FlexLoRA, Method
from fedcore.updates import Cohort, Update


def step_of(about: Round) -> Method | None:
    """The method of the round, None for a rule.

    Fed-SB's first round is an ordinary one, whose result estimates where training goes and fixes the factors. In a
    private run it is like the others: that estimate would cost both factors' noise. So it is under masks, which hide
    what the estimate is made of.
    """
    config, arm = about.config, about.arm
    method, open_messages = method_of(config, arm), config.privacy_of(arm) is None and config.secure_of(arm) is None
    return FlexLoRA() if isinstance(method, FedSB) and about.number == 1 and open_messages else method


def training_options(about: Round) -> dict[str, Any]:
    """What `Learner.train` is told beside the usual: which factors train, and what lies beside or around them."""
    method, start = step_of(about), about.start
    if method is None:
        return {}
    return {"trains": method.trains(about.number), "side": start.side} | ({"fixed": start.fixed} if start.fixed else {})


def sent(about: Round, update: Update) -> Update:
    """What travels of a client's adapter. What trained and does not travel is kept for it in the run folder."""
    method, number = step_of(about), about.number
    if method is None:
        return update
    if own := kept(method.trains(number), method.sends(number)):
        about.folder.rounds.save_beside(about.arm.name, number, f"kept-{update.client_id}", packed(update, own))
    return packed(update, method.sends(number), about.start.fixed)


def expected(about: Round, client_id: str) -> Update:
    """What a client's message has the tensors of: what travels of the adapter that it was sent."""
    method, own = step_of(about), about.start.of(client_id)
    return own if method is None else packed(own, method.sends(about.number), about.start.fixed)


def received(about: Round, messages: dict[str, Update]) -> list[Update]:
    """The adapters that the clients have, of what they sent, what was frozen and what stayed with them."""
    method, adapters = step_of(about), []
    assert method is not None
    number, start = about.number, about.start
    own = kept(method.trains(number), method.sends(number))
    for client_id, message in messages.items():
        held = start.of(client_id)
        if own:
            held = unpacked(about.folder.rounds.load_beside(about.arm.name, number, f"kept-{client_id}"), held, own)
        adapters.append(unpacked(message, held, method.sends(number), start.fixed))
    return adapters


def method_step(
    about: Round, receipts: dict[str, Receipt], messages: dict[str, Update]
) -> tuple[Start, dict[str, Any]]:
    """Aggregate the messages by the arm's method and keep what came out: (the next start, the ledger's entry)."""
    settings, start, number = about.settings, about.start, about.number
    method, step = method_of(about.config, about.arm), step_of(about)
    assert method is not None
    assert step is not None
    cohort = Cohort(received(about, messages))
    with about.clock.phase("aggregation"):
        weighted = step.traits.weighted
        weights = np.ones(len(cohort)) if settings.weights == "equal" and weighted else None
        reference = start.fixed or start.adapter
        result = step.aggregate(cohort, weights, reference, side=start.side, number=number)
        moved, state = move(about, result.update)
        following = Start(moved, result.side, start.fixed, result.starts)
        if isinstance(method, FedSB) and not isinstance(step, FedSB):
            following = fixing(method, result.update)
    with about.clock.phase("journal"):
        also = optimizer_facts(about, result.update, state)
        following, names = about.folder.rounds.save_start(about.arm.name, number, following)
    report = {name: value for name, value in result.report.items() if name not in ("n", "round")}
    if about.config.message.format is not None:  # a method counts what travels up as it was trained
        travelled = report["bytes"].items()
        report["bytes"] = {client: counts | {"up": messages[client].nbytes} for client, counts in travelled}
    shares = {"coefficients": result.coefficients, "divisor": report.pop("divisor")}
    return following, {
        **about.heading,
        "side_before": None if start.side is None else start.side.digest(),
        "inputs": {client: receipts[client].sha256 for client in sorted(receipts)},
        "rule": settings.method,
        "parameters": settings.parameters,
        # a method that weighs clients by itself says how in its report, by module
        "weights": settings.weights if weighted else None,
        **(shares if weighted else {}),
        "excluded": {},
        "not_counted": {},
        "poisoned": about.federation.poisoned(about.arm),
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
