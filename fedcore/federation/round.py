"""One federated round, from top to bottom."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from fedcore.engine import Aggregate, aggregate
from fedcore.errors import NonFiniteError
from fedcore.federation.center import moved_on
from fedcore.federation.config import Arm
from fedcore.federation.context import Clock, Federation
from fedcore.federation.journal import Receipt
from fedcore.federation.messages import SERVER, gather, server_update
from fedcore.federation.method_round import evaluate, method_step
from fedcore.federation.methods import method_of
from fedcore.federation.norms import change_norms
from fedcore.federation.ranks import cut_to_ranks
from fedcore.federation.rule_names import make_chain
from fedcore.federation.secure_round import secure_step
from fedcore.federation.server_move import move, optimizer_facts
from fedcore.federation.start import Start
from fedcore.rules import Rule
from fedcore.updates import Cohort, Update

if TYPE_CHECKING:
    from fedcore.clients.settings import Metrics


def run_round(federation: Federation, arm: Arm, number: int, start: Start) -> Start:
    """Broadcast, train, journal, aggregate, enter in the ledger, evaluate: what the next round starts from.

    Each step that an earlier, interrupted attempt at this round finished is taken from the run folder instead.
    """
    folder, clock = federation.folder, Clock()
    resumed = folder.ledger.find(arm=arm.name, round=number) is not None

    receipts = folder.journal.received(arm.name, number)
    resumed = resumed or bool(receipts)
    trusted = {SERVER: receipts.pop(SERVER)} if SERVER in receipts else {}
    entry = folder.ledger.find(arm=arm.name, round=number)
    secure = federation.config.secure_of(arm) is not None
    if not secure:
        gather(federation, arm, number, start, receipts, clock)
    messages = {client: receipt.update() for client, receipt in receipts.items()}
    if entry is None:
        if secure:
            following, entry = secure_step(federation, arm, number, start, clock)
        elif method_of(federation.config, arm) is not None:
            following, entry = method_step(federation, arm, number, start, receipts, messages, clock)
        else:
            following, entry = rule_step(federation, arm, number, start, receipts, messages, trusted, clock)
        with clock.phase("journal"):
            folder.ledger.append(entry)
    else:
        following = folder.rounds.load_start(arm.name, number, entry)

    with clock.phase("evaluation"):
        metrics = evaluate(federation, following)
    # bytes of tensors, without names and headers, which any other carrier would have in another size
    up = sum(message.nbytes for message in messages.values())
    down = sum(start.of(client.id).nbytes for client in federation.clients)
    if travelled := entry["report"].get("bytes"):
        up, down = (sum(client[way] for client in travelled.values()) for way in ("up", "down"))
    if secure:
        up, down = entry["secure"]["bytes_up"], down + entry["secure"]["bytes_down"]
    folder.metrics.append(
        {
            "arm": arm.name,
            "round": number,
            **scores(metrics),
            "bytes_up": up,
            "bytes_down": down,
            "seconds": clock.seconds,
        }
        | ({"resumed": True} if resumed else {})
    )
    federation.progress(arm.name, number * len(federation.clients), federation.total, round=number, loss=metrics.loss)
    return following


def rule_step(
    federation: Federation,
    arm: Arm,
    number: int,
    start: Start,
    receipts: dict[str, Receipt],
    messages: dict[str, Update],
    trusted: dict[str, Receipt],
    clock: Clock,
) -> tuple[Start, dict[str, Any]]:
    """Aggregate the messages by the arm's rule and keep what came out: (the next start, the ledger's entry)."""
    folder, broadcast = federation.folder, start.adapter
    rule, known = rule_of(federation, arm).for_round(number), {}
    if "server" in rule.uses:
        known["server"] = server_update(federation, arm, number, broadcast, trusted, clock)
    with clock.phase("aggregation"):
        if "center" in rule.uses and (center := center_of(federation, arm, number, broadcast)):
            known["center"] = center
        result = combine(federation, arm, rule, messages, broadcast, known)
        moved, state = move(federation, arm, number, broadcast, result.update)
    # for the report alone, so in no phase
    counted = Cohort(update for client, update in messages.items() if client not in result.excluded)
    norms = change_norms(counted, start)
    with clock.phase("journal"):
        also: dict[str, Any] = {name: update.digest() for name, update in known.items()}
        also |= optimizer_facts(federation, arm, number, result.update, state)
        following, names = folder.rounds.save_start(arm.name, number, cut_to_ranks(federation, moved))
        also |= {"starts": starts} if (starts := names["starts"]) else {}
    entry = ledger_entry(federation, arm, number, receipts, broadcast, result, norms, following.adapter)
    return following, entry | also


def scores(metrics: Metrics) -> dict[str, float | None]:
    """Loss, perplexity and accuracy for a line of JSON, which knows no NaN or Inf: a model that was ruined has None."""
    values = {"loss": metrics.loss, "perplexity": metrics.perplexity, "accuracy": metrics.accuracy}
    return {name: value if value is not None and math.isfinite(value) else None for name, value in values.items()}


def rule_of(federation: Federation, arm: Arm) -> Rule:
    """The arm's rule after what comes before it."""
    settings = federation.config.aggregation_of(arm)
    return make_chain(settings.rule, settings.parameters, settings.before)


