"""Cohorts that tests of LoRA methods share, on modules that are not square, and what clients then hold, dense."""

from __future__ import annotations

import numpy as np

import fedcore as fc
from fedcore import lora
from fedcore.dtypes import to_float64
from tests.oracles import delta as dense

#: module -> (d_out, d_in): wide, tall, and one whose smaller side is the rank
SHAPES = {"up": (24, 10), "down": (7, 30), "edge": (4, 9)}


RANK = 4


def adapter(seed, client, rank=RANK, scale=2.0, examples=1, modules=SHAPES, **fixed) -> fc.Update:
    """A client's adapter; scales differ by module. fixed: "a" or "b" as module -> matrix, shared between clients."""
    rng = np.random.default_rng(seed)
    tensors, scaling = {}, {}
    for m, (module, (d_out, d_in)) in enumerate(SHAPES.items()):
        a, b = rng.standard_normal((rank, d_in)), rng.standard_normal((d_out, rank))
        a = fixed["a"][module][:rank] if "a" in fixed else a
        b = fixed["b"][module] if "b" in fixed else b
        if module in modules:
            tensors[f"{module}.lora_A.weight"], tensors[f"{module}.lora_B.weight"] = np.float32(a), np.float32(b)
            scaling[module] = scale * (1 + m)
    return fc.Update.from_tensors(tensors, num_examples=examples, client_id=client, scaling=scaling)


def frozen(which, seed=99):
    rng = np.random.default_rng(seed)
    shape = {"a": lambda d: (RANK, d[1]), "b": lambda d: (d[0], RANK)}[which]
    return {which: {module: np.float32(rng.standard_normal(shape(d))) for module, d in SHAPES.items()}}


def alike(n=5, **fixed):
    """Clients of one rank and scale, with 1, 2, 3, ... examples."""
    return [adapter(i, f"c{i}", examples=i + 1, **fixed) for i in range(n)]


def mixed(**fixed):
    """Ranks 1 to 4 with a scale each, as alpha / r gives it, and a client that trained one module alone."""
    ranks = (4, 1, 2, 3)
    clients = [adapter(i, f"c{i}", r, 8.0 / r, i + 1, **fixed) for i, r in enumerate(ranks)]
    return [*clients, adapter(9, "c9", 2, 1.0, 2, modules=("down",), **fixed)]


def cores(n=4):
    """(clients of Fed-SB, the fixed factors)."""
    fixed = lora.FedSB().fixed(adapter(50, "estimate"))
    rng, clients = np.random.default_rng(1), []
    for i in range(n):
        tensors = dict(fixed.tensors)
        for module in SHAPES:
            name = f"{module}.lora_B.weight"
            tensors[name] = np.float32(fixed.tensors[name] @ rng.standard_normal((RANK, RANK)))
        clients.append(fc.Update.from_tensors(tensors, scaling=fixed.scaling, client_id=f"c{i}", num_examples=i + 1))
    return clients, fixed


def parts(updates, module):
    """[(s, B, A)] of the clients that have a module."""
    found = []
    for update in updates:
        if module in update.modules:
            pair = update.modules[module]
            found.append((pair.scale, *(to_float64(update.tensors[name]) for name in (pair.b, pair.a))))
    return found


def shares(updates):
    counts = np.array([update.num_examples for update in updates], float)
    return counts / counts.sum()


def mean_delta(updates, module):
    """Σ p_i Δ_i; 0 for who lacks the module."""
    p = shares(updates)
    return sum(w * dense.dense(u, module) for w, u in zip(p, updates, strict=True) if module in u.modules)


def held(result, module):
    """What a client of the highest rank holds: adapter and side."""
    beside = dense.dense(result.side, module) if result.side and module in result.side.modules else 0.0
    return dense.dense(result.update, module) + beside


def start(result, update, module):
    """What a client starts from."""
    return dense.dense(result.start_of(update.client_id), module)


def assert_close(found, expected, scale=None):
    size = np.linalg.norm(expected if scale is None else scale)
    np.testing.assert_allclose(found, expected, atol=2e-6 * size, rtol=0)


def regauged(update, seed):
    """The same Δ from (B M, M⁻¹ A), in fp32."""
    rng, tensors = np.random.default_rng(seed), {}
    for pair in update.modules.values():
        m = rng.standard_normal((pair.rank, pair.rank)) + 3 * np.eye(pair.rank)
        tensors[pair.b] = np.float32(update.tensors[pair.b] @ m)
        tensors[pair.a] = np.float32(np.linalg.solve(m, update.tensors[pair.a].astype(float)))
    return fc.Update.from_tensors(
        tensors, scaling=update.scaling, client_id=update.client_id, num_examples=update.num_examples
    )
