"""What the steps of a round share: the federation that they are of, and the clock that they run by."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fedcore.clients.settings import Progress
from fedcore.federation.config import Aggregation, Arm, Config
from fedcore.federation.data import Client
from fedcore.federation.folder import RunFolder
from fedcore.federation.learner import Learner
from fedcore.federation.private_run import PrivateRun
from fedcore.federation.start import Start
from fedcore.federation.trainings import Training, trainings

if TYPE_CHECKING:
    from fedcore.clients.workers import Workers


@dataclass(frozen=True)
class Federation:
    """What all arms share: the configuration, the clients, who trains for them, and where the run leaves its traces."""

    config: Config
    clients: tuple[Client, ...]
    learner: Learner
    folder: RunFolder
    progress: Progress
    #: who trains on the server's own texts ([server] data), if there are any
    server: Client | None = None
    #: what a run with [privacy] has beside
    private: PrivateRun | None = None
    #: processes that train clients, several at a time; None: this one does, one after the other
    workers: Workers | None = None

    def trained(self, asked: Iterable[Training]) -> Iterator[Callable[[], Any]]:
        """For each training, in order, what returns that which comes of it or raises its error: see `trainings`."""
        return trainings(self.learner, self.workers, asked)

    def poisoned(self, arm: Arm) -> list[str]:
        """The ids of the clients that poison in an arm: the last ones."""
        return [client.id for client in self.clients[-arm.attack.clients :]] if arm.attack else []

    @property
    def total(self) -> int:
        """Client updates in one arm."""
        return self.config.run.rounds * len(self.clients)


@dataclass
class Clock:
    """Seconds by phase."""

    seconds: dict[str, float] = field(
        default_factory=lambda: {"training": 0.0, "journal": 0.0, "aggregation": 0.0, "evaluation": 0.0}
    )

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time spent inside to one phase."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start


@dataclass(frozen=True)
class Round:
    """One round of one arm: what it starts from, and the seconds of its phases."""

    federation: Federation
    arm: Arm
    number: int
    start: Start
    clock: Clock = field(default_factory=Clock)

    @property
    def config(self) -> Config:
        """The run's."""
        return self.federation.config

    @property
    def folder(self) -> RunFolder:
        """Where the run leaves its traces."""
        return self.federation.folder

    @property
    def settings(self) -> Aggregation:
        """How the arm aggregates."""
        return self.config.aggregation_of(self.arm)

    @property
    def entry(self) -> dict[str, Any] | None:
        """The ledger's, None before the round is over."""
        return self.folder.ledger.find(arm=self.arm.name, round=self.number)

    @property
    def entry_before(self) -> dict[str, Any]:
        """The ledger's entry of the round before this one."""
        entry = self.folder.ledger.find(arm=self.arm.name, round=self.number - 1)
        assert entry is not None
        return entry

    @property
    def heading(self) -> dict[str, Any]:
        """What each entry of the ledger begins with."""
        return {
            "arm": self.arm.name,
            "round": self.number,
            "base": self.federation.learner.digest,
            "reference": self.start.adapter.digest(),
        }
