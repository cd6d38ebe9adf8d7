"""What the first round of a private arm starts from: factors between which a clip of what travels bounds the change."""

from __future__ import annotations

import numpy as np

from fedcore.federation.start import Start
from fedcore.lora import FedSB, FedSVD, FFALoRA, Method
from fedcore.privacy import orthonormal
from fedcore.updates import Update


def private_start(method: Method, initial: Update, seed: int) -> Start:
    """The initial adapter: the same model, with orthonormal rows of A where A is frozen.

    Fed-SB's factors are fixed at random, both orthonormal: an estimate from the clients' data would have to be released
    first.
    """
    if isinstance(method, (FFALoRA, FedSVD)):
        return Start(orthonormal(initial))
    if not isinstance(method, FedSB):
        return Start(initial)
    adapter, generator = orthonormal(initial), np.random.default_rng([seed, 0x66656473])
    tensors = {}
    for pair in adapter.modules.values():
        drawn = np.linalg.qr(generator.normal(size=(pair.d_out, pair.rank)))[0]
        tensors[pair.b] = np.ascontiguousarray(drawn, np.float32).astype(adapter.tensors[pair.b].dtype)
    return Start(adapter, fixed=adapter.with_tensors(tensors))
