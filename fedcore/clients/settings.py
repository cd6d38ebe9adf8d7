"""What a client is told and what it answers: plain values, importable without torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

#: progress(phase, done, total, **metrics), called as work goes on
Progress = Callable[..., None]


@dataclass(frozen=True)
class AdapterSettings:
    """The LoRA adapter that is federated (Hu et al., 2021): Δ = scale · B · A with scale alpha / rank.

    rank            columns of B and rows of A
    alpha           scale is alpha / rank, or alpha / sqrt(rank) with `rslora` (Kalajdzievski, 2023)
    target_modules  'all-linear' (every linear layer but the output head, as QLoRA does) or module names
    dropout         on the adapter's input while training
    """

    rank: int = 8
    alpha: float = 16.0
    target_modules: str | tuple[str, ...] = "all-linear"
    rslora: bool = False
    dropout: float = 0.0


@dataclass(frozen=True)
class TrainingSettings:
    """What one client does in one round: `steps` AdamW steps on `batch_size` blocks of `sequence_length` tokens each.

    learning_rate   at the first step; it falls to 0 along a cosine over the steps
    proximal_mu     μ of FedProx: μ/2 ‖w − w_global‖² is added to the loss, over the adapter's parameters; 0 is off
    """

    steps: int = 12
    batch_size: int = 16
    sequence_length: int = 64
    learning_rate: float = 4e-3
    proximal_mu: float = 0.0


@dataclass(frozen=True)
class TrainingResult:
    """What training did.

    loss        mean over the steps, nats per token
    tokens      how many were read
    parameters  how many had their gradient checked
    """

    loss: float
    tokens: int
    parameters: int


@dataclass(frozen=True)
class Question:
    """A likelihood-ranking question: which of `answers` continues `prompt`; `correct` is its index."""

    prompt: str
    answers: tuple[str, ...]
    correct: int


@dataclass(frozen=True)
class Metrics:
    """How good a model is.

    loss        nats per token on held-out texts
    perplexity  exp(loss)
    accuracy    fraction of ranking questions answered right; None where none was asked
    """

    loss: float
    perplexity: float
    accuracy: float | None


@dataclass(frozen=True)
class PretrainingSettings:
    """A small Llama and its federated pre-training.

    Its budget in tokens: rounds · silos · local_steps · batch_size · sequence_length. For the same tokens, many small
    steps go further than few large ones (training loss 3.92 with batches of 4, 4.61 with batches of 16).

    vocabulary            byte-level BPE tokens, at least 257 (the bytes and the end of a text)
    hidden, intermediate  widths; multiples of 64, as NF4 on a CPU wants
    layers, heads         decoder layers, attention heads (a divisor of hidden)
    rounds                outer steps; each silo makes local_steps AdamW steps in every one
    learning_rate         peak of the inner AdamW; a cosine over all of its steps
    outer_learning_rate   of the Nesterov step on the averaged pseudo-gradient
    outer_momentum        of the same
    """

    vocabulary: int = 1024
    hidden: int = 128
    layers: int = 2
    heads: int = 4
    intermediate: int = 320
    rounds: int = 12
    local_steps: int = 80
    batch_size: int = 4
    sequence_length: int = 64
    learning_rate: float = 4e-3
    outer_learning_rate: float = 0.7
    outer_momentum: float = 0.6
