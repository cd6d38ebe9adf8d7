"""A whole round in one process: what a transport would carry, carried by hand."""

from __future__ import annotations

import os
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedcore.errors import PrivacyError, Void
from fedcore.numbers import shown
from fedcore.privacy.secagg.client import Client
from fedcore.privacy.secagg.groups import group_parameters, partition
from fedcore.privacy.secagg.parameters import STAGES, Parameters
from fedcore.privacy.secagg.roster import Id, Roster
from fedcore.privacy.secagg.server import Server
from fedcore.privacy.secagg.unmasking import SecureSum
from fedcore.privacy.secagg.vector import Weighted, vector_of


@dataclass(frozen=True)
class Simulation:
    """What a simulated round gave.

    sum         (length,) exact integers; with groups a row for each group that gave a sum, maybe none
    survivors   whose vectors are in the sum; with groups, of all of them
    liars       member -> what it was found to have done
    bytes_up    bytes that all clients sent; bytes_down: that the server sent; void groups' too
    groups      with groups: the members that are in the sum of each row
    void        with groups: why each of the others gave no sum
    """

    sum: np.ndarray
    survivors: list[Id]
    liars: dict[Id, str]
    bytes_up: int
    bytes_down: int
    groups: list[list[Id]] | None = None
    void: list[str] | None = None


def simulate(
    vectors: Sequence[Any] | Mapping[Id, Any],
    dropouts: Mapping[str, Collection[Id]] | None = None,
    parameters: Parameters | Mapping[int, Parameters] | None = None,
    *,
    groups: int | None = None,
    seed: bytes | None = None,
    round: int = 0,
    context: bytes = bytes(32),
) -> Simulation:
    """Run a secure sum of vectors in this process.

    vectors     of integers, or of `Quantizer.weighted`; of one length. A sequence has identifiers 0, 1, ...
    dropouts    stage -> collection of identifiers of clients that send nothing from that stage on
    parameters  None: for a server that follows the protocol, the bound that the vectors have, and the dropouts given
    round       its number; context: SHA-256 of the broadcast adapter and configuration. The session is drawn here
    groups      sums over so many random groups of nearly equal size, each a round of its own, as robust rules need;
                `parameters` are what `group_parameters` gives, or those of all clients, to make each group's from
    seed        of the groups, as for `partition`; None: drawn here

    Raises Void where too many drop out for a sum; with groups, one that is void lacks its row, and others go on.
    PrivacyError for dropouts of another kind, unknown identifiers and stages, a seed of other than 32 bytes, parameters
    of other numbers of clients, and vectors for which there are no parameters; otherwise as `Client.mask`.
    """
    named = vectors if isinstance(vectors, Mapping) else dict(enumerate(vectors))
    given = {name: vector_of(vector) for name, vector in named.items()}
    gone = _last_stages({} if dropouts is None else dropouts, given)
    if groups is None:
        if isinstance(parameters, Mapping):
            raise PrivacyError("parameters: got some for each size of group, expected groups= with them")
        found, up, down = _one(given, gone, parameters, round, context)
        if isinstance(found, Void):
            raise found
        return Simulation(found.sum, found.survivors, found.liars, up, down)
    parts = partition(list(given), groups, os.urandom(32) if seed is None else seed)
    made = _of_groups(parameters, parts)
    ran = [_one({name: given[name] for name in part}, gone, made[len(part)], round, context) for part in parts]
    sums = [found for found, _, _ in ran if not isinstance(found, Void)]
    length = len(given[parts[0][0]])
    return Simulation(
        np.stack([found.sum for found in sums]) if sums else np.zeros((0, length), np.int64),
        [name for found in sums for name in found.survivors],
        {name: why for found in sums for name, why in found.liars.items()},
        sum(up for _, up, _ in ran),
        sum(down for _, _, down in ran),
        [found.survivors for found in sums],
        [str(found) for found, _, _ in ran if isinstance(found, Void)],
    )


