"""What a LoRA method is, as data: what a plan shows, and what a run refuses wrong combinations from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: what can train, travel up and travel down: the factors, or the r × r core between fixed ones
Factors = tuple[Literal["a", "b", "core"], ...]


@dataclass(frozen=True)
class Traits:
    """What is true of a method, whatever its settings.

    name       as files and command lines spell it
    exact      "exact": what clients hold after a round is Σ p_i Δ_i; "best rank": the closest of its rank; "personal":
               each client holds another model; "no"
    sense      the same in words
    start      how a client starts the next round, in words
    up, down   elements of one module that travel per client and round, as formulas of r, d_out, d_in and Σr
    mixed      takes clients of mixed ranks, scales and modules
    linear     the server needs only a weighted sum of what clients send, so it works under masks (secure aggregation)
    weighted   weights move the result
    side       leaves part of the update beside the adapter, to be kept at higher precision next to the base
    reference  needs the adapter that clients started from
    optimizer  a server optimiser may go on from its mean: the mean is the next start, in the basis of the last one
    paper      where it is from
    """

    name: str
    exact: Literal["exact", "best rank", "personal", "no"]
    sense: str
    start: str
    up: str
    down: str
    paper: str
    mixed: bool = False
    linear: bool = True
    weighted: bool = True
    side: bool = False
    reference: bool = False
    optimizer: bool = False
