"""What a run with [privacy] has beside the federation: its plan, the population's budget, its secret."""

from __future__ import annotations

import hmac
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from fedcore.errors import FormatError, PrivacyError
from fedcore.federation.config_privacy import Privacy
from fedcore.federation.folder import RunFolder
from fedcore.federation.privacy_plan import Plan, make_plan
from fedcore.federation.sampling import sampled, taking_turns
from fedcore.federation.sealing import budget_path, sealing_key
from fedcore.federation.start import Start
from fedcore.lora import Method
from fedcore.numbers import shown
from fedcore.privacy import Budget, Rounds
from fedcore.privacy.chain import Head
from fedcore.privacy.factorization import Factor
from fedcore.privacy.seal import derived, same_text
from fedcore.updates.atomic import write_atomically
from fedcore.updates.header import json_object

One = TypeVar("One")
#: the public plan in a run folder
PLAN = "privacy.json"
_RESTORE = "restore it from a copy"


@dataclass(frozen=True)
class PrivateRun:
    """One run over a population.

    settings  [privacy]
    plan      the noise that was picked when the run began
    budget    of the population
    secret    32 bytes of this run, from which coins and commitments are derived
    folder    of the run
    rounds    arm -> who took part in it when and its noise so far, in mode "correlated"
    """

    settings: Privacy
    plan: Plan
    budget: Budget
    secret: bytes = field(repr=False)
    folder: RunFolder
    rounds: dict[str, Rounds] = field(default_factory=dict)

    def key(self, purpose: str, arm: str, number: int, client: str = "") -> bytes:
        """32 secret bytes for one purpose in one round."""
        return derived(self.secret, json.dumps([purpose, arm, number, client]))

    def label(self, arm: str, number: int) -> str:
        """Names a release among all of a population: no other run has this secret."""
        return json.dumps([derived(self.secret, "name of the run").hex(), arm, number])

    def sample(self, clients: Sequence[One], arm: str, number: int) -> list[One]:
        """The clients of one round."""
        if self.plan.separation is not None:
            return taking_turns(clients, self.plan.separation, number, self.key("turns", arm, 0))
        key = self.key("sample", arm, number)
        return sampled(clients, self.settings.sampling, self.plan.expected_clients, key)

    def rounds_of(self, arm: str, factor: Factor, size: int) -> Rounds:
        """The rounds of an arm whose noise is correlated, opened once. Raises PrivacyError where they were rolled back.

        A reader of the public ledger can tell that, too: each entry names the record of its round.
        """
        if arm not in self.rounds:
            journal = self.folder.private
            key = sealing_key(self.settings, journal.folder)
            rounds = Rounds(journal.rounds_of(arm), factor, size, sealing_key=key)
            for entry in self.folder.ledger:
                if entry["arm"] == arm and "round_head" in entry.get("privacy", {}):
                    rounds.require(Head(**entry["privacy"]["round_head"]))
            for earlier in self.rounds.values():
                earlier.noise_rows = None  # arms go one after another, and rows are drawn again if need be
            self.rounds[arm] = rounds
        return self.rounds[arm]


def open_private(
    settings: Privacy,
    folder: RunFolder,
    population: int,
    rounds: int,
    arms: Callable[[], Sequence[tuple[Method, Start]]],
    masked: bool,
    open_arms: Sequence[str],
    dealt: str | None,
) -> PrivateRun:
    """Open a private run, or begin it: the plan is made once, and an interrupted run goes on with it.

    rounds: of each arm. arms: the method and the start of each, asked for where there is no plan yet. masked: messages
    are, in all arms. open_arms: those that are not private. dealt: as of `make_plan`. Raises PrivacyError, FormatError
    for a plan that was changed or a budget that was tampered with or rolled back, MissingError without its sealing key.
    """
    sealing = sealing_key(settings, folder.private.folder)
    secret, plan_key = folder.private.secret(sealing), folder.private.plan_key(sealing)
    if not (folder.path / PLAN).exists():
        shared = _budget(settings, folder, population, None)
        head, before = shared.head, shared.charges
        made = make_plan(settings, population, rounds, arms(), before, masked, open_arms, dealt)
        said = made.as_json() | {"head": head}
        text = json.dumps(said | {"mac": _mac(said, plan_key)}, indent=1)
        write_atomically(folder.path / PLAN, f"{text}\n".encode())
    plan = _own_plan(folder, plan_key)
    budget = _budget(settings, folder, population, plan)
    budget.require(Head(*plan.head))
    for entry in folder.ledger:
        # what a reader of the public ledger can tell, so that file and head put back together show
        if "head" in entry.get("privacy", {}):
            budget.require(Head(**entry["privacy"]["head"]))
    return PrivateRun(settings, plan, budget, secret, folder)


