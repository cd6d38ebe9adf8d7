"""One round under secure aggregation: clients mask what they send, and the server learns sums alone.

What a client masks is its change, the method's message less the one of a client that did not move, times its weight.
No vector is written down unmasked, so an interrupted round begins again, under keys of its own; training is the same.
What stays with a client lies in clients/ of the run folder, which plays the clients' own disks (`client_disks`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedcore.engine import aggregate
from fedcore.errors import NonFiniteError, RangeError, RuleError, TrainingError, Void, WeightError
from fedcore.federation.client_policy import agreed
from fedcore.federation.config import Arm, Config
from fedcore.federation.context import Round
from fedcore.federation.messages import training_of
from fedcore.federation.methods import method_of
from fedcore.federation.parcel import kept
from fedcore.federation.rule_names import make_chain
from fedcore.federation.secure_sum import Sums, parameters_of, quantizer_of, still, summed, weight_of
from fedcore.federation.server_move import move, optimizer_facts
from fedcore.federation.start import Start
from fedcore.lora import FedIT, Method
from fedcore.privacy import secagg
from fedcore.updates import Cohort, Update

#: what a sum is that one client replaced: bounds and weights bind honest ones alone
_NO_MEAN = (WeightError, NonFiniteError, RangeError)


@dataclass(frozen=True)
class Changes:
    """What a message of the round consists of, and how far one lies from that of a client that did not move.

    reference   what clients have a message made against
    zero        the message of a client that did not move
    """

    method: Method
    number: int
    reference: Update
    zero: Mapping[str, np.ndarray]

    @classmethod
    def of(cls, method: Method, number: int, start: Start) -> Changes:
        """Changes from a round's start."""
        reference = start.fixed or start.adapter
        return cls(method, number, reference, method.message(start.adapter, reference, number))

    @property
    def length(self) -> int:
        """Numbers of a change."""
        return sum(values.size for values in self.zero.values())

    def flat(self, update: Update) -> np.ndarray:
        """(length,) fp32: a client's change. Raises NonFiniteError naming the client and tensor."""
        message = self.method.message(update, self.reference, self.number)
        for name, values in message.items():
            if not np.isfinite(values).all():
                raise NonFiniteError(f"client {update.client_id!r}: {name} holds NaN or Inf, as would a sum with it")
        return np.concatenate([(message[name] - self.zero[name]).ravel() for name in sorted(self.zero)])

    def finish(self, mean: np.ndarray, side: Update | None) -> tuple[Update, Update | None]:
        """(the next adapter, what lies beside it) from the mean of changes, (length,) fp64."""
        found, at = {}, 0
        for name in sorted(self.zero):
            zero = self.zero[name]
            found[name] = zero.astype(np.float64) + mean[at : at + zero.size].reshape(zero.shape)
            at += zero.size
        return self.method.finish(found, 1.0, self.reference, side=side, number=self.number)


@dataclass
class Gathered:
    """The vectors that clients have summed, and what became of them on the way there: of `clamped` numbers, and of the
    `vanished` clients' changes, in which every number rounds to 0."""

    vectors: dict[str, Any]
    failed: dict[str, str]
    own: dict[str, Update]
    clamped: int = 0
    vanished: int = 0


def secure_step(about: Round) -> tuple[Start, dict[str, Any]]:
    """Train, mask, add up, unmask, and go on from the sum: (the next start, the ledger's entry)."""
    federation, arm, number, start, clock = about.federation, about.arm, about.number, about.start, about.clock
    config, aggregation = about.config, about.settings
    settings = config.secure_of(arm)
    assert settings is not None
    # a mean of parameters, also of groups before a rule, is FedIT's
    changes = Changes.of(method_of(config, arm) or FedIT(), number, start)
    name = aggregation.method or aggregation.rule
    made = list(parameters_of(settings, len(federation.clients), changes.length + 1).values())
    agreed(config, arm, made, len(federation.clients), federation.learner.digest)
    quantizer = quantizer_of(config, arm, [len(client.texts) for client in federation.clients])
    gathered = gather(about, changes, quantizer)
    if gathered.clamped or gathered.vanished:  # of which a server would see nothing: no fact for the ledger
        lost = {"clamped": gathered.clamped, "vanished": gathered.vanished}
        federation.progress(arm.name, federation.total, federation.total, round=number, **lost)
    with clock.phase("aggregation"):
        sums = summed(config, settings, gathered.vectors, gathered.failed, number, start)
        adapter: Update | None = None
        try:
            adapter, side, found = added(config, arm, changes, quantizer, sums, start)
            moved, state = move(about, adapter)
        except (Void, *_NO_MEAN) as error:
            adapter, side, found = None, start.side, sums.facts() | {"void": str(error)}
            moved, state = move(about, None)
    with clock.phase("journal"):
        also = optimizer_facts(about, adapter, state)
        starts = start.starts if "void" in found else keeping_own(changes, moved, {**start.starts, **gathered.own})
        made_of_it = Start(moved, side, start.fixed, starts)
        following, names = about.folder.rounds.save_start(arm.name, number, made_of_it, masked=True)
    return following, {
        **about.heading,
        "rule": name,
        "parameters": aggregation.parameters,
        "weights": aggregation.weights,
        "excluded": gathered.failed,
        "not_counted": {},
        "secure": found
        | ({} if settings.groups is None else {"groups": settings.groups})
        | {"warnings": leaks(config, changes, found) + still(settings, sums)},
        "report": {},
        **also,
        **names,
    }


