"""What one client does in a round: some steps of language modelling on its own texts, watched for lost gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn import functional

from fedcore.clients.adapter import adapter_parameters, other_factor, trainable
from fedcore.clients.base import Base
from fedcore.clients.packing import pack
from fedcore.clients.seeding import seeded
from fedcore.clients.settings import TrainingResult, TrainingSettings
from fedcore.errors import ShapeError, TrainingError


def train(
    base: Base,
    texts: Sequence[str],
    settings: TrainingSettings,
    seed: int,
    *,
    client_id: str = "",
    parameters: dict[str, torch.nn.Parameter] | None = None,
) -> TrainingResult:
    """Train the attached adapter in place: AdamW (no weight decay), cosine from the learning rate to 0, fp32 loss.

    `parameters` by name train in place of the adapter's, where they are given.

    Texts are packed into blocks with the end-of-text token between and drawn without replacement under `seed`; a
    client with few texts sees them again. The same seed gives the same bits on one machine with one number of torch
    threads. The model is left in eval mode, torch's global generators as they were.

    With settings.proximal_mu = μ > 0 the objective is the loss + μ/2 ‖w − w_global‖² over the adapter's parameters,
    w_global being what they are at the start (FedProx: Li et al. 2020, "Federated Optimization in Heterogeneous
    Networks", MLSys, equation 2). The loss that is reported is without the term.

    Raises ShapeError naming the client where it has no text, TrainingError where a loss is not finite, where a
    parameter of the adapter got no gradient (one of zeros may do in the first step, where the other factor is 0 and
    trains), or where the frozen base passes none.
    """
    who = f"client {client_id or '(no id)'}"
    if not any(texts):
        raise ShapeError(
            f"{who}: got {len(texts)} texts with nothing in them, expected at least one character to train on"
        )
    base.check_trainable()
    parameters = trainable(base) if parameters is None else parameters
    generator = torch.Generator().manual_seed(seed)
    shape = (settings.steps, settings.batch_size, settings.sequence_length)
    batches = pack(base.tokenizer, texts, shape[0] * shape[1], shape[2], generator).view(shape).to(base.device)
    anchor = {name: p.detach().clone() for name, p in parameters.items()} if settings.proximal_mu else {}
    optimizer = torch.optim.AdamW(parameters.values(), lr=settings.learning_rate, weight_decay=0.0)
    total = 0.0
    base.model.train()
    try:
        with seeded(seed, base.device):
            for step, batch in enumerate(batches):
                for group in optimizer.param_groups:
                    group["lr"] = settings.learning_rate * (1 + math.cos(math.pi * step / settings.steps)) / 2
                optimizer.zero_grad(set_to_none=True)
                loss = next_token_loss(base.model, batch)
                loss.backward()
                value = float(loss.detach())
                if not math.isfinite(value):
                    raise TrainingError(
                        f"{who}: the loss of step {step} is {value}; lower the learning rate or check the adapter"
                    )
                if step < 2:
                    _check_gradients(parameters, adapter_parameters(base), step, who)
                add_proximal_gradient(parameters, anchor, settings.proximal_mu)
                optimizer.step()
                total += value
    finally:
        optimizer.zero_grad(set_to_none=True)
        base.model.eval()
    return TrainingResult(total / settings.steps, batches.numel(), len(parameters))


def next_token_loss(model: torch.nn.Module, blocks: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy (fp32, nats) of each token of (b, s) int64 blocks but the first, given those before it."""
    logits = model(input_ids=blocks, use_cache=False).logits[:, :-1]
    return functional.cross_entropy(logits.flatten(0, 1).float(), blocks[:, 1:].flatten())


def add_proximal_gradient(
    parameters: dict[str, torch.nn.Parameter], anchor: dict[str, torch.Tensor], mu: float
) -> None:
    """Add μ (w − w_global), the gradient of μ/2 ‖w − w_global‖², to the gradient of each parameter in `anchor`."""
    for name, start in anchor.items():
        parameter = parameters[name]
        assert parameter.grad is not None
        parameter.grad.add_(parameter.detach() - start, alpha=mu)


def _check_gradients(
    parameters: dict[str, torch.nn.Parameter], factors: dict[str, torch.nn.Parameter], step: int, who: str
) -> None:
    """Every parameter has a gradient; none is all zero, but in the first step where its other factor is 0 and trains.

    A frozen layer that passes no gradient leaves those below it with none or with zeros: training goes on, on less. A
    module that text never reaches looks the same, and an adapter on it would only travel.
    """
    for name, parameter in parameters.items():
        gradient = parameter.grad
        if gradient is not None and bool(gradient.any()):
            continue
        other = other_factor(name)
        zero = gradient is not None and other in factors and not bool(factors[other].any())
        if zero and step == 0 and other in parameters:
            continue
        raise TrainingError(
            f"{who}: parameter {name} got {'no' if gradient is None else 'an all-zero'} gradient in step {step}, "
            f"expected one; {_NEVER_MOVES.format(other) if zero else _NOT_REACHED}"
        )


_NEVER_MOVES = (
    "its other factor {} is all zero and does not move either, so their product stays 0: start from an adapter that "
    "has one of them drawn, and train the other, as from fedcore.clients.attach"
)
_NOT_REACHED = (
    "either text does not reach its module (such as a vision tower): name those that it does in "
    "adapter.target_modules; or a layer on the way passes none: load the base with fedcore.clients.load_base"
)
