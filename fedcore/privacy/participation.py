"""Who took part in which round of a run with correlated noise: in a file, before a sample of the round is drawn."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from typing import Any

from fedcore.errors import PrivacyError
from fedcore.numbers import as_whole, got
from fedcore.privacy.chain import Chain, Head, require
from fedcore.privacy.factorization import Factor
from fedcore.privacy.files import file_path
from fedcore.privacy.limits import check_whole
from fedcore.privacy.seal import KEY_BYTES, check_sealing_key, derived


class Rounds:
    """The rounds of one run, in files that survive crashes: `path`, `path.head` and `path.lock`.

    A round is entered with its inputs and its clients, on disk, before its noise can be drawn. Entering it again with
    the same gives the same noise, as after a crash; with others it is refused, since one noise on two sums shows
    their difference. A client that would take part sooner or more often than the schema says is refused too: the
    noise hides the schema and no more. Clients stand there under a keyed hash. What tampering and rollback the files
    show is that of `fedcore.privacy.chain`; a run whose files are lost is over, and a new one is another charge.
    """

    def __init__(self, path: str | os.PathLike[str], factor: Factor, size: int, *, sealing_key: bytes):
        """Open a run's rounds, or start them.

        factor       of the mechanism (`Correlated.factor`): number of rounds, separation, participations, coefficients
        size         numbers of one term (`Correlated.size`)
        sealing_key  32 random bytes that the operator keeps elsewhere

        Raises PrivacyError for a file that was started otherwise, FormatError for one that was tampered with or rolled
        back, StorageError.
        """
        check_sealing_key(sealing_key)
        self.path, self.factor, self.size = file_path(path), factor, check_whole("size", size)
        self.noise_rows: Any = None  #: kept here by the mechanism between rounds
        self._secret = derived(sealing_key, "clients of rounds")
        self._chain = Chain(self.path, derived(sealing_key, "chain of rounds"))
        schema = {name: int(getattr(factor, name)) for name in ("rounds", "separation", "participations")}
        started = {"kind": "rounds", "size": self.size, **schema, "coefficients": list(factor.coefficients)}
        with self._chain.locked() as records:
            if not records:
                self._chain.append({**started, "run": os.urandom(KEY_BYTES).hex()})
        with self._chain.locked() as records:
            for name, value in started.items():
                if records[0].get(name) != value:
                    raise PrivacyError(
                        f"{name}: got {value!r}, and the rounds at {self.path} were started with "
                        f"{records[0].get(name)!r}; open them as they were started, or start a run in another file"
                    )
            self._run = str(records[0]["run"])

    def inputs_digest(self, settings: list[Any]) -> str:
        """SHA-256 (hex) of this run and a mechanism's settings; no two runs have the same."""
        text = json.dumps([settings, self._run, self.size, list(self.factor.coefficients)], default=float)
        return hashlib.sha256(f"fedcore rounds 1\n{text}".encode()).hexdigest()

    @property
    def entered(self) -> int:
        """Rounds so far."""
        with self._chain.locked() as records:
            return len(records) - 1

    def enter(self, number: int, inputs: str, clients: Sequence[str]) -> Head:
        """Write that round `number`, from 1, has these inputs (a digest) and clients; when this returns it is on disk.

        Returns the head of the file as of this round, to be published with it (`require`).

        Raises PrivacyError for a round out of its turn, one that was entered with others, or a client that the schema
        does not allow here (nothing is written); FormatError and StorageError as the constructor does.
        """
        number, marks = round_number(number), {self._mark(client): client for client in clients}
        if len(marks) < len(clients):
            raise PrivacyError(f"clients: one is named twice in round {number}; each may send one term a round")
        with self._chain.locked() as records:
            entered = records[1:]
            if 1 <= number <= len(entered):
                before = entered[number - 1]
                if before["inputs"] != inputs or before["clients"] != sorted(marks):
                    raise PrivacyError(
                        f"round {number}: was entered with other inputs, and one noise on two sums shows their "
                        f"difference; go on with round {len(entered) + 1}"
                    )
                return Head(before["number"], before["mac"])
            if number != len(entered) + 1 or number > self.factor.rounds:
                raise PrivacyError(
                    f"round {number}: {len(entered)} of {self.factor.rounds} rounds were entered; rounds go from 1 on "
                    "without a gap, and more than were planned need a new run and charge"
                )
            self._check_schema(number, entered, marks)
            return self._chain.append({"kind": "round", "inputs": inputs, "clients": sorted(marks)})

    def inputs_until(self, number: int) -> list[str]:
        """The inputs (digests) of rounds 1 to `number`, which their noise is keyed by."""
        with self._chain.locked() as records:
            return [record["inputs"] for record in records[1 : number + 1]]

    @property
    def head(self) -> Head:
        """As `Budget.head`: kept elsewhere, it shows a rollback (`require`)."""
        with self._chain.locked():
            return self._chain.head

    def require(self, head: Head) -> None:
        """Raise PrivacyError unless the file continues an earlier `head`."""
        with self._chain.locked() as records:
            require(records, Head(*head))

    def _check_schema(self, number: int, entered: list[dict[str, Any]], marks: dict[str, str]) -> None:
        took_part: dict[str, list[int]] = {}
        for earlier, record in enumerate(entered, 1):
            for mark in marks.keys() & set(record["clients"]):
                took_part.setdefault(mark, []).append(earlier)
        for mark, rounds in took_part.items():
            who = f"client {marks[mark]!r}"
            if number - rounds[-1] < self.factor.separation:
                raise PrivacyError(
                    f"{who}: took part in round {rounds[-1]}, and the noise is made for {self.factor.separation} "
                    f"rounds from one to the next; leave it out until round {rounds[-1] + self.factor.separation}"
                )
            if len(rounds) >= self.factor.participations:
                raise PrivacyError(
                    f"{who}: took part {len(rounds)} times, which is all that the noise is made for; leave it "
                    "out from now on"
                )

    def _mark(self, client: str) -> str:
        return derived(self._secret, f"client {client}").hex()


def round_number(number: Any) -> int:
    """The number of a round as an int. Raises PrivacyError for what is no whole number."""
    found = as_whole(number)
    if found is None:
        raise PrivacyError(f"{got('number', number)}, expected the number of a round, from 1 on")
    return found
