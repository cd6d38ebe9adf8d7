"""One round of a private run: what is released is noised, what is not covered by noise stays in the private journal."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from fedcore.errors import NonFiniteError, PrivacyBudgetError, RangeError, TrainingError
from fedcore.federation.client_noise import DistributedMode, LocalMode, forget_messages
from fedcore.federation.data import Client
from fedcore.federation.journal import Receipt
from fedcore.federation.messages import training_of
from fedcore.federation.parcel import packed
from fedcore.federation.private_modes import Mode, PrivateRound, Released
from fedcore.federation.round import scores
from fedcore.federation.server_move import move, optimizer_facts
from fedcore.federation.server_noise import CentralMode, CorrelatedMode
from fedcore.federation.start import Start
from fedcore.updates import Update

#: privacy.mode -> what does it
MODES: dict[str, Callable[[PrivateRound], Mode]] = {
    "central": CentralMode,
    "correlated": CorrelatedMode,
    "local": LocalMode,
    "distributed": DistributedMode,
}
#: all that the public ledger says of a round that the budget does not hold
STOPPED = "its charge would pass the budget or the run's share of it"
#: as above, of a round whose server learning rate is too large for the adapter's dtype
NOT_HELD = "the adapter's dtype does not hold the server's step: the round is void, and its charge stays"
#: modes whose charge depends on what was sent; others are charged before anybody trains
_CHARGED_LAST = ("central", "distributed")
#: so many clients that fail one after another, and none that does not, tell of the configuration
_ALL = 3


def private_round(about: PrivateRound) -> Start | None:
    """Sample, train, journal, charge, release, enter in the ledger, evaluate: what the next round starts from.

    None where the release would pass the budget: nothing is charged or released, and the arm ends here. What an
    interrupted attempt finished is taken from the run folder; its inputs find the charge that they have.
    """
    folder, clock, entry, name, number = about.folder, about.clock, about.entry, about.arm.name, about.number
    if entry is None:
        try:
            following, entry = released(about)
        except PrivacyBudgetError as error:
            # the reason names the budget's place, and what others charged
            folder.private.keep(name, number, {"stopped": str(error), "written": time.time()})
            folder.ledger.append({"arm": name, "round": number, "stopped": STOPPED})
            return None
        with clock.phase("journal"):
            folder.ledger.append(entry)
    elif "stopped" in entry:
        return None
    else:
        following = folder.rounds.load_start(name, number, entry)
    forget_messages(about.private, name, number)  # not before: a release may fail and be tried again
    with clock.phase("evaluation"):
        metrics = about.federation.learner.evaluate(following.adapter)
    epsilon, plan = entry["privacy"]["epsilon"], about.private.plan
    folder.metrics.append(
        {
            "arm": name,
            "round": number,
            **scores(metrics),
            "epsilon": epsilon,
            # of the expected cohort: the actual one is private, and so is the time that it took
            "bytes_up": entry.get("secure", {}).get("bytes_up", plan.expected_clients * entry["message_bytes"]),
            "bytes_down": plan.expected_clients * entry["broadcast_bytes"]
            + entry.get("secure", {}).get("bytes_down", 0),
            "seconds": {"evaluation": clock.seconds["evaluation"]},
        }
    )
    folder.even_times()
    about.federation.progress(name, number, about.config.run.rounds, loss=metrics.loss, epsilon=epsilon)
    return following


def released(about: PrivateRound) -> tuple[Start, dict[str, Any]]:
    """(the next start, the public ledger's entry) of a round that is not in the ledger yet."""
    private, folder, method, start, clock = about.private, about.folder, about.method, about.start, about.clock
    name, number, mode = about.arm.name, about.number, MODES[private.settings.mode](about)
    receipts = folder.journal.received(name, number)
    clients = private.sample(about.federation.clients, name, number)
    if private.settings.mode in _CHARGED_LAST and any(client.id not in receipts for client in clients):
        # before anybody trains; what was charged already had all its messages
        private.budget.check()
    failed = gather(about, mode, clients, receipts)
    with clock.phase("aggregation"):
        found: Released = mode.release(receipts)
        # what a method and a server optimiser do with the mean comes after the noise
        made: Update | None = None
        try:
            if found.mean is not None:
                made = method.aggregate([found.mean], [1.0], start.fixed or start.adapter, number=number).update
            moved, state = move(about, made)
        except (RangeError, NonFiniteError) as error:
            made, public, hidden = None, found.public | {"void": NOT_HELD}, found.private | {"void": str(error)}
            found = replace(found, public=public, private=hidden)
            moved, state = move(about, None)
        following = Start(moved, None, start.fixed)
    with clock.phase("journal"):
        also = optimizer_facts(about, made, state)
        following, names = folder.rounds.save_start(name, number, following)
        folder.private.keep(
            name,
            number,
            {
                # who took part, in the order of the norms
                "messages": {client: receipt.sha256 for client, receipt in receipts.items()},
                "failed": failed,
                "seconds": clock.seconds,
                "written": time.time(),
                **found.private,
            },
        )
    head = private.budget.head
    return following, {
        **about.heading,
        "rule": about.settings.method,
        "parameters": about.settings.parameters,
        "weights": "equal",
        "message_bytes": mode.message_bytes,
        "broadcast_bytes": packed(following.adapter, method.receives(number), start.fixed).nbytes,
        "privacy": {**found.public, "head": {"number": head.number, "mac": head.mac}},
        **({} if found.secure is None else {"secure": found.secure}),
        **also,
        **names,
    }


def gather(about: PrivateRound, mode: Mode, clients: list[Client], receipts: dict[str, Receipt]) -> list[str]:
    """Have each client train whose message is not in `receipts` yet, and keep what it sends: who could not train.

    A client whose training fails sends no change, so that the run does not show that it took part. Where it fails for
    everybody, several clients in a row from the first on, the configuration is at fault, and that is raised.
    """
    failed: list[str] = []
    # where clients take turns, of a size that is public
    enough = len(about.federation.clients if about.private.plan.separation is None else clients)
    left = [client for client in clients if client.id not in receipts]
    updates = about.federation.trained(training_of(about, client) for client in left)
    for client in left:
        with about.clock.phase("training"):
            answer = next(updates)
            try:
                update = answer()
            except TrainingError:
                failed.append(client.id)
                if len(failed) == min(_ALL, enough) and len(receipts) == len(failed) - 1:
                    raise
                update = unchanged(about.start.adapter, client)
            message = mode.message(client, update)
        with about.clock.phase("journal"):
            receipts[client.id] = about.folder.journal.receive(about.arm.name, about.number, client.id, message)
    return failed


def unchanged(adapter: Update, client: Client) -> Update:
    """The adapter as if the client had trained and nothing had moved."""
    return adapter.with_tensors({}, client_id=client.id, num_examples=len(client.texts))
