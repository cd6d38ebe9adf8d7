"""One federated round, from top to bottom."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from fedcore import ops
from fedcore.clients.settings import Progress
from fedcore.engine import Aggregate, aggregate
from fedcore.errors import NonFiniteError
from fedcore.federation.config import Arm, Config
from fedcore.federation.data import Client
from fedcore.federation.folder import RunFolder
from fedcore.federation.journal import Receipt
from fedcore.federation.learner import Learner
from fedcore.federation.receipt import check_message
from fedcore.federation.rule_names import make_rule
from fedcore.updates import Cohort, Update

if TYPE_CHECKING:
    from fedcore.clients.settings import Metrics


@dataclass(frozen=True)
class Federation:
    """What all arms share: the configuration, the clients, who trains for them, and where the run leaves its traces."""

    config: Config
    clients: tuple[Client, ...]
    learner: Learner
    folder: RunFolder
    progress: Progress


@dataclass
class Clock:
    """Seconds by phase."""

    seconds: dict[str, float] = field(
        default_factory=lambda: {"training": 0.0, "journal": 0.0, "aggregation": 0.0, "evaluation": 0.0}
    )

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time spent inside to one phase."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start


def run_round(federation: Federation, arm: Arm, number: int, broadcast: Update) -> Update:
    """Broadcast, train, journal, aggregate, enter in the ledger, evaluate: the new global adapter.

    Each step that an earlier, interrupted attempt at this round finished is taken from the run folder instead.
    """
    folder, clock = federation.folder, Clock()
    resumed = folder.ledger.find(arm=arm.name, round=number) is not None

    receipts = folder.journal.received(arm.name, number)
    resumed = resumed or bool(receipts)
    for done, client in enumerate(federation.clients):
        federation.progress(arm.name, (number - 1) * len(federation.clients) + done, total(federation), round=number)
        if client.id not in receipts:
            with clock.phase("training"):
                message = client_message(federation, arm, number, client, broadcast)
            with clock.phase("journal"):
                check_message(message, client.id, broadcast, federation.config.aggregation_of(arm).on_nonfinite)
                receipts[client.id] = folder.journal.receive(arm.name, number, client.id, message)

    entry = folder.ledger.find(arm=arm.name, round=number)
    if entry is None:
        with clock.phase("aggregation"):
            result, cohort = combine(federation, arm, receipts, broadcast)
        # for the report alone, so in no phase
        counted = Cohort(update for update in cohort if update.client_id not in result.excluded)
        norms = change_norms(counted, broadcast)
        with clock.phase("journal"):
            adapter = folder.save_global(arm.name, number, result.update)
            folder.ledger.append(ledger_entry(federation, arm, number, receipts, broadcast, result, norms, adapter))
    else:
        adapter = folder.load_global(arm.name, number, entry["output"])

    with clock.phase("evaluation"):
        metrics = federation.learner.evaluate(adapter)
    folder.metrics.append(
        {
            "arm": arm.name,
            "round": number,
            **scores(metrics),
            "bytes_up": sum(receipt.size for receipt in receipts.values()),
            "bytes_down": len(federation.clients) * len(broadcast.to_bytes()),
            "seconds": clock.seconds,
        }
        | ({"resumed": True} if resumed else {})
    )
    federation.progress(arm.name, number * len(federation.clients), total(federation), round=number, loss=metrics.loss)
    return adapter


def scores(metrics: Metrics) -> dict[str, float | None]:
    """Loss, perplexity and accuracy for a line of JSON, which knows no NaN or Inf: a model that was ruined has None."""
    values = {"loss": metrics.loss, "perplexity": metrics.perplexity, "accuracy": metrics.accuracy}
    return {name: value if value is not None and math.isfinite(value) else None for name, value in values.items()}


def total(federation: Federation) -> int:
    """Client updates in one arm."""
    return federation.config.run.rounds * len(federation.clients)


def client_message(federation: Federation, arm: Arm, number: int, client: Client, broadcast: Update) -> bytes:
    """What a client sends: its trained adapter as bytes; a poisoned client sends what the attack makes of it."""
    config = federation.config
    update = federation.learner.train(broadcast, client, config.training.steps, client_seed(config, number, client))
    if client.id in poisoned(federation.clients, arm):
        from fedcore.attacks.sign_flip import sign_flip

        assert arm.attack is not None
        update = sign_flip(update, broadcast, arm.attack.scale)
    return update.to_bytes()


def poisoned(clients: tuple[Client, ...], arm: Arm) -> list[str]:
    """The ids of the clients that poison in this arm: the last ones."""
    return [client.id for client in clients[-arm.attack.clients :]] if arm.attack else []


def client_seed(config: Config, number: int, client: Client) -> int:
    """Seeds a client's batches: the same in every arm, another for each round and client."""
    return int.from_bytes(hashlib.sha256(f"{config.run.seed}/{number}/{client.id}".encode()).digest()[:4], "little")


def combine(
    federation: Federation, arm: Arm, receipts: dict[str, Receipt], broadcast: Update
) -> tuple[Aggregate, Cohort]:
    """Decode the received bytes and run the arm's rule on them: (what came out, the decoded updates)."""
    settings = federation.config.aggregation_of(arm)
    cohort = Cohort([Update.from_bytes(r.open(), source=str(r.path)) for r in receipts.values()])
    try:
        result = aggregate(
            cohort,
            make_rule(settings.rule, settings.parameters),
            space=settings.space,
            reference=broadcast,
            weights=np.ones(len(cohort), np.float32) if settings.weights == "equal" else None,
            on_nonfinite=settings.on_nonfinite,
        )
    except NonFiniteError as error:
        if settings.on_nonfinite == "exclude":
            raise
        # its bytes are in the journal, so that a resumed run meets it again
        remedy = 'start a new run with aggregation.on_nonfinite = "exclude"'
        raise NonFiniteError(f"{error}; or {remedy}", error.row, error.column) from error
    return result, cohort


def change_norms(cohort: Cohort, broadcast: Update) -> dict[str, float]:
    """Euclidean norm of each client's parameters minus the broadcast ones."""
    reference = Cohort([broadcast])
    squares = np.zeros(len(cohort))
    for (_, rows), (_, center) in zip(cohort.tables(), reference.tables(), strict=True):
        squares += ops.squared_norms(rows, center=center.columns(0, 0, center.d))
    return dict(zip(cohort.client_ids, np.sqrt(squares).tolist(), strict=True))


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

    In parameters space it is, bit for bit, ops.weighted_sum over the clients of `coefficients` in that order and then
    the reference, with these coefficients, `reference_coefficients` and `divisor`, in the tensors' dtype.
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
        "space": settings.space,
        "weights": settings.weights,
        "coefficients": result.coefficients,
        "reference_coefficients": report.pop("reference_coefficients"),
        "divisor": report.pop("divisor"),
        # left out before the rule ran, for NaN or Inf or factors that cancel; given no coefficient by the rule
        "excluded": result.excluded,
        "not_counted": report.pop("not_counted"),
        "redone_pairs": report.pop("redone_pairs", 0),
        "poisoned": poisoned(federation.clients, arm),
        "change_norms": norms,
        "report": report,
        "law": law,
        "output": adapter.digest(),
    }
