"""What AdamW does at each of its steps, as trainings take them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook


@contextmanager
def steps_of_adamw() -> Iterator[list[dict[str, Any]]]:
    """A list that grows by a dict a step: the group's settings, 'before' (steps done), 'norm' (of the gradient)."""
    seen: list[dict[str, Any]] = []

    def watch(optimizer: Any, arguments: Any, keywords: Any) -> None:
        if isinstance(optimizer, torch.optim.AdamW):
            (group,) = optimizer.param_groups
            norms = [p.grad.norm() for p in group["params"] if p.grad is not None]
            state = optimizer.state[group["params"][0]]
            more = {"before": int(state["step"]) if state else 0, "norm": float(torch.stack(norms).norm())}
            seen.append({key: value for key, value in group.items() if key != "params"} | more)

    hook = register_optimizer_step_pre_hook(watch)
    try:
        yield seen
    finally:
        hook.remove()
