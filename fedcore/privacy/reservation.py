"""One charge of a budget: the right to a release that it buys, and how the budget's file has it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedcore.errors import PrivacyError
from fedcore.gaussian_table import SAMPLER
from fedcore.privacy.accountant import Charge


@dataclass(frozen=True)
class Noise:
    """The right to one release: of these inputs, at this noise multiplier, with noise from this key and no other.

    key               32 secret bytes, from which the keys of the release's parts are derived
    inputs_digest     SHA-256 (hex) of what is released, mechanism included
    noise_multiplier  standard deviation over the clip that was charged
    dimension         samples that were charged
    number            of the charge in its file
    epsilon           ε of the population so far, this charge included
    sampling_rate     that was charged
    neighbours        the budget's relation
    concentrated      as of `Charge`, that was charged
    stream            of the noise, that was charged
    """

    key: bytes = field(repr=False)
    inputs_digest: str
    noise_multiplier: float
    dimension: int
    number: int
    epsilon: float
    sampling_rate: float = 1.0
    neighbours: str = "add_remove"
    concentrated: bool = False
    stream: str = "chacha20"


def record_of(charge: Charge, inputs_digest: str, key: str, run: str) -> dict[str, Any]:
    """The record of a charge of one release: of these inputs, under the key with this commitment, by this run."""
    return {
        "kind": "charge",
        "inputs": inputs_digest,
        "key": key,
        "run": run,
        "noise_multiplier": charge.noise_multiplier.hex(),
        "sampling_rate": charge.sampling_rate.hex(),
        "dimension": charge.dimension,
        "concentrated": charge.concentrated,
        "stream": charge.stream,
        "sampler": SAMPLER,
    }


def charge_of(record: dict[str, Any]) -> Charge:
    """The charge that `record_of` wrote."""
    z, q = float.fromhex(record["noise_multiplier"]), float.fromhex(record["sampling_rate"])
    return Charge(z, q, 1, record["dimension"], bool(record["concentrated"]), record["stream"])


def check_opening(path: Path, opening: dict[str, Any], records: list[dict[str, Any]]) -> None:
    """Raise PrivacyError, naming what differs, unless the first of a file's records has all that `opening` has."""
    for name, value in opening.items():
        had = records[0].get(name) if records else None
        if had != value:
            got, started = (
                float.fromhex(str(one)) if name in ("epsilon", "delta") and one else one for one in (value, had)
            )
            less = "; a run that is to take less says so as its spend" if name == "epsilon" else ""
            raise PrivacyError(
                f"{name}: got {got!r}, and the budget at {path} was started with {started!r}; open it as it was "
                f"started: one population has one budget{less}"
            )
