"""What a federation asks of its clients' machines, and the real ones: QLoRA on one shared frozen base.

`Learner` is the seam: the rounds know updates, bytes and numbers; only the class below knows models.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from fedcore.clients.settings import Progress
from fedcore.errors import ConfigError
from fedcore.federation.config import Config
from fedcore.federation.data import Client, Texts
from fedcore.federation.machine import cache_folder
from fedcore.updates import Update

if TYPE_CHECKING:
    from fedcore.clients.settings import Metrics, TrainingSettings
    from fedcore.clients.workers import Workers


class Learner(Protocol):
    """Trains and evaluates adapters on a base that never changes. `base` names it, `source` is where it lies.

    `digest` is the SHA-256 of its content."""

    base: str
    source: str
    digest: str

    def initial(self) -> Update:
        """The adapter that every arm starts from (B = 0: the base itself), of the clients' highest rank."""
        ...

    def weights(self) -> Mapping[str, np.ndarray]:
        """module -> the base weights (d_out, d_in) that its adapter stands beside, dequantised when asked for."""
        ...

    def train(
        self,
        adapter: Update,
        client: Client,
        steps: int,
        seed: int,
        proximal_mu: float = 0.0,
        *,
        trains: Sequence[str] = ("a", "b"),
        side: Update | None = None,
        fixed: Update | None = None,
    ) -> Update:
        """What the client has after `steps` local steps from `adapter`. Same arguments, same result.

        proximal_mu  FedProx's pull back to `adapter`
        trains       the factors that train; the others come back as they were. ("core",): the core between the
                     factors of `fixed`
        side         a side adapter that is added and does not train
        adapter      of any rank
        """
        ...

    def evaluate(self, adapter: Update | None, side: Update | None = None) -> Metrics:
        """Held-out loss, perplexity and accuracy of the base with this adapter, or of the base alone."""
        ...


class QLoRALearner:
    """The real clients on one base model, one after the other in the process that it is in. `workers` make the base."""

    def __init__(self, config: Config, texts: Texts, progress: Progress, workers: Workers | None = None):
        from fedcore.clients.adapter import attach
        from fedcore.clients.base import load_base
        from fedcore.clients.settings import AdapterSettings

        self._config, self._texts = config, texts
        source = config.model.source or built_in_base(config, texts, progress, workers)
        model = config.model
        self._base = load_base(source, quantization=model.quantization, device=model.device, folder=config.folder)
        length, positions = config.training.sequence_length, self._base.positions
        if positions and length > positions:
            raise ConfigError(
                f"training.sequence_length: got {length}, expected at most {positions}, the positions of the model; "
                "lower it"
            )
        self.source = str(source)
        self.base, self.digest = self._base.name, self._base.digest
        settings = config.adapter.model_dump(exclude={"rank", "ranks"})
        self._settings = AdapterSettings(rank=config.adapter.highest_rank, **settings)
        self._attached, self._initial = self._settings, attach(self._base, self._settings, config.run.seed)

    def initial(self) -> Update:
        """The adapter that every arm starts from (B = 0)."""
        return self._initial

    def weights(self) -> Mapping[str, np.ndarray]:
        """The base weights beside each adapter, dequantised one at a time."""
        from fedcore.clients.weights import AdaptedWeights

        return AdaptedWeights(self._base)

    def _load(self, adapter: Update) -> None:
        """Write an adapter into the attached one, which is replaced first where its rank is another."""
        from fedcore.clients.adapter import attach, load

        rank = next((pair.rank for pair in adapter.modules.values()), self._attached.rank)
        if rank != self._attached.rank:
            self._attached = replace(self._settings, rank=rank)
            attach(self._base, self._attached, self._config.run.seed)
        load(self._base, adapter)

    def train(
        self,
        adapter: Update,
        client: Client,
        steps: int,
        seed: int,
        proximal_mu: float = 0.0,
        *,
        trains: Sequence[str] = ("a", "b"),
        side: Update | None = None,
        fixed: Update | None = None,
    ) -> Update:
        """Load the adapter, train it on the client's texts, check that the frozen base is as it was, read it back."""
        from fedcore.clients.adapter import only, read
        from fedcore.clients.beside import beside
        from fedcore.clients.memory import memory_named
        from fedcore.clients.settings import TrainingSettings
        from fedcore.clients.training import train

        settings = TrainingSettings(**self._config.training.model_dump() | {"steps": steps, "proximal_mu": proximal_mu})
        self._load(adapter)
        if "core" in trains:
            return self._train_core(adapter, fixed, client, settings, seed)
        with memory_named(f"client {client.id}"), only(self._base, trains), beside(self._base, side):
            train(self._base, client.texts, settings, seed, client_id=client.id)
        self._base.check_unchanged()
        return read(self._base, client_id=client.id, num_examples=len(client.texts))

    def _train_core(
        self, adapter: Update, fixed: Update | None, client: Client, settings: TrainingSettings, seed: int
    ) -> Update:
        from fedcore.clients.core import train_core
        from fedcore.clients.memory import memory_named

        assert fixed is not None
        with memory_named(f"client {client.id}"):
            trained = train_core(self._base, client.texts, settings, seed, adapter, fixed, client_id=client.id)
        self._base.check_unchanged()
        return trained

    def evaluate(self, adapter: Update | None, side: Update | None = None) -> Metrics:
        """Score the held-out texts and questions. The base alone is the initial adapter, whose B is zero."""
        from fedcore.clients.beside import beside
        from fedcore.clients.evaluation import evaluate
        from fedcore.clients.memory import memory_named

        self._load(adapter or self._initial)
        length = self._config.training.sequence_length
        with memory_named("evaluation"), beside(self._base, side):
            metrics = evaluate(self._base, self._texts.held_out, self._texts.questions, sequence_length=length)
        self._base.check_unchanged()
        return metrics


def built_in_base(config: Config, texts: Texts, progress: Progress, workers: Workers | None = None) -> Path:
    """The small base of [model.pretrain], made now or taken from the cache, which settings, texts and seed decide."""
    from fedcore.clients.pretraining import make_base
    from fedcore.clients.settings import PretrainingSettings

    assert config.model.pretrain is not None
    fields = config.model.pretrain.model_dump(exclude={"label"})
    silos = silos_of(texts, fields.pop("silos"))
    key = text_digest(
        [repr(sorted(fields.items())), config.run.seed, *(t for name in silos for t in (name, *silos[name]))]
    )
    directory = cache_folder() / f"base-{key[:16]}"
    directory.parent.mkdir(parents=True, exist_ok=True)
    return make_base(directory, silos, PretrainingSettings(**fields), config.run.seed, progress, workers)


def silos_of(texts: Texts, count: int) -> dict[str, list[str]]:
    """Public texts in at most `count` silos: labels are dealt in sorted order, or texts where there is one label."""
    labels = sorted({document.label for document in texts.public})
    silos: dict[str, list[str]] = {}
    for position, document in enumerate(texts.public):
        place = labels.index(document.label) if len(labels) > 1 else position
        silos.setdefault(f"silo-{place % count}", []).append(document.text)
    return dict(sorted(silos.items()))


def text_digest(texts: Sequence[Any]) -> str:
    """SHA-256 of a sequence of texts, each with its length so that no two sequences share a digest."""
    digest = hashlib.sha256()
    for text in texts:
        data = str(text).encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()
