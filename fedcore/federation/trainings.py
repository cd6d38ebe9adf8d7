"""Clients that train one after the other in this process, or several at a time in worker processes ([run] workers)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from fedcore.errors import BackendError
from fedcore.federation.config import Config
from fedcore.federation.data import Client, Texts
from fedcore.federation.learner import Learner, QLoRALearner
from fedcore.updates import Update

if TYPE_CHECKING:
    from fedcore.clients.workers import Workers


@dataclass(frozen=True)
class Training:
    """What one client is asked for: the arguments of `Learner.train`."""

    adapter: Update
    client: Client
    steps: int
    seed: int
    proximal_mu: float = 0.0
    options: Mapping[str, Any] = field(default_factory=dict)

    def by(self, learner: Learner) -> Any:
        """What comes of it: the update that the client has then."""
        return learner.train(self.adapter, self.client, self.steps, self.seed, self.proximal_mu, **self.options)


def trainings(learner: Learner, workers: Workers | None, asked: Iterable[Training]) -> Iterator[Callable[[], Any]]:
    """For each training, in order, what returns that which comes of it or raises its error.

    Here it is done when it is asked for; where there are workers, later ones are under way meanwhile.
    """
    if workers is None:
        for training in asked:
            yield partial(training.by, learner)
    else:
        yield from workers.each(map(_apart, asked))


def prepare(workers: Workers, config: Config, texts: Texts, learner: Learner) -> None:
    """Have each worker load the base that `learner` holds, which is not waited for."""
    workers.everywhere(partial(_load, config, texts, learner.digest))


#: in a worker: the learner and the clients by id, the server's own among them
_loaded: list[tuple[QLoRALearner, dict[str, Client]]] = []


def _load(config: Config, texts: Texts, digest: str) -> None:
    learner = QLoRALearner(config, texts, lambda *_, **__: None)
    if learner.digest != digest:
        raise BackendError(
            f"base {learner.base}: a worker process reads one with hash {learner.digest[:16]}, expected {digest[:16]}; "
            "its files changed since this run began: start again"
        )
    clients = (*texts.clients, *([texts.server] if texts.server else []))
    _loaded[:] = [(learner, {client.id: client for client in clients})]


def _apart(training: Training) -> Callable[[], Any]:
    """A training as it travels to a worker, which has the texts."""
    return partial(_train, replace(training, client=replace(training.client, texts=())))


def _train(training: Training) -> Any:
    learner, clients = _loaded[0]
    return replace(training, client=clients[training.client.id]).by(learner)
