"""Training of the r × r core between two fixed factors, as Fed-SB's clients do: Δ = s · B₀ · R · A₀, and R is free."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from fedcore.clients.adapter import load, read
from fedcore.clients.base import Base
from fedcore.clients.beside import added
from fedcore.clients.settings import TrainingSettings
from fedcore.clients.training import train
from fedcore.dtypes import to_float64
from fedcore.errors import LayoutError
from fedcore.lora.cohort import read_part
from fedcore.lora.core import core_of
from fedcore.lora.stacks import dtype_of
from fedcore.updates import Update


def train_core(
    base: Base,
    texts: Sequence[str],
    settings: TrainingSettings,
    seed: int,
    start: Update,
    fixed: Update,
    *,
    client_id: str = "",
) -> Update:
    """What a client has after training: the adapter (B₀ R, A₀) in fp32.

    start   the adapter that training goes on from: (B₀ R, A₀) as the server gave it, or (0, A₀)
    fixed   (B₀, A₀), as `fedcore.lora.FedSB().fixed` makes it

    Raises LayoutError where `start` is no product of the fixed factors and a core, and what `train` raises.
    """
    cores: dict[str, torch.nn.Parameter] = {}
    factors = {}
    for module, pair in fixed.modules.items():
        held, around = read_part(start, module, -1, "start"), read_part(fixed, module, -1, "fixed")
        if held is None or around is None:
            raise LayoutError(f"start: module {module!r} is missing, expected as in the fixed factors")
        core = core_of(held, around, f"start: module {module!r}", dtype_of(start, start.modules[module].b))
        cores[module] = torch.nn.Parameter(torch.from_numpy(core).float().to(base.device))
        a, b = (torch.from_numpy(to_float64(fixed.tensors[name])).float().to(base.device) for name in (pair.a, pair.b))
        factors[module] = (a, b * pair.scale, cores[module])
    # the attached adapter adds nothing meanwhile: the core stands in for its B
    zero = {pair.b: np.zeros((pair.d_out, pair.rank), np.float32) for pair in start.modules.values()}
    load(base, Update.from_tensors(dict(start.tensors) | zero, scaling=start.scaling))
    with added(base, factors, "core"):
        train(base, texts, settings, seed, client_id=client_id, parameters=cores)
    tensors = dict(read(base, client_id="", num_examples=1).tensors)
    for module, pair in start.modules.items():
        left = to_float64(fixed.tensors[fixed.modules[module].b])
        tensors[pair.b] = (left @ cores[module].detach().cpu().double().numpy()).astype("float32")
    return Update.from_tensors(
        tensors,
        num_examples=len(texts),
        client_id=client_id,
        scaling=start.scaling,
        base=base.digest,
        adapter_config=start.adapter_config,
    )
