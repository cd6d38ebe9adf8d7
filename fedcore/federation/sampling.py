"""Who takes part in a round of a private run: drawn from a secret key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from fedcore import ops

One = TypeVar("One")


def sampled(clients: Sequence[One], sampling: str, expected: int, key: bytes) -> list[One]:
    """The clients of one round, in their order.

    sampling  "none": all; "poisson": each by a coin of its own with probability expected / n, rounded down to a
              multiple of 2**-64; "fixed": `expected` of them, every such set alike
    key       32 secret bytes, of this round alone: the stream that the coins come from
    """
    if sampling == "none" or not clients:
        return list(clients)
    words = np.asarray(ops.keystream(8 * len(clients), key, bytes(12), 0)).view("<u8")
    if sampling == "poisson":
        threshold = (expected << 64) // len(clients)
        return [client for client, word in zip(clients, words.tolist(), strict=True) if word < threshold]
    chosen = sorted(np.argsort(words, kind="stable")[:expected].tolist())
    return [clients[place] for place in chosen]


def taking_turns(clients: Sequence[One], groups: int, number: int, key: bytes) -> list[One]:
    """The clients of round `number`, from 1, where each is in one round of every `groups`, in their order.

    key  32 secret bytes of all rounds: who is in which group is drawn from it, sizes differ by one at most
    """
    words = np.asarray(ops.keystream(8 * len(clients), key, bytes(12), 0)).view("<u8")
    group = (number - 1) % groups
    return [clients[place] for place in sorted(np.argsort(words, kind="stable")[group::groups].tolist())]
