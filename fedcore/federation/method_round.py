"""The part of a round that a LoRA method decides: what clients start from and train, and how the server aggregates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fedcore.clients.settings import Metrics
from fedcore.federation.config import Arm
from fedcore.federation.context import Clock, Federation
from fedcore.federation.journal import Receipt
from fedcore.federation.methods import method_of
from fedcore.federation.norms import change_norms
from fedcore.updates import Cohort, Update


@dataclass(frozen=True)
class Start:
    """What a round starts from: the global adapter, and the side adapter that lies beside it (None for none)."""

    adapter: Update
    side: Update | None = None


def training_options(federation: Federation, arm: Arm, number: int, start: Start) -> dict[str, Any]:
    """What `Learner.train` is told beside the usual: which factors train, and what lies beside the adapter."""
    method = method_of(federation.config, arm)
    return {} if method is None else {"trains": method.trains(number), "side": start.side}


def own_start(federation: Federation, arm: Arm, number: int, client_id: str, start: Start) -> Update:
    """What a client trains on in round `number`: the global adapter, with its own B where a method leaves it that."""
    method = method_of(federation.config, arm)
    if method is None or method.traits.exact != "personal" or number == 1:
        return start.adapter
    receipt = federation.folder.journal.received(arm.name, number - 1)[client_id]
    return personal(start.adapter, opened(receipt))


def opened(receipt: Receipt) -> Update:
    """The update in a message that was received."""
    return Update.from_bytes(receipt.open(), source=str(receipt.path))


def personal(adapter: Update, own: Update) -> Update:
    """The global adapter with a client's own B."""
    kept = {pair.b: own.tensors[pair.b] for pair in own.modules.values()}
    return Update.from_tensors(
        dict(adapter.tensors) | kept,
        client_id=own.client_id,
        scaling=adapter.scaling,
        base=adapter.base,
        adapter_config=adapter.adapter_config,
    )


def method_step(
    federation: Federation, arm: Arm, number: int, start: Start, receipts: dict[str, Receipt], clock: Clock
) -> tuple[Start, dict[str, Any]]:
    """Aggregate the messages by the arm's method and keep what came out: (the next start, the ledger's entry)."""
    settings, folder = federation.config.aggregation_of(arm), federation.folder
    method = method_of(federation.config, arm)
    assert method is not None
    cohort = Cohort([opened(receipt) for receipt in receipts.values()])
    with clock.phase("aggregation"):
        weights = np.ones(len(cohort)) if settings.weights == "equal" else None
        result = method.aggregate(cohort, weights, start.adapter, side=start.side, number=number)
    with clock.phase("journal"):
        adapter = folder.save_global(arm.name, number, result.update)
        side = None if result.side is None else folder.save_side(arm.name, number, result.side)
    report = {name: value for name, value in result.report.items() if name not in ("n", "round")}
    return Start(adapter, side), {
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
        "poisoned": [client.id for client in federation.clients[-arm.attack.clients :]] if arm.attack else [],
        "change_norms": change_norms(cohort, start.adapter),
        "report": report,
        "side": None if side is None else side.digest(),
        "output": adapter.digest(),
    }


def evaluate(federation: Federation, arm: Arm, start: Start, receipts: dict[str, Receipt]) -> Metrics:
    """Score what clients hold after the round; where each holds another model, the mean over clients."""
    method, learner = method_of(federation.config, arm), federation.learner
    if method is None:
        return learner.evaluate(start.adapter)
    if method.traits.exact != "personal":
        return learner.evaluate(start.adapter, start.side)
    found = [learner.evaluate(personal(start.adapter, opened(receipt))) for receipt in receipts.values()]
    loss = float(np.mean([metrics.loss for metrics in found]))
    scored = [metrics.accuracy for metrics in found if metrics.accuracy is not None]
    return Metrics(loss, float(np.exp(min(loss, 700.0))), float(np.mean(scored)) if scored else None)