def center_of(federation: Federation, arm: Arm, number: int, broadcast: Update) -> Update | None:
    """Where an iteration with a memory starts; None is the broadcast adapter, where nothing moved yet in any case."""
    settings = federation.config.aggregation_of(arm)
    if settings.center == "reference" or number == 1:
        return None
    previous = federation.learner.initial()
    if number > 2:
        entry = federation.folder.ledger.find(arm=arm.name, round=number - 2)
        assert entry is not None
        previous = federation.folder.rounds.load_global(arm.name, number - 2, entry["output"])
    return moved_on(broadcast, previous, settings.space)


def combine(
    federation: Federation,
    arm: Arm,
    rule: Rule,
    messages: dict[str, Update],
    broadcast: Update,
    known: dict[str, Update],
) -> Aggregate:
    """What the arm's rule makes of the messages.

    known: what the rule looks at besides, by the name of aggregate's argument: "server", "center".
    """
    settings = federation.config.aggregation_of(arm)
    try:
        return aggregate(
            Cohort(messages.values()),
            rule,
            space=settings.space,
            reference=broadcast,
            server=known.get("server"),
            center=known.get("center"),
            weights=np.ones(len(messages), np.float32) if settings.weights == "equal" else None,
            on_nonfinite=settings.on_nonfinite,
        )
    except NonFiniteError as error:
        if settings.on_nonfinite == "exclude":
            raise
        # its bytes are in the journal, so that a resumed run meets it again
        remedy = 'start a new run with aggregation.on_nonfinite = "exclude"'
        raise error.with_message(f"{error}; or {remedy}") from error


def ledger_entry(
    federation: Federation,
    arm: Arm,
    number: int,
    receipts: dict[str, Receipt],
    broadcast: Update,
    result: Aggregate,
    norms: dict[str, float],
    adapter: Update,
) -> dict[str, Any]:
    """What an auditor needs to make this round's output again from the journal.

    `reference` is the adapter that the round before made, or round-000, in the arm's folder of arms/. In parameters
    space the output is, bit for bit, ops.weighted_sum over the clients of `coefficients` in that order and then the
    reference, with these coefficients, `reference_coefficients` and `divisor`, in the tensors' dtype. With a server
    optimiser that is `optimizer.aggregate`, and one step from the state of the round before makes the output and
    `optimizer.state`. `server` and `center` are the digests of the updates that the rule looked at besides.
    """
    settings = federation.config.aggregation_of(arm)
    # seconds differ from run to run; the ledger of a repeated run is the same in every byte
    known = ("rule", "space", "n", "seconds", "excluded", "redone_on")
    report = {name: value for name, value in result.report.items() if name not in known}
    law = report.pop("law")
    return {
        "arm": arm.name,
        "round": number,
        "base": federation.learner.digest,
        "reference": broadcast.digest(),
        "inputs": {client: receipts[client].sha256 for client in sorted(receipts)},
        "rule": settings.rule,
        "parameters": settings.parameters,
        **({"before": settings.before} if settings.before else {}),
        "space": settings.space,
        "weights": settings.weights,
        "coefficients": result.coefficients,
        "reference_coefficients": report.pop("reference_coefficients"),
        "divisor": report.pop("divisor"),
        # left out before the rule ran, for NaN or Inf or factors that cancel; given no coefficient by the rule
        "excluded": result.excluded,
        "not_counted": report.pop("not_counted"),
        "redone_pairs": report.pop("redone_pairs", 0),
        "poisoned": federation.poisoned(arm),
        "change_norms": norms,
        "report": report,
        "law": law,
        "output": adapter.digest(),
    }