def _of_groups(
    given: Parameters | Mapping[int, Parameters] | None, parts: Sequence[Sequence[Id]]
) -> Mapping[int, Parameters | None]:
    """Size of a group -> its parameters, made from those of all clients; None where none were given."""
    sizes, n = {len(part) for part in parts}, sum(map(len, parts))
    if given is None:
        return dict.fromkeys(sizes)
    if isinstance(given, Mapping):
        if missing := sizes - given.keys():
            raise PrivacyError(
                f"parameters: got some for groups of {sorted(given)}, expected also of {sorted(missing)}"
            )
        return given
    p = given
    if p.clients != n:
        raise PrivacyError(f"parameters: got some for {p.clients} clients, expected for the {n} that have vectors")
    about: dict[str, Any] = {name: getattr(p, name) for name in ("length", "bound", "adversary", "stream")}
    about |= {"modulus_bits": None if p.bound else p.modulus_bits, "least_included": p.least_included}
    return group_parameters(n, len(parts), corrupt=p.corrupt / n, dropout=p.dropout / n, **about)


def _last_stages(dropouts: Mapping[str, Collection[Id]], given: Mapping[Id, Any]) -> dict[Id, int]:
    """Identifier -> the first stage, by number, at which a client is gone."""
    if not isinstance(dropouts, Mapping):
        raise PrivacyError(f"dropouts: got {type(dropouts).__name__}, expected a mapping of stages to identifiers")
    gone: dict[Id, int] = {}
    for stage, names in dropouts.items():
        if stage not in STAGES:
            raise PrivacyError(f"dropouts: got stage {shown(stage)}, expected one of {', '.join(STAGES)}")
        # the letters of a text may be names too
        if not isinstance(names, Collection) or isinstance(names, (str, bytes, bytearray, memoryview)):
            got = type(names).__name__
            raise PrivacyError(f"dropouts: {stage}: got {got}, expected a collection of identifiers, such as a list")
        for name in names:
            if not isinstance(name, Hashable) or name not in given:
                raise PrivacyError(f"dropouts: {shown(name)} has no vector")
            gone[name] = min(gone.get(name, len(STAGES)), STAGES.index(stage))
    return gone


def _chosen(given: Mapping[Id, Weighted | np.ndarray], gone: Collection[Id]) -> Parameters:
    """Parameters for these vectors and at least a third of dropouts."""
    values = list(given.values())
    bounds = [v.limit if isinstance(v, Weighted) else _largest(v) for v in values]
    n, length = len(values), max(map(len, values), default=0)
    most = min(max(n // 3, len(gone)), max(n - 2, 0))
    return Parameters.choose(n, length=length, bound=max(bounds, default=1), corrupt=0, dropout=most / max(n, 1))


def _largest(values: np.ndarray) -> int:
    """In absolute value, at least 1; as Python's numbers, since the least of a dtype has none of its own."""
    return max(-int(values.min(initial=0)), int(values.max(initial=0)), 1)


def _one(
    given: Mapping[Id, Weighted | np.ndarray],
    gone: Mapping[Id, int],
    parameters: Parameters | None,
    round: int,
    context: bytes,
) -> tuple[SecureSum | Void, int, int]:
    """One round: (what it gave, or why nothing, bytes up, bytes down)."""
    p = parameters or _chosen(given, given.keys() & gone.keys())
    keys = {name: Ed25519PrivateKey.generate() for name in given}
    roster = Roster({name: key.public_key().public_bytes_raw() for name, key in keys.items()})
    about = (roster, os.urandom(16), round, context)
    clients = {name: Client(p, name, key, *about) for name, key in keys.items()}
    server, up, down = Server(p, *about), 0, 0
    messages: Mapping[Id, bytes] = dict.fromkeys(given, b"")
    try:
        for stage in p.stages:
            for name, message in messages.items():
                down += len(message)
                if gone.get(name, len(STAGES)) <= STAGES.index(stage):
                    continue
                for data in answer(clients[name], stage, message, given[name]):
                    up += len(data)
                    server.receive(name, data)
            messages = server.advance()
        return server.result(), up, down
    except Void as error:
        return error, up, down
    finally:
        for client in clients.values():
            client.close()


def answer(client: Client, stage: str, message: bytes, vector: Any) -> Any:
    """What a client sends in a stage, message by message."""
    if stage == "mask":
        return client.mask(message, vector)
    return [client.advertise() if stage == "advertise" else getattr(client, stage)(message)]
