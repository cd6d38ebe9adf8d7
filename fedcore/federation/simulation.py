"""A whole federation on one machine: the base, local-only training, then each arm, on the same data and seeds."""

from __future__ import annotations

import math
import os
from contextlib import nullcontext
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, cast

from fedcore.clients.hub import locate
from fedcore.clients.settings import Metrics, Progress
from fedcore.clients.workers import Workers
from fedcore.errors import NonFiniteError, TrainingError
from fedcore.federation.client_policy import agreed_in_the_clear, all_agree
from fedcore.federation.config import Arm, Config
from fedcore.federation.config_file import check_clients
from fedcore.federation.context import Clock, Federation, Round
from fedcore.federation.data import Client, Texts, load_texts
from fedcore.federation.folder import RunFolder, check_writable, refuse_existing, same_config
from fedcore.federation.learner import Learner, QLoRALearner, text_digest
from fedcore.federation.machine import check_streams, machine, versions
from fedcore.federation.messages import client_seed
from fedcore.federation.methods import method_of
from fedcore.federation.private_modes import PrivateRound
from fedcore.federation.private_round import private_round
from fedcore.federation.private_run import open_private
from fedcore.federation.ranks import first_start, initial_of
from fedcore.federation.round import run_round, scores
from fedcore.federation.sealing import sealing_key
from fedcore.federation.secure_sum import with_honest
from fedcore.federation.start import Start
from fedcore.federation.trainings import Training, prepare
from fedcore.lora import Method
from fedcore.privacy.seal import KEY_BYTES, derived

#: the rows of the table that are not arms
BASE, LOCAL_ONLY = "base", "local-only"


def no_progress(phase: str, done: int, total: int, **metrics: Any) -> None:
    """Show nothing."""


def simulate(config: Config, output: Path, *, resume: bool = False, progress: Progress = no_progress) -> RunFolder:
    """Run a configuration into the folder `output`; the same configuration gives the same adapters.

    But for arms under [privacy]: noise that could be drawn again would hide nothing.

    resume: go on with an interrupted run in `output`. Raises before any work BackendError for a stream of noise or
    masks that does not run here, and ExistsError or StorageError if `output` exists, and not `resume`, or cannot be
    made; MissingError, ConfigError or LayoutError if it cannot be resumed; MissingError for a path of a base that leads
    nowhere; PrivacyError where the clients' policy refuses an arm, which for the base's digest takes loading it.
    """
    check_streams(config)
    if resume:
        before = RunFolder.resumable(output)
        same_config(before, config)
        if before.expired:
            progress("private journal: files expired", 1, 1)
    else:
        refuse_existing(output)
        check_writable(output)
    if config.model.source is not None:
        locate(config.model.source, config.folder)
    # started first: while they load what trains, the texts are read
    count = min(config.run.workers, config.partition.clients or config.run.workers)
    with Workers(count) if count > 1 else nullcontext() as workers:
        progress("reading the texts", 0, 1)
        texts = load_texts(config)
        examples = [len(client.texts) for client in texts.clients]
        check_clients(config, len(examples), "configuration", examples)
        all_agree(config, len(examples), None)  # loading the base may train it
        progress("reading the texts", 1, 1, texts=sum(len(client.texts) for client in texts.clients))
        progress("loading the base model", 0, 1)
        learner = QLoRALearner(config, texts, progress, workers)
        progress("loading the base model", 1, 1)
        return run_arms(config, texts, learner, output, resume=resume, progress=progress, workers=workers)


def run_arms(
    config: Config,
    texts: Texts,
    learner: Learner,
    output: Path,
    *,
    resume: bool,
    progress: Progress = no_progress,
    workers: Workers | None = None,
) -> RunFolder:
    """`simulate` once the texts and the base are there; `workers` load the base that the learner holds."""
    all_agree(config, len(texts.clients), learner.digest)
    if workers is not None:
        prepare(workers, config, texts, learner)
    secret = None
    if config.privacy is not None:
        secret = os.urandom(KEY_BYTES)
        if resume:
            journal = RunFolder.resumable(output).private
            secret = journal.secret(sealing_key(config.privacy, journal.folder))
    facts = run_facts(texts, learner, secret if config.private else None)
    with (
        RunFolder.resume(output, config, facts) if resume else RunFolder.create(output, config, facts, secret)
    ) as folder:
        made = Federation(config, texts.clients, learner, folder, progress, texts.server, workers=workers)
        federation = with_privacy(made)
        evaluate_base(federation)
        if not config.private:
            train_alone(federation)
        final = {arm.name: run_arm(federation, arm) for arm in config.arms}
        chosen = final[config.run.adapter_from or config.arms[0].name]
        folder.save_adapter(chosen.adapter)
        if chosen.side is not None:
            folder.save_adapter(chosen.side, "side")
    return folder


def run_arm(federation: Federation, arm: Arm) -> Start:
    """All rounds of one arm from the initial adapter, finished ones read back. Returns what it ends with."""
    agreed_in_the_clear(federation.config, arm, federation.learner.digest)
    folder, start = federation.folder, first_start(federation, arm)
    folder.rounds.save_first(arm.name, start.adapter)
    for number in range(1, federation.config.run.rounds + 1):
        entry = folder.ledger.find(arm=arm.name, round=number)
        if entry is not None and folder.metrics.find(arm=arm.name, round=number):
            start = folder.rounds.load_start(arm.name, number, entry)
        elif federation.config.privacy_of(arm) is None:
            start = run_round(Round(federation, arm, number, start))
        else:
            following = private_round(PrivateRound(federation, arm, number, start))
            if following is None:
                federation.progress(arm.name, number - 1, federation.config.run.rounds, stopped="at its budget")
                break
            start = following
    folder.save_adapter(start.adapter, "arms", arm.name)
    if start.side is not None:
        folder.save_adapter(start.side, "arms", arm.name, "side")
    return start


