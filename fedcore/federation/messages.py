"""What arrives at the server in a round: each client's message, the poisoned ones' among them, and the server's own."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from fedcore.errors import RangeError
from fedcore.federation.config import Arm, Config
from fedcore.federation.context import Clock, Federation
from fedcore.federation.data import Client
from fedcore.federation.journal import Receipt
from fedcore.federation.method_round import expected, sent, training_options
from fedcore.federation.receipt import check_message
from fedcore.federation.start import Start
from fedcore.federation.trainings import Training
from fedcore.updates import Update

#: what the journal calls the server's own update; no client has this name
SERVER = "server"


def gather(
    federation: Federation, arm: Arm, number: int, start: Start, receipts: dict[str, Receipt], clock: Clock
) -> None:
    """Have each client train whose message is not in `receipts` yet, and journal what it sends.

    Poisoned clients are the last ones: when they send, though not always when they train, what the honest ones sent
    lies in the journal, and an attack sees those bytes, in a resumed round as in one that was never interrupted.
    """
    config, journal = federation.config, federation.folder.journal
    attackers, crafted = federation.poisoned(arm), None
    left = [client for client in federation.clients if client.id not in receipts]
    updates = federation.trained(training_of(federation, arm, number, start, client) for client in left)
    for done, client in enumerate(federation.clients):
        federation.progress(arm.name, (number - 1) * len(federation.clients) + done, federation.total, round=number)
        if client.id in receipts:
            continue
        with clock.phase("training"):
            update = next(updates)()
            if client.id in attackers:
                # once for all attackers of the round
                crafted = crafted or poison(federation, arm, number, receipts, start.adapter)
                update = crafted(update, attackers.index(client.id))
            update = sent(federation, arm, number, start, update)
            message = encoded(config, update)
        with clock.phase("journal"):
            asked = expected(federation, arm, number, start, client.id)
            check_message(message, client.id, asked, config.aggregation_of(arm).on_nonfinite)
            receipts[client.id] = journal.receive(arm.name, number, client.id, message)


def training_of(federation: Federation, arm: Arm, number: int, start: Start, client: Client) -> Training:
    """What a client trains in a round."""
    config, options = federation.config, training_options(federation, arm, number, start)
    seed, training = client_seed(config, number, client.seeded_by), config.training
    return Training(start.of(client.id), client, training.steps, seed, training.proximal_mu, options)


def encoded(config: Config, update: Update) -> bytes:
    """An update as bytes, in the format asked for. Raises RangeError naming client and tensor that it cannot hold."""
    if config.message.format is None:
        return update.to_bytes()
    try:
        return update.quantize(config.message.format).to_bytes()
    except RangeError as error:
        raise RangeError(f"client {update.client_id!r}: {error} as message.format") from None


def poison(
    federation: Federation, arm: Arm, number: int, receipts: dict[str, Receipt], broadcast: Update
) -> Callable[[Update, int], Update]:
    """What poisoned clients send in place of what they trained, as `Attack.against`. All of a round act on one seed."""
    assert arm.attack is not None
    attackers, seed = federation.poisoned(arm), client_seed(federation.config, number, "attack")
    honest = [receipts[client.id].update() for client in federation.clients if client.id not in attackers]
    return arm.attack.made().against(honest, len(attackers), broadcast, seed)


def client_seed(config: Config, number: int, client: str) -> int:
    """Seeds a client's batches: the same in every arm, another for each round and client."""
    return int.from_bytes(hashlib.sha256(f"{config.run.seed}/{number}/{client}".encode()).digest()[:4], "little")


def server_update(
    federation: Federation, arm: Arm, number: int, broadcast: Update, receipts: dict[str, Receipt], clock: Clock
) -> Update:
    """What the server trained itself on its own texts, as a client does; journaled like a client's, under `SERVER`."""
    config, client = federation.config, federation.server
    assert client is not None, "the configuration is checked for [server] data"
    if SERVER not in receipts:
        with clock.phase("training"):
            seed, training = client_seed(config, number, client.seeded_by), config.training
            asked = Training(broadcast, client, training.steps, seed, training.proximal_mu)
            update = next(federation.trained([asked]))()
        with clock.phase("journal"):
            message = update.to_bytes()
            check_message(message, SERVER, broadcast, "raise")
            receipts[SERVER] = federation.folder.journal.receive(arm.name, number, SERVER, message)
    return receipts[SERVER].update()
