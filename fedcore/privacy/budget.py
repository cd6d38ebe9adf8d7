"""What a population may still lose: charges that are on disk before a sample of noise is drawn."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fedcore.errors import FormatError, PrivacyBudgetError, PrivacyError
from fedcore.gaussian_table import SAMPLER
from fedcore.numbers import as_real, got
from fedcore.privacy.accountant import Charge, check_delta, check_relation, spent, taken
from fedcore.privacy.accounting import check_epsilon
from fedcore.privacy.chain import Chain, Head, require, tampered
from fedcore.privacy.files import file_path
from fedcore.privacy.limits import check_text
from fedcore.privacy.reservation import Noise, charge_of, check_opening, record_of
from fedcore.privacy.seal import KEY_BYTES, SealedKeys, commitment, derived
from fedcore.updates.atomic import Unwritten

_DIGEST = re.compile("[0-9a-f]{64}")


class Budget:
    """The (ε, δ) of one population, shared by all runs over it, in a file that survives crashes.

    `reserve` writes the charge, the digest of the inputs and a fresh key to disk before anybody can draw: a process
    that is killed at any point has at worst charged for what it never released, and no two sets of inputs ever share a
    noise. Files: `path` (records, see `fedcore.privacy.chain` for what tampering and rollback they show), `path.head`,
    `path.lock` and the folder `path.keys`, in which a key that no record explains shows a rollback of the others. The
    name of `path`, not its folder, is part of the file: another population's in its place is refused.
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
        run: str = "",
        spend: float | None = None,
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
        run               names this run among those over the population: its charges carry the name; all without one
                          are one run
        spend             ε that this run's charges alone may come to, at δ; None: all that the others leave

        Raises PrivacyError naming the parameter, FormatError for a file that was tampered with or rolled back,
        StorageError.
        """
        epsilon, delta = check_epsilon(epsilon), check_delta(delta, population)
        for name, text in (("unit", unit), ("run", run)):
            check_text(name, text)
        share = as_real(spend)
        if spend is not None and (share is None or not 0 < share <= epsilon):
            raise PrivacyError(
                f"{got('spend', spend)}, expected a share of epsilon, {epsilon:g}: above 0 and at most that"
            )
        self._charge = Charge(noise_multiplier, sampling_rate, 1, dimension, concentrated, stream)
        check_relation(sampling, neighbours, [self._charge])
        self.epsilon, self.delta, self.sampling, self.neighbours = epsilon, delta, sampling, neighbours
        self.path, self._run, self.spend = file_path(path), run, share
        self._keys = SealedKeys(self.path.with_name(self.path.name + ".keys"), sealing_key)
        self._chain = Chain(self.path, derived(sealing_key, "chain of records"))
        self._opening = {
            "kind": "budget",
            "name": self.path.name,
            "epsilon": self.epsilon.hex(),
            "delta": self.delta.hex(),
            "sampling": sampling,
            "neighbours": neighbours,
            "unit": unit,
            "population": None if population is None else int(population),
        }
        with self._locked() as records:
            if not records:
                # no two budgets have the same head, so that one started anew shows against any head of the old one
                self._chain.append({**self._opening, "id": os.urandom(KEY_BYTES).hex()})
            else:
                check_opening(self.path, self._opening, records)

    def reserve(self, inputs_digest: str) -> Noise:
        """Charge for one release of these inputs, or find the charge that they already have, and give its noise.

        inputs_digest  SHA-256 (hex) of all that the release depends on, as `Central.inputs_digest` makes it

        The same inputs get the same key, without another charge: what they release is the same. Raises
        PrivacyBudgetError if this charge would pass the budget, or samplers and masks take its δ whole (nothing is
        charged), PrivacyError for inputs whose key
        was destroyed, FormatError for files that were changed or rolled back, StorageError.
        """
        if not isinstance(inputs_digest, str) or not _DIGEST.fullmatch(inputs_digest):
            raise PrivacyError(f"{got('inputs_digest', inputs_digest)}, expected a SHA-256 as 64 hexadecimal digits")
        with self._locked() as records:
            check_opening(self.path, self._opening, records)
            for record in _charges(records):
                if record["inputs"] == inputs_digest:
                    return self._again(records, record)
            after = self._after(records)
            number, key = len(records) + 1, os.urandom(KEY_BYTES)
            line = self._chain.line(record_of(self._charge, inputs_digest, commitment(key), self._run))
            # the key first: a charge without its key would be paid for and never usable, a key without a charge is
            # put aside by the next one
            self._keys.write(number, inputs_digest, key)
            try:
                self._chain.write(line)
            except Unwritten:
                self._keys.take_back(number)  # a full disk is no crash: nothing of the charge is there, nobody drew
                raise
            return self._noise(key, inputs_digest, number, after)

    def check(self) -> None:
        """Raise PrivacyBudgetError if one more charge would pass the budget, before work that a charge would end."""
        with self._locked() as records:
            self._after(records)

    @property
    def spent(self) -> float:
        """ε so far, at the budget's δ, of all charges in the file: those of other runs too, and of what crashed.

        inf where δ is less than what samplers and masks take.
        """
        return self._spent(self.charges)

    @property
    def charges(self) -> list[Charge]:
        """Every charge in the file, in order. Raises FormatError as `reserve` does."""
        with self._locked() as records:
            return [charge_of(record) for record in _charges(records)]

    @property
    def own(self) -> list[int]:
        """The numbers of this run's charges, in order."""
        with self._locked() as records:
            return [record["number"] for record in self._own(records)]

    @property
    def head(self) -> Head:
        """How many records the file has and the last one's MAC; kept elsewhere, it shows a rollback (`require`)."""
        with self._locked():
            return self._chain.head

    def require(self, head: Head) -> None:
        """Raise PrivacyError unless the file continues an earlier `head`: what file and sidecar cannot tell alone."""
        with self._locked() as records:
            require(records, Head(*head))

    def destroy_keys(self) -> int:
        """Delete the noise keys of this run's charges so far, as after an audit; how many there were.

        What was released stays charged, and cannot be released or checked again. Other runs keep their keys.
        """
        with self._locked() as records:
            self._chain.append({"kind": "destroyed", "run": self._run})
            return self._keys.destroy(record["number"] for record in self._own(records))

    @contextmanager
    def _locked(self) -> Iterator[list[dict[str, Any]]]:
        """As `Chain.locked`; FormatError also where a key was sealed or destroyed for a charge that is not there.

        And where more keys of one charge were put aside than crashes explain.
        """
        with self._chain.locked() as records:
            if (least := self._keys.records) > len(records):
                folder = self._keys.folder.name
                raise tampered(self.path, f"has {len(records)} records where the keys in {folder} tell of {least}")
            if aside := self._keys.put_aside_often():
                raise FormatError(
                    f"{self.path}: {len(aside)} keys of charge {int(aside[0].stem)} were put aside: file and head were "
                    "put back together so often, or a process died; nothing is released: restore both as they were "
                    f"last, or, if all were crashes, move {aside[0].with_suffix('.*-aside')} to another folder"
                )
            yield records

    def _own(self, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [record for record in _charges(records) if record.get("run", "") == self._run]

    def _again(self, records: list[dict[str, Any]], record: dict[str, Any]) -> Noise:
        number, charge = record["number"], charge_of(record)
        destroyed = [later for later in records[number:] if later["kind"] == "destroyed"]
        if any(later.get("run", "") == record.get("run", "") for later in destroyed):
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
        return self._noise(key, record["inputs"], number, self._spent([charge_of(one) for one in _charges(records)]))

    def _noise(self, key: bytes, inputs: str, number: int, after: float) -> Noise:
        charge = self._charge
        charged = (charge.noise_multiplier, charge.dimension, number, after, charge.sampling_rate)
        return Noise(key, inputs, *charged, self.neighbours, charge.concentrated, charge.stream)

    def _after(self, records: list[dict[str, Any]]) -> float:
        """The population's ε with one more charge. Raises PrivacyBudgetError, also for what this run may spend."""
        limits = [("epsilon", _charges(records), self.epsilon)]
        if self.spend is not None:
            limits.append(("this run's own epsilon", self._own(records), self.spend))
        found = []
        for name, charged, limit in limits:
            together = [*map(charge_of, charged), self._charge]
            found.append(self._spent(together))
            if found[-1] > limit and (least := taken(together)) >= self.delta:
                raise PrivacyBudgetError(
                    f"{self.path}: delta: got {self.delta:g}, and samplers and masks take {least:.3g} with one more "
                    f"charge after {len(charged)} charges, whatever the noise; stop here, or ask for a budget of a "
                    "larger delta"
                )
            if found[-1] > limit:
                raise PrivacyBudgetError(
                    f"{self.path}: a charge at noise multiplier {self._charge.noise_multiplier:g} would bring {name} "
                    f"to {found[-1]:.4g} of {limit:g} after {len(charged)} charges; stop here, or ask for more noise"
                )
        return found[0]

    def _spent(self, charges: list[Charge]) -> float:
        return spent(charges, self.delta, self.sampling, self.neighbours)


def _charges(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [record for record in records if record["kind"] == "charge"]