def with_privacy(federation: Federation) -> Federation:
    """The federation with what [privacy] asks for: the plan of its noise, and the population's budget."""
    config = federation.config
    if config.privacy is None:
        return federation

    def arms() -> list[tuple[Method, Start]]:
        return [(cast(Method, method_of(config, arm)), first_start(federation, arm)) for arm in held]

    held = [arm for arm in config.arms if config.privacy_of(arm) is not None]
    settings = config.privacy
    masks = [secure for arm in held if (secure := config.secure_of(arm)) is not None]
    if masks:
        settings = with_honest(settings, masks, len(federation.clients))
    masked, open_arms = len(masks) == len(held), [arm.name for arm in config.arms if arm not in held]
    rounds, population = config.run.rounds, len(federation.clients)
    dealt = None if config.partition.kind == "column" else config.partition.kind
    private = open_private(settings, federation.folder, population, rounds, arms, masked, open_arms, dealt)
    plan = private.plan
    federation.progress("privacy", 1, 1, noise_multiplier=plan.charged, noise_over_clip=plan.noise_of_mean)
    return replace(federation, private=private)


def run_facts(texts: Texts, learner: Learner, secret: bytes | None) -> dict[str, Any]:
    """run.json: what a reader of the results has to know, and what a resumed run must find unchanged.

    secret: of a private run, whose file has nothing by client and a keyed digest, with which nobody confirms a guess;
    None of others
    """
    digest = _texts_digest(texts)
    return {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "base": learner.digest,
        "base_name": learner.base,
        "base_source": learner.source,
        "adapter": learner.initial().digest(),
        "texts": digest if secret is None else derived(secret, f"texts {digest}").hex(),
        "population": len(texts.clients),
        "clients": [] if secret else [_shown(client) for client in texts.clients],
        "held_out": len(texts.held_out),
        "questions": len(texts.questions),
        "machine": machine(),
        "versions": versions(),
    }


def _texts_digest(texts: Texts) -> str:
    server = texts.server.texts if texts.server else ()
    # what seeds a client, too: labels of a column may change where no text does
    own = (text for client in texts.clients for text in (client.drawn, *client.texts))
    return text_digest([*own, *texts.held_out, *texts.questions, *server])


def _shown(client: Client) -> dict[str, Any]:
    return {"id": client.id, "examples": len(client.texts), "labels": client.labels}


def evaluate_base(federation: Federation) -> None:
    """The table's first row: the base with no adapter."""
    if federation.folder.metrics.find(arm=BASE) is None:
        federation.progress(BASE, 0, 1)
        clock = Clock()
        with clock.phase("evaluation"):
            metrics = federation.learner.evaluate(None)
        federation.folder.metrics.append(_alone(BASE, 0, metrics, clock))
        federation.progress(BASE, 1, 1, loss=metrics.loss)


class Alone(Training):
    """A client that sends nothing: how good what it trained is counts, and the time that both took where it was."""

    def by(self, learner: Learner) -> tuple[Metrics, Clock]:
        clock = Clock()
        with clock.phase("training"):
            adapter = super().by(learner)
        with clock.phase("evaluation"):
            metrics = learner.evaluate(adapter)
        return metrics, clock


def train_alone(federation: Federation) -> None:
    """The table's second row: each client alone, from the initial adapter, with all the steps that it has in an arm.

    One line a client in metrics.jsonl; the table shows the mean over clients. Under masks a client that cannot train
    has dropped out of a round: where all arms go on without it, so does this, and its line has no scores.
    """
    config, clients = federation.config, federation.clients
    finished = {line["client"]: line["loss"] for line in federation.folder.metrics if line["arm"] == LOCAL_ONLY}
    losses = [loss for loss in finished.values() if loss is not None]
    steps = config.training.steps * config.run.rounds
    outcomes = federation.trained(
        Alone(initial_of(federation, client.id), client, steps, client_seed(config, 0, client.seeded_by))
        for client in clients
        if client.id not in finished
    )
    for done, client in enumerate(clients):
        if client.id not in finished:
            federation.progress(LOCAL_ONLY, done, len(clients))
            said: dict[str, Any] = {}
            try:
                metrics, clock = next(outcomes)()
            except (TrainingError, NonFiniteError) as error:
                if not all(config.secure_of(arm) for arm in config.arms):
                    raise
                metrics, clock, said = Metrics(math.nan, math.nan, None), Clock(), {"failed": str(error)}
            line = {"client": client.id} | _alone(LOCAL_ONLY, config.run.rounds, metrics, clock)
            federation.folder.metrics.append(line | ({"failed": True} if said else {}))
            losses += [] if said else [metrics.loss]
            federation.progress(LOCAL_ONLY, done + 1, len(clients), **(said or {"loss": sum(losses) / len(losses)}))


def _alone(name: str, number: int, metrics: Any, clock: Clock) -> dict[str, Any]:
    """A line of metrics.jsonl for training that sends nothing."""
    return {
        "arm": name,
        "round": number,
        **scores(metrics),
        "bytes_up": 0,
        "bytes_down": 0,
        "seconds": clock.seconds,
    }
