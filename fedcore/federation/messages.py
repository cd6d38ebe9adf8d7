"""What arrives at the server in a round: each client's message, the poisoned ones' among them, and the server's own."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from fedcore.errors import RangeError
from fedcore.federation.config import Config
from fedcore.federation.context import Round
from fedcore.federation.data import Client
from fedcore.federation.journal import Receipt
from fedcore.federation.method_round import expected, sent, training_options
from fedcore.federation.receipt import check_message
from fedcore.federation.trainings import Training
from fedcore.updates import Update

#: what to do about NaN that comes back whenever the round is trained again
LOWER = "start a new run with a lower training.learning_rate"
#: what the journal calls the server's own update; no client has this name
SERVER = "server"


def gather(about: Round, receipts: dict[str, Receipt]) -> None:
    """Have each client train whose message is not in `receipts` yet, and journal what it sends.

    Poisoned clients are the last ones: when they send, though not always when they train, what the honest ones sent
    lies in the journal, and an attack sees those bytes, in a resumed round as in one that was never interrupted.
    """
    federation, arm, number, clock = about.federation, about.arm, about.number, about.clock
    attackers, crafted = federation.poisoned(arm), None
    left = [client for client in federation.clients if client.id not in receipts]
    updates = federation.trained(training_of(about, client) for client in left)
    for done, client in enumerate(federation.clients):
        federation.progress(arm.name, (number - 1) * len(federation.clients) + done, federation.total, round=number)
        if client.id in receipts:
            continue
        with clock.phase("training"):
            update = next(updates)()
            if client.id in attackers:
                # once for all attackers of the round
                crafted = crafted or poison(about, receipts)
                update = crafted(update, attackers.index(client.id))
            message = encoded(about.config, sent(about, update))
        with clock.phase("journal"):
            check_message(message, client.id, expected(about, client.id), remedy_of(about))
            receipts[client.id] = about.folder.journal.receive(arm.name, number, client.id, message)


def remedy_of(about: Round) -> str | None:
    """What to do about a client's NaN or Inf, None where it is excluded: a rule can, a method counts every client."""
    if about.settings.on_nonfinite == "exclude":
        return None
    rule = "" if about.settings.method is None else " and a rule in place of the method, which counts every client"
    return f'{LOWER}, or with aggregation.on_nonfinite = "exclude"{rule}'


def training_of(about: Round, client: Client) -> Training:
    """What a client trains in a round."""
    seed, training = client_seed(about.config, about.number, client.seeded_by), about.config.training
    begins = about.start.of(client.id)
    return Training(begins, client, training.steps, seed, training.proximal_mu, training_options(about))


def encoded(config: Config, update: Update) -> bytes:
    """An update as bytes, in the format asked for. Raises RangeError naming client and tensor that it cannot hold."""
    if config.message.format is None:
        return update.to_bytes()
    try:
        return update.quantize(config.message.format).to_bytes()
    except RangeError as error:
        raise RangeError(f"client {update.client_id!r}: {error} as message.format") from None


def poison(about: Round, receipts: dict[str, Receipt]) -> Callable[[Update, int], Update]:
    """What poisoned clients send in place of what they trained, as `Attack.against`. All of a round act on one seed."""
    assert about.arm.attack is not None
    attackers, seed = about.federation.poisoned(about.arm), client_seed(about.config, about.number, "attack")
    honest = [receipts[client.id].update() for client in about.federation.clients if client.id not in attackers]
    return about.arm.attack.made().against(honest, len(attackers), about.start.adapter, seed)


def client_seed(config: Config, number: int, client: str) -> int:
    """Seeds a client's batches: the same in every arm, another for each round and client."""
    return int.from_bytes(hashlib.sha256(f"{config.run.seed}/{number}/{client}".encode()).digest()[:4], "little")


def server_update(about: Round, receipts: dict[str, Receipt]) -> Update:
    """What the server trained itself on its own texts, as a client does; journaled like a client's, under `SERVER`."""
    client, broadcast, clock = about.federation.server, about.start.adapter, about.clock
    assert client is not None, "the configuration is checked for [server] data"
    if SERVER not in receipts:
        with clock.phase("training"):
            seed, training = client_seed(about.config, about.number, client.seeded_by), about.config.training
            asked = Training(broadcast, client, training.steps, seed, training.proximal_mu)
            update = next(about.federation.trained([asked]))()
        with clock.phase("journal"):
            message = update.to_bytes()
            check_message(message, SERVER, broadcast, LOWER)
            receipts[SERVER] = about.folder.journal.receive(about.arm.name, about.number, SERVER, message)
    return receipts[SERVER].update()