def read_plan(run: Path) -> Plan | None:
    """The plan of a run folder, None for a run without privacy. Raises FormatError where it was damaged."""
    path = run / PLAN
    if not path.is_file():
        return None
    said, _ = _said(path)
    return _plan(said, path)


def _own_plan(folder: RunFolder, plan_key: bytes) -> Plan:
    """The plan that this run made. Raises FormatError for another: it says what noise is drawn, and what is charged."""
    path = folder.path / PLAN
    said, mac = _said(path)
    if not same_text(mac, _mac(said, plan_key)):
        raise FormatError(f"{path}: was changed after the run began; {_RESTORE}, nothing is released by it")
    return _plan(said, path)


def _said(path: Path) -> tuple[dict[str, Any], Any]:
    """What the file of a plan says, and its MAC: None where it has none."""
    said = json_object(path.read_bytes(), str(path), _RESTORE)
    return said, said.pop("mac", None)


def _plan(said: dict[str, Any], path: Path) -> Plan:
    try:
        return Plan(**said | {"notes": tuple(said["notes"])})
    except (TypeError, KeyError) as error:
        raise FormatError(f"{path}: not the plan of a private run ({shown(str(error))}); {_RESTORE}") from None


def _mac(plan: dict[str, Any], plan_key: bytes) -> str:
    return hmac.digest(plan_key, json.dumps(plan, sort_keys=True).encode(), "sha256").hex()


def destroy_keys(folder: RunFolder, settings: Privacy, *, finished: bool) -> int:
    """Delete the noise keys of this run's charges, as after an audit: how many there were. Only while `hold`ing it.

    Of a `finished` run the secret too, from which clients' noise is derived. What was released stays charged, and can
    neither be repeated nor checked. Raises PrivacyError where the run needs a key to go on, and as `open_private` does.
    """
    if read_plan(folder.path) is None:
        return 0
    # another run's plan, which is public, would have that run's keys destroyed
    plan = _own_plan(folder, folder.private.plan_key(sealing_key(settings, folder.private.folder)))
    budget = _budget(settings, folder, plan.population, plan)
    released = {entry["privacy"].get("charge") for entry in folder.ledger if "privacy" in entry}
    why = None
    if plan.mode == "correlated":
        why = "later rounds take back noise of its one key"
    elif (own := budget.own) and own[-1] not in released:
        why = f"a round is charged, as number {own[-1]}, and not released yet"
    if why and not finished:
        raise PrivacyError(
            f"{folder.path}: is not finished, and {why}: without the key the run cannot go on; resume it before its "
            "keys are destroyed"
        )
    number = budget.destroy_keys()
    if finished:
        folder.private.destroy_secret()
    return number


def _budget(settings: Privacy, folder: RunFolder, population: int, plan: Plan | None) -> Budget:
    """The population's budget, to charge by the plan; without one only to look at."""
    charge: dict[str, Any] = {"noise_multiplier": 1.0}
    if plan is not None:
        charge = {"noise_multiplier": plan.charged, "sampling_rate": plan.sampling_rate, "dimension": plan.samples}
        charge |= {"concentrated": plan.mode == "distributed", "stream": settings.stream}
        charge |= {"run": plan.run, "spend": plan.spend}
    return Budget(
        budget_path(settings, folder.private.folder),
        settings.epsilon,
        settings.delta,
        sealing_key=sealing_key(settings, folder.private.folder),
        sampling=settings.sampling,
        neighbours=settings.relation,
        unit=settings.unit,
        population=population,
        **charge,
    )
