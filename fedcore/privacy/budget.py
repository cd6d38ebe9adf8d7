"""What a population may still lose: charges that are on disk before a sample of noise is drawn."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedcore.errors import PrivacyBudgetError, PrivacyError
from fedcore.gaussian_table import SAMPLER
from fedcore.privacy.accountant import Charge, check_delta, check_relation, spent
from fedcore.privacy.accounting import check_epsilon
from fedcore.privacy.chain import Chain, Head, require
from fedcore.privacy.seal import KEY_BYTES, SealedKeys, commitment, derived

_DIGEST = re.compile("[0-9a-f]{64}")


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


class Budget:
    """The (ε, δ) of one population, shared by all runs over it, in a file that survives crashes.

    `reserve` writes the charge, the digest of the inputs and a fresh key to disk before anybody can draw: a process
    that is killed at any point has at worst charged for what it never released, and no two sets of inputs ever share a
    noise. Files: `path` (records, see `fedcore.privacy.chain` for what tampering and rollback they show), `path.head`,
    `path.lock` and the folder `path.keys`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        epsilon: float,
        delta: float,
        *,
        sealing_key: bytes,
        noise_multiplier: float,
        sampling_rate: float = 1.0,
        dimension: int = 0,
        sampling: str = "poisson",
        neighbours: str = "add_remove",
        unit: str = "client",
        population: int | None = None,
        concentrated: bool = False,
        stream: str = "chacha20",
    ):
        """Open the budget of a population, or start it.

        epsilon, delta    the whole budget, of all runs; they, sampling, neighbours, unit and population are part of the
                          file, and each run must open it with the same
        sealing_key       32 random bytes that the operator keeps elsewhere; they seal noise keys and sign records
        noise_multiplier  of this run's releases, as are sampling_rate and dimension, the noise samples of one release
        sampling          how records come into a round, as in `fc.privacy.epsilon`
        unit              what one record is, in words: whom the guarantee is for
        population        records in all; δ must be less than 1 over it
        concentrated      this run's releases are known by ρ-zCDP alone, as of `Charge`
        stream            of this run's noise, as of `Central`: that of AES adds its own term to δ

        Raises PrivacyError naming the parameter, FormatError for a file that was tampered with or rolled back,
        StorageError.
        """
        check_epsilon(epsilon)
        check_delta(delta, population)
        self._charge = Charge(float(noise_multiplier), float(sampling_rate), 1, dimension, concentrated, stream)
        check_relation(sampling, neighbours, [self._charge])
        self.epsilon, self.delta, self.sampling, self.neighbours = float(epsilon), float(delta), sampling, neighbours
        self.path = Path(path)
        self._keys = SealedKeys(self.path.with_name(self.path.name + ".keys"), sealing_key)
        self._chain = Chain(self.path, derived(sealing_key, "chain of records"))
        self._opening = {
            "kind": "budget",
            "epsilon": self.epsilon.hex(),
            "delta": self.delta.hex(),
            "sampling": sampling,
            "neighbours": neighbours,
            "unit": unit,
            "population": population,
        }
        with self._chain.locked() as records:
            if not records:
                self._chain.append(self._opening)
            else:
                self._check_opening(records)

    def reserve(self, inputs_digest: str) -> Noise:
        """Charge for one release of these inputs, or find the charge that they already have, and give its noise.

        inputs_digest  SHA-256 (hex) of all that the release depends on, as `Central.inputs_digest` makes it

        The same inputs get the same key, without another charge: what they release is the same. Raises
        PrivacyBudgetError if this charge would pass the budget (nothing is charged), PrivacyError for inputs whose key
        was destroyed, FormatError for files that were changed or rolled back, StorageError.
        """
        if not isinstance(inputs_digest, str) or not _DIGEST.fullmatch(inputs_digest):
            raise PrivacyError(f"inputs_digest: got {inputs_digest!r}, expected a SHA-256 as 64 hexadecimal digits")
        with self._chain.locked() as records:
            self._check_opening(records)
            charges = [(record, _charge(record)) for record in records if record["kind"] == "charge"]
            for record, charge in charges:
                if record["inputs"] == inputs_digest:
                    return self._again(records, record, charge, [one for _, one in charges])
            after = self._after([one for _, one in charges])
            number, key = len(records) + 1, os.urandom(KEY_BYTES)
            # the key first: a charge without its key would be paid for and never usable, a key without a charge is
            # overwritten by the next one
            self._keys.write(number, inputs_digest, key)
            self._chain.append(
                {
                    "kind": "charge",
                    "inputs": inputs_digest,
                    "key": commitment(key),
                    "noise_multiplier": self._charge.noise_multiplier.hex(),
                    "sampling_rate": self._charge.sampling_rate.hex(),
                    "dimension": self._charge.dimension,
                    "concentrated": self._charge.concentrated,
                    "stream": self._charge.stream,
                    "sampler": SAMPLER,
                }
            )
            return self._noise(key, inputs_digest, number, after)

    def check(self) -> None:
        """Raise PrivacyBudgetError if one more charge would pass the budget, before work that a charge would end."""
        self._after(self.charges)

    @property
    def spent(self) -> float:
        """ε so far, at the budget's δ, of all charges in the file: those of other runs too, and of what crashed."""
        return self._spent(self.charges)

    @property
    def charges(self) -> list[Charge]:
        """Every charge in the file, in order. Raises FormatError as `reserve` does."""
        with self._chain.locked() as records:
            return [_charge(record) for record in records if record["kind"] == "charge"]

    @property
    def head(self) -> Head:
        """How many records the file has and the last one's MAC; kept elsewhere, it shows a rollback (`require`)."""
        with self._chain.locked():
            return self._chain.head

    def require(self, head: Head) -> None:
        """Raise PrivacyError unless the file continues an earlier `head`: what file and sidecar cannot tell alone."""
        with self._chain.locked() as records:
            require(records, Head(*head))

    def destroy_keys(self) -> int:
        """Delete the noise keys of all charges so far, as after an audit; how many there were.

        What was released stays charged, and cannot be released or checked again.
        """
        with self._chain.locked():
            self._chain.append({"kind": "destroyed"})
            return self._keys.destroy()

    def _again(
        self, records: list[dict[str, Any]], record: dict[str, Any], charge: Charge, charges: list[Charge]
    ) -> Noise:
        number = record["number"]
        if any(later["kind"] == "destroyed" for later in records[number:]):
            raise PrivacyError(
                f"{self.path}: the key of charge {number} was destroyed, so these inputs cannot be released again; "
                "what was released stays charged"
            )
        if charge != self._charge:
            raise PrivacyError(
                f"inputs_digest: charge {number} has it at {charge}, and this run asks for {self._charge}; a digest "
                "covers the mechanism too"
            )
        if record.get("sampler") != SAMPLER:
            raise PrivacyError(
                f"{self.path}: charge {number} was made for sampler {record.get('sampler', 1)}, and this is {SAMPLER}, "
                "which draws other noise from its key; go on with the version of fedcore that made it"
            )
        key = self._keys.read(number, record["inputs"], record["key"])
        return self._noise(key, record["inputs"], number, self._spent(charges))

    def _noise(self, key: bytes, inputs: str, number: int, after: float) -> Noise:
        charge = self._charge
        charged = (charge.noise_multiplier, charge.dimension, number, after, charge.sampling_rate)
        return Noise(key, inputs, *charged, self.neighbours, charge.concentrated, charge.stream)

    def _after(self, charges: list[Charge]) -> float:
        """ε with one more charge. Raises PrivacyBudgetError."""
        after = self._spent([*charges, self._charge])
        if after > self.epsilon:
            raise PrivacyBudgetError(
                f"{self.path}: a charge at noise multiplier {self._charge.noise_multiplier:g} would bring epsilon "
                f"to {after:.4g} of {self.epsilon:g} after {len(charges)} charges; stop here, or ask for more noise"
            )
        return after

    def _spent(self, charges: list[Charge]) -> float:
        return spent(charges, self.delta, self.sampling, self.neighbours)

    def _check_opening(self, records: list[dict[str, Any]]) -> None:
        for name, value in self._opening.items():
            had = records[0].get(name) if records else None
            if had != value:
                got, started = (
                    float.fromhex(str(one)) if name in ("epsilon", "delta") and one else one for one in (value, had)
                )
                raise PrivacyError(
                    f"{name}: got {got!r}, and the budget at {self.path} was started with {started!r}; open it as it "
                    "was started: one population has one budget"
                )


def _charge(record: dict[str, Any]) -> Charge:
    z, q = float.fromhex(record["noise_multiplier"]), float.fromhex(record["sampling_rate"])
    return Charge(z, q, 1, record["dimension"], record["concentrated"], record["stream"])
