"""Who holds which texts: IID, Dirichlet label skew, or by a column. The seed decides; no client is empty."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedcore.errors import ConfigError
from fedcore.federation.config_data import Partition

_TRIES = 1000


@dataclass(frozen=True)
class Share:
    """One client's part: its id, which names its files, and the positions of its examples, ascending.

    drawn: what the client's batches are drawn by where its id, a number among all clients, depends on theirs
    """

    client_id: str
    indices: np.ndarray
    drawn: str = ""


def partition(labels: Sequence[str], settings: Partition, seed: int) -> list[Share]:
    """Deal examples 0 .. len(labels)-1 to clients as [partition] says; every example goes to exactly one client.

    labels: one a text (only their number matters for 'iid'). Raises ConfigError naming the key when a client would hold
    fewer than `min_examples`.
    """
    clients = settings.clients or 8
    generator = np.random.default_rng([seed, 0x70617274])
    if settings.kind != "column" and len(labels) < clients * settings.min_examples:
        raise ConfigError(
            f"partition.min_examples: {len(labels)} texts cannot give {clients} clients {settings.min_examples} each; "
            "lower clients or min_examples, or bring more texts"
        )
    if settings.kind == "iid":
        parts = iid(len(labels), clients, generator)
    elif settings.kind == "dirichlet":
        parts = dirichlet(labels, clients, settings.alpha, settings.min_examples, generator)
    else:
        parts = by_value(labels)
    width = len(str(len(parts) - 1))
    shares = [
        Share(f"client-{i:0{width}d}", np.sort(part), _named(labels[part[0]]) if settings.kind == "column" else "")
        for i, part in enumerate(parts)
    ]
    smallest = min(shares, key=lambda share: len(share.indices))
    if len(smallest.indices) < settings.min_examples:
        raise ConfigError(
            f"partition.min_examples: {smallest.client_id} would hold {len(smallest.indices)} texts, expected at least "
            f"{settings.min_examples}; lower min_examples or bring more texts"
        )
    return shares


def _named(label: str) -> str:
    """A column client's label, as long as an id: SHA-256."""
    return hashlib.sha256(label.encode(errors="surrogatepass")).hexdigest()


def iid(count: int, clients: int, generator: np.random.Generator) -> list[np.ndarray]:
    """A random permutation cut into parts whose sizes differ by at most one."""
    return np.array_split(generator.permutation(count), clients)


def dirichlet(
    labels: Sequence[str], clients: int, alpha: float, min_examples: int, generator: np.random.Generator
) -> list[np.ndarray]:
    """Label skew: the examples of each label are spread over the clients in proportions drawn from Dir(alpha).

    Clients differ in labels (Hsu et al., 2019, "Measuring the Effects of Non-Identical Data Distribution for Federated
    Visual Classification") and in amounts, since the draw is made per label over the clients (Yurochkin et al., 2019,
    "Bayesian Nonparametric Federated Learning of Neural Networks", section 4). A draw that leaves a client with fewer
    than `min_examples` is drawn again. Raises ConfigError after 1000 such draws.
    """
    array = np.asarray(labels, dtype=object)
    groups = [np.flatnonzero(array == label) for label in sorted(set(labels))]
    for _ in range(_TRIES):
        parts: list[list[np.ndarray]] = [[] for _ in range(clients)]
        for group in groups:
            cuts = np.cumsum(generator.dirichlet(np.full(clients, alpha)))[:-1] * len(group)
            for part, piece in zip(
                parts, np.split(generator.permutation(group), np.rint(cuts).astype(int)), strict=True
            ):
                part.append(piece)
        joined = [np.concatenate(part) for part in parts]
        if min(len(part) for part in joined) >= min_examples:
            return joined
    raise ConfigError(
        f"partition.alpha: no draw of Dir({alpha}) in {_TRIES} left each of {clients} clients with {min_examples} of "
        f"{len(labels)} texts; raise alpha, or lower clients or min_examples"
    )


def by_value(labels: Sequence[str]) -> list[np.ndarray]:
    """One client for each different label, in sorted order of the labels."""
    array = np.asarray(labels, dtype=object)
    return [np.flatnonzero(array == label) for label in sorted(set(labels))]
