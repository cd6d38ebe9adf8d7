"""The secure sum of a round's vectors: the protocol with all its members in this process."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fedcore import ops
from fedcore.errors import PrivacyError
from fedcore.federation.config import Arm, Config
from fedcore.federation.config_privacy import Privacy
from fedcore.federation.config_secure import Secure
from fedcore.federation.privacy_mechanisms import corrupt_among
from fedcore.federation.start import Start
from fedcore.privacy import secagg


@dataclass(frozen=True)
class Sums:
    """What a round's sums gave: one, or one of each group that was not void.

    rows          (sums, length) exact integers
    survivors     whose vectors are in each
    void          why each group that lacks its row gave none
    parameters    of each size of group, ascending
    """

    rows: np.ndarray
    survivors: list[list[str]]
    void: list[str]
    liars: dict[str, str]
    bytes_up: int
    bytes_down: int
    parameters: list[secagg.Parameters]

    @classmethod
    def of(cls, ran: secagg.Simulation, parameters: Sequence[secagg.Parameters]) -> Sums:
        """From what the protocol gave."""
        one = ran.groups is None
        groups = [ran.survivors] if ran.groups is None else ran.groups
        return cls(
            ran.sum[np.newaxis] if one else ran.sum,
            [[str(name) for name in group] for group in groups],
            ran.void or [],
            {str(name): why for name, why in ran.liars.items()},
            ran.bytes_up,
            ran.bytes_down,
            list(parameters),
        )

    def facts(self) -> dict[str, Any]:
        """What the ledger says: who is in a sum, what hides it, what travelled. `sums` are SHA-256 of int64 vectors.

        clients, corrupt, dropout, neighbours and threshold are lists with a number for each size of group.
        """
        p = self.parameters[-1]  # the largest size: its modulus fits all
        each = {
            name: [getattr(one, name) for one in self.parameters]
            for name in ("clients", "corrupt", "dropout", "neighbours", "threshold")
        }
        return {
            "adversary": p.adversary,
            **each,
            "modulus_bits": p.modulus_bits,
            "min_honest": min(one.min_honest for one in self.parameters),
            "stream": p.stream,
            "survivors": self.survivors,
            "liars": self.liars,
            "sums": [hashlib.sha256(row.tobytes()).hexdigest() for row in self.rows],
            "bytes_up": self.bytes_up,
            "bytes_down": self.bytes_down,
        } | ({"void_groups": self.void} if self.void else {})


def summed(
    config: Config, settings: Secure, vectors: Mapping[str, Any], failed: Collection[str], number: int, start: Start
) -> Sums:
    """Mask, add up and unmask the vectors of all clients but those that `failed`, which never come.

    Every sum is compared with the plain sum of the same integers. A void one lacks its row. Groups are drawn from the
    run's seed and the adapter that clients start from: the same in all arms with that start, in a repeated run and in a
    round that begins again, and after a void one. Sums over others of nearly the same vectors would show them one by
    one.
    """
    made = parameters_of(settings, len(vectors), len(next(iter(vectors.values()))))
    seed = hashlib.sha256(f"groups {config.run.seed} {start.adapter.digest()}".encode()).digest()
    context = context_of(config, start)
    given: dict[str | int, Any] = dict(vectors.items())
    gone = {"advertise": [name for name in given if name in failed]}
    ran = secagg.simulate(given, gone, made, groups=settings.groups or 1, seed=seed, round=number, context=context)
    sums = Sums.of(ran, list(made.values()))
    compare_with_plain(sums, vectors)
    return sums


def added_up(p: secagg.Parameters, vectors: Mapping[str, Any], number: int, context: bytes) -> Sums:
    """One secure sum of all that came, compared with the plain one. Raises Void."""
    sums = Sums.of(secagg.simulate(dict(vectors.items()), None, p, round=number, context=context), [p])
    compare_with_plain(sums, vectors)
    return sums


def parameters_of(settings: Secure, clients: int, length: int) -> dict[int, secagg.Parameters]:
    """Clients in a sum, all or a group's -> its parameters. Raises PrivacyError where none keep what is asked for.

    A server that follows the protocol ends a round in which more drop out than expected: all others are in every sum.
    """
    found = secagg.group_parameters(
        clients,
        settings.groups or 1,
        length=length,
        bound=settings.bound,
        corrupt=settings.corrupt,
        dropout=settings.dropout,
        adversary=settings.adversary,
        stream=settings.stream,
    )
    if settings.adversary == "malicious":
        return found
    return {size: replace(p, least_included=size - p.dropout) for size, p in found.items()}


def quantizer_of(config: Config, arm: Arm, examples: Sequence[int]) -> secagg.Quantizer:
    """What brings changes to integers, for clients of so many examples; all clients know its w_max."""
    settings = config.secure_of(arm)
    assert settings is not None
    equal = config.aggregation_of(arm).weights == "equal"
    return secagg.Quantizer(
        settings.bound, settings.largest, 1.0 if equal else float(settings.largest_weight or max(examples))
    )


def weight_of(config: Config, arm: Arm, examples: int, quantizer: secagg.Quantizer) -> float:
    """What a client of so many examples counts for."""
    equal = config.aggregation_of(arm).weights == "equal"
    return 1.0 if equal else min(float(examples), quantizer.largest_weight)


def context_of(config: Config, start: Start) -> bytes:
    """SHA-256 of what the server broadcast and of the configuration: masks cancel for one content alone."""
    sent = [start.adapter, start.side, start.fixed, *(start.starts[name] for name in sorted(start.starts))]
    digests = ["" if update is None else update.digest() for update in sent]
    return secagg.digest_of(*(text.encode() for text in (*digests, config.model_dump_json())))


def compare_with_plain(sums: Sums, vectors: Mapping[str, Any]) -> None:
    """Raise PrivacyError unless each sum is that of its survivors' integers, bit for bit.

    Only a simulation can: it has both sides.
    """
    none, signs, p = np.zeros((0, 32), np.uint8), np.zeros(0, np.int8), sums.parameters[-1]
    for row, survivors in zip(sums.rows, sums.survivors, strict=True):
        total: Any = np.zeros(p.length, np.uint32 if p.modulus_bits <= 32 else np.uint64)
        for name in survivors:
            ops.unpack_add(secagg.checked(vectors[name], p).packed(none, signs, p), p.modulus_bits, total)
        mask = np.uint64((1 << p.modulus_bits) - 1)
        if not np.array_equal(total, row.astype(np.int64).view(np.uint64) & mask):
            raise PrivacyError("secure sum: differs from the plain sum of the same integers; report this as a fault")


def still(settings: Secure, sums: Sums) -> list[str]:
    """What to say of sums that are 0 in every number."""
    if all(row[:-1].any() for row in sums.rows):
        return []
    return [
        f"a sum is 0 in every number: with secure.largest = {settings.largest:g} and secure.bits = {settings.bits} "
        f"changes up to {settings.largest / settings.bound / 2:.2g} at least round to 0; set a smaller secure.largest"
    ]


def with_honest(privacy: Privacy, masks: Sequence[Secure], clients: int) -> Privacy:
    """[privacy] for the fewest honest clients that a sum under masks has: their noise is all that counts.

    One client at least counts as corrupt, in the noise and in the masks: ε is to hold towards a participant, who knows
    its own noise, and what the server tells it. Raises PrivacyError where no parameters withstand as many corrupt
    clients, or where privacy.fewest_clients counts on more honest ones than are certain in a sum that a malicious
    server can learn.
    """
    corrupt = max(corrupt_among(privacy, clients), *(int(secure.corrupt * clients + 1e-9) for secure in masks))
    found = []
    for secure in masks:
        withstanding = secure.model_copy(update={"corrupt": corrupt / clients, "groups": None})
        try:
            found.append(parameters_of(withstanding, clients, 1)[clients])
        except PrivacyError as error:
            raise error.with_message(
                f"{error}; with [privacy] one participant, who knows its own noise, counts as corrupt at least; "
                "a smaller secure.dropout may do"
            ) from None
    most = min(p.min_honest for p in found) + corrupt
    fewest = privacy.fewest_clients or most
    if fewest > most and any(p.malicious for p in found):
        raise PrivacyError(
            f"privacy.fewest_clients: got {fewest} with {corrupt} of {clients} corrupt, expected at most {most}: no "
            "more honest clients are certain in a sum that a malicious server can learn"
        )
    return privacy.model_copy(update={"fewest_clients": fewest, "corrupt_clients": corrupt})