def gather(about: Round, changes: Changes, quantizer: secagg.Quantizer) -> Gathered:
    """Have each client train and bring its change to integers. One that cannot has dropped out."""
    found, federation, name, number = Gathered({}, {}, {}), about.federation, about.arm.name, about.number
    before = (number - 1) * len(federation.clients)
    updates = federation.trained(training_of(about, client) for client in federation.clients)
    for done, client in enumerate(federation.clients):
        federation.progress(name, before + done, federation.total, round=number)
        with about.clock.phase("training"):
            change, answer = np.zeros(changes.length, np.float32), next(updates)
            try:
                update = answer()
                change = changes.flat(update)
            except (TrainingError, NonFiniteError) as error:
                # why is known to the client alone
                found.failed[client.id] = "dropped out"
                federation.progress(name, before + done, federation.total, round=number, failed=str(error))
            else:
                found.own[client.id] = update
            weight = weight_of(about.config, about.arm, len(client.texts), quantizer)
            found.clamped += int(np.count_nonzero(np.abs(change) > np.float64(quantizer.largest)))
            vector = found.vectors[client.id] = quantizer.weighted(change, weight)
            found.vanished += bool(change.any()) and float(np.abs(change).max()) * vector.scale <= 0.5
    return found


def leaks(config: Config, changes: Changes, facts: Mapping[str, Any]) -> list[str]:
    """Why a sum shows what it should hide.

    Of the smallest sum that a server could have learned: the honest clients that are certain to be in it, and all that
    may be corrupt. Tokens as trained on, repeated ones again.
    """
    each = config.training.steps * config.training.batch_size * config.training.sequence_length
    width, corrupt = min(pair.d_in for pair in changes.reference.modules.values()), max(facts["corrupt"])
    found: list[str] = []
    for group in facts["survivors"]:
        included = min(len(group), facts["min_honest"] + corrupt)
        found += secagg.leaks(included, hidden_size=width, tokens=[each] * included, corrupt=corrupt)
    return list(dict.fromkeys(found))


def keeping_own(changes: Changes, adapter: Update, own: Mapping[str, Update]) -> dict[str, Update]:
    """client -> the new adapter with the factors that stay with that client; none where all travel.

    own: what each trained in this round, or where it dropped out what it began with
    """
    method, number = changes.method, changes.number
    staying = kept(method.trains(number), method.sends(number))
    found = {}
    for client, update in own.items() if staying else ():
        pairs = adapter.modules.values()
        mine = {name: update.tensors[name] for pair in pairs for name in (getattr(pair, f) for f in staying)}
        found[client] = adapter.with_tensors(mine, client_id=client, num_examples=update.num_examples)
    return found


def added(
    config: Config, arm: Arm, changes: Changes, quantizer: secagg.Quantizer, sums: Sums, start: Start
) -> tuple[Update, Update | None, dict[str, Any]]:
    """What a sum makes of the start, or the rule of the sums over groups: (adapter, beside it, the ledger's facts).

    Raises Void where there is no sum, or too few for the rule, and one of _NO_MEAN where a liar replaced it.
    """
    secure = config.secure_of(arm)
    assert secure is not None
    if secure.groups is not None:
        return over_groups(config, arm, changes, quantizer, sums, start)
    if sums.void:
        raise Void(sums.void[0])
    mean, weight = quantizer.mean(sums.rows[0])
    return *changes.finish(mean, start.side), sums.facts() | {"weight": weight}


def over_groups(
    config: Config, arm: Arm, changes: Changes, quantizer: secagg.Quantizer, sums: Sums, start: Start
) -> tuple[Update, None, dict[str, Any]]:
    """The rule over the sums of groups, a void one lacking its row, and so one of which a liar made no mean.

    Raises Void where no more than half are left, so that those lost outweigh the others, or fewer than the rule takes.
    """
    settings, means, weights = config.aggregation_of(arm), [], {}
    rule = make_chain(settings.rule, settings.parameters, settings.before).for_round(changes.number)
    void = [*sums.void]
    for k, (row, survivors) in enumerate(zip(sums.rows, sums.survivors, strict=True)):
        name = f"group-{k}"
        try:
            mean, weight = quantizer.mean(row)
            adapter = changes.finish(mean, None)[0]
        except _NO_MEAN as error:
            void.append(f"{name}: {error}")
            continue
        means.append(adapter.with_tensors({}, client_id=name))
        weights[name] = weight if settings.weights == "counts" else float(len(survivors))
    left, lost = len(means), len(void)
    if left <= lost:
        raise Void(f"{lost} of {left + lost} groups are void, expected more than half to give a sum: {void[0]}")
    try:
        rule.check(left)
    except RuleError as error:
        raise Void(f"{lost} of {left + lost} groups are void, and {error}: {void[0]}") from None
    result = aggregate(Cohort(means), rule, space=settings.space, reference=start.adapter, weights=weights)
    facts = {"space": settings.space, "group_weights": weights, "group_coefficients": result.coefficients}
    # groups alone do not make the result again: what lies on the reference counts, and all is divided by their sum
    facts |= {name: result.report[name] for name in ("reference_coefficients", "divisor")}
    return result.update, None, sums.facts() | facts | ({"void_groups": void} if void else {})
