"""Torch's global randomness, seeded for a while and put back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Inside the `with` block torch's generators (the CPU's, and the GPU's that `device` names) start from `seed`.

    Afterwards they are as they were. Libraries draw initial weights and dropout masks from them; fedcore's own draws
    come from generators of their own.
    """
    devices = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)
        if devices:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
