"""discrete_gaussian on one core, beside the floating-point normals of NumPy and torch, which are not private.

Those come from generators that are no ciphers, and their rounding tells of what they are added to (Mironov, CCS
2012): they are here because they are what is used, as a measure of what privacy costs. OpenDP's discrete Gaussian is
the peer that is private; it is called from Python, for fewer samples.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
from measure import alternate, require_green, save
from peers import opendp_discrete_gaussian

import fedcore as fc

SIGMAS = (4, 1e3, 1e6)
SIZE, PEER_SIZE = 1 << 22, 1 << 14

PEER = "OpenDP from Python"


def main() -> None:
    import torch

    require_green("discrete_gaussian")
    torch.set_num_threads(1)
    key, generator = os.urandom(32), np.random.default_rng()
    works: dict[str, Callable[[], object]] = {}
    for sigma in SIGMAS:
        for stream, name in (("aes256ctr", "AES-256-CTR"), ("chacha20", "ChaCha20")):
            works[f"sigma {sigma:g}, {name}"] = lambda s=sigma, c=stream: fc.ops.discrete_gaussian(
                SIZE, s, key, 0, c, threads=1
            )
    works["torch.randn, fp32, not private"] = lambda: torch.randn(SIZE)
    works["numpy standard_normal, fp32, not private"] = lambda: generator.standard_normal(SIZE, np.float32)
    for sigma in SIGMAS:
        works[f"sigma {sigma:g}, {PEER}"] = opendp_discrete_gaussian(PEER_SIZE, sigma)
    times = alternate(works, rounds=7)
    results: dict[str, object] = {"samples": SIZE, f"samples of {PEER}": PEER_SIZE, "threads": 1}
    for name, t in times.items():
        results[name] = {**t, "M samples/s": (PEER_SIZE if PEER in name else SIZE) / t["median"] / 1e6}
    results["bits of the distance"] = {f"sigma {sigma:g}": fc.ops.discrete_gaussian_bits(sigma) for sigma in SIGMAS}
    save("discrete_gaussian", results, ("torch", "opendp"))


if __name__ == "__main__":
    main()
