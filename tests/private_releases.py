"""Central releases whose sampler is injected, and whose clip is the oracle's, so that sums can be followed exactly."""

from __future__ import annotations

import hashlib
import sys

import numpy as np
from oracles import clipping

import fedcore as fc
from fedcore.privacy import Noise, central

KEY = bytes(range(32))


class Sampler:
    """Stands for the kernels: noise that is a function of key and counter, or none; remembers what was asked for."""

    def __init__(self, on=True):
        self.on, self.calls = on, []

    def __call__(self, size, deviation, key, part, counter=0, stream=None):
        self.calls.append((size, deviation, key, part))
        words = [hashlib.sha256(b"%s %d %s" % (key, i, part.encode())).digest()[:4] for i in range(size)]
        return self.on * np.array([int.from_bytes(word, "big") % 2001 - 1000 for word in words], np.int64)


def injected(monkeypatch):
    """A sampler and the oracle's clip in place of the kernels."""
    found = Sampler()
    monkeypatch.setattr(central, "draw", found)
    monkeypatch.setitem(sys.modules, "fedcore.ops.clip_noise_accumulate", clipping)
    monkeypatch.setitem(sys.modules, "fedcore.ops.clip_round", clipping)
    return found


def noise_for(mechanism, updates, label="a round", **context):
    digest = mechanism.inputs_digest(updates, label=label, **context)
    return Noise(KEY, digest, mechanism.noise_multiplier, 10**6, 2, 1.5)


def released(mechanism, updates, label="a round", **context):
    return mechanism.release(updates, noise_for(mechanism, updates, label, **context), label=label, **context)


def vectors(n, d=50, seed=0, size=1.0):
    return [size * x.astype(np.float32) for x in np.random.default_rng(seed).normal(size=(n, d))]


MODULES = {"m.k": (6, 9), "m.q": (8, 12)}


def adapter(seed, rank=3, b_scale=1.0, client="", dense=False):
    rng = np.random.default_rng(seed)
    tensors = {}
    for module, (d_out, d_in) in MODULES.items():
        a = np.linalg.qr(np.random.default_rng(7).normal(size=(d_in, rank)))[0].T
        tensors[f"{module}.lora_A.weight"] = np.ascontiguousarray(a, np.float32)
        tensors[f"{module}.lora_B.weight"] = (b_scale * rng.normal(size=(d_out, rank))).astype(np.float32)
    if dense:
        tensors["m.head.weight"] = rng.normal(size=(2, 5)).astype(np.float32)
    return fc.Update.from_tensors(tensors, client_id=client, scaling=dict.fromkeys(MODULES, 2.0))
