"""One federated round, from top to bottom."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from fedcore.engine import Aggregate, aggregate
from fedcore.errors import NonFiniteError
from fedcore.federation.center import moved_on
from fedcore.federation.context import Round
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


def run_round(about: Round) -> Start:
    """Broadcast, train, journal, aggregate, enter in the ledger, evaluate: what the next round starts from.

    Each step that an earlier, interrupted attempt at this round finished is taken from the run folder instead.
    """
    federation, arm, folder, entry = about.federation, about.arm, about.folder, about.entry
    receipts = folder.journal.received(arm.name, about.number)
    resumed = entry is not None or bool(receipts)
    trusted = {SERVER: receipts.pop(SERVER)} if SERVER in receipts else {}
    secure = about.config.secure_of(arm) is not None
    if not secure:
        gather(about, receipts)
    messages = {client: receipt.update() for client, receipt in receipts.items()}
    if entry is None:
        if secure:
            following, entry = secure_step(about)
        elif method_of(about.config, arm) is not None:
            following, entry = method_step(about, receipts, messages)
        else:
            following, entry = rule_step(about, receipts, messages, trusted)
        with about.clock.phase("journal"):
            folder.ledger.append(entry)
    else:
        following = folder.rounds.load_start(arm.name, about.number, entry)

    with about.clock.phase("evaluation"):
        metrics = evaluate(federation, following)
    # bytes of tensors, without names and headers, which any other carrier would have in another size
    up = sum(message.nbytes for message in messages.values())
    down = sum(about.start.of(client.id).nbytes for client in federation.clients)
    if travelled := entry["report"].get("bytes"):
        up, down = (sum(client[way] for client in travelled.values()) for way in ("up", "down"))
    if secure:
        up, down = entry["secure"]["bytes_up"], down + entry["secure"]["bytes_down"]
    folder.metrics.append(
        {
            "arm": arm.name,
            "round": about.number,
            **scores(metrics),
            "bytes_up": up,
            "bytes_down": down,
            "seconds": about.clock.seconds,
        }
        | ({"resumed": True} if resumed else {})
    )
    done = about.number * len(federation.clients)
    federation.progress(arm.name, done, federation.total, round=about.number, loss=metrics.loss)
    return following


def rule_step(
    about: Round, receipts: dict[str, Receipt], messages: dict[str, Update], trusted: dict[str, Receipt]
) -> tuple[Start, dict[str, Any]]:
    """Aggregate the messages by the arm's rule and keep what came out: (the next start, the ledger's entry)."""
    rule, known = rule_of(about).for_round(about.number), {}
    if "server" in rule.uses:
        known["server"] = server_update(about, trusted)
    with about.clock.phase("aggregation"):
        if "center" in rule.uses and (center := center_of(about)):
            known["center"] = center
        result = combine(about, rule, messages, known)
        moved, state = move(about, result.update)
    # for the report alone, so in no phase
    counted = Cohort(update for client, update in messages.items() if client not in result.excluded)
    norms = change_norms(counted, about.start)
    with about.clock.phase("journal"):
        also: dict[str, Any] = {name: update.digest() for name, update in known.items()}
        also |= optimizer_facts(about, result.update, state)
        cut = cut_to_ranks(about.federation, moved)
        following, names = about.folder.rounds.save_start(about.arm.name, about.number, cut)
        also |= {"starts": starts} if (starts := names["starts"]) else {}
    return following, ledger_entry(about, receipts, result, norms, following.adapter) | also


def scores(metrics: Metrics) -> dict[str, float | None]:
    """Loss, perplexity and accuracy for a line of JSON, which knows no NaN or Inf: a model that was ruined has None."""
    values = {"loss": metrics.loss, "perplexity": metrics.perplexity, "accuracy": metrics.accuracy}
    return {name: value if value is not None and math.isfinite(value) else None for name, value in values.items()}


def rule_of(about: Round) -> Rule:
    """The arm's rule after what comes before it."""
    return make_chain(about.settings.rule, about.settings.parameters, about.settings.before)


def center_of(about: Round) -> Update | None:
    """Where an iteration with a memory starts; None is the broadcast adapter, where nothing moved yet in any case."""
    if about.settings.center == "reference" or about.number == 1:
        return None
    previous, earlier = about.federation.learner.initial(), about.number - 2
    if earlier:
        entry = about.folder.ledger.find(arm=about.arm.name, round=earlier)
        assert entry is not None
        previous = about.folder.rounds.load_global(about.arm.name, earlier, entry["output"])
    return moved_on(about.start.adapter, previous, about.settings.space)


def combine(about: Round, rule: Rule, messages: dict[str, Update], known: dict[str, Update]) -> Aggregate:
    """What the arm's rule makes of the messages.

    known: what the rule looks at besides, by the name of aggregate's argument: "server", "center".
    """
    settings = about.settings
    try:
        return aggregate(
            Cohort(messages.values()),
            rule,
            space=settings.space,
            reference=about.start.adapter,
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
    about: Round, receipts: dict[str, Receipt], result: Aggregate, norms: dict[str, float], adapter: Update
) -> dict[str, Any]:
    """What an auditor needs to make this round's output again from the journal.

    `reference` is the adapter that the round before made, or round-000, in the arm's folder of arms/. In parameters
    space the output is, bit for bit, ops.weighted_sum over the clients of `coefficients` and then the rows that
    `reference_coefficients` names, in that order, with these coefficients and `divisor`, in the tensors' dtype.
    "server" and "center" are the updates of the digests `server` and `center`, a center without a digest the reference.
    With a server optimiser the sum is `optimizer.aggregate`, and one step from the state of the round before makes the
    output and `optimizer.state`.
    """
    settings = about.settings
    # seconds differ from run to run; the ledger of a repeated run is the same in every byte
    known = ("rule", "space", "n", "seconds", "excluded", "redone_on")
    report = {name: value for name, value in result.report.items() if name not in known}
    law = report.pop("law")
    return {
        **about.heading,
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
        "poisoned": about.federation.poisoned(about.arm),
        "change_norms": norms,
        "report": report,
        "law": law,
        "output": adapter.digest(),
    }
