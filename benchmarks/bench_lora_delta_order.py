"""lora_delta_median and lora_delta_trimmed_mean against dense products in torch, and fedcore's own median of those."""

from __future__ import annotations

import argparse
import resource

import numpy as np
from measure import alternate, require_green, save

import fedcore as fc
from fedcore.ops.rows import available_cores

D_OUT, D_IN, CLIENTS, RANK = 2048, 4096, 16, 16


def peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=available_cores())
    threads = parser.parse_args().threads
    require_green("lora_delta_order")
    import torch

    torch.set_num_threads(threads)
    rng, f = np.random.default_rng(0), 3
    b = [rng.standard_normal((D_OUT, RANK), np.float32) for _ in range(CLIENTS)]
    a = [rng.standard_normal((RANK, D_IN), np.float32) for _ in range(CLIENTS)]
    out = np.ones((D_OUT, D_IN), np.float32)
    before = peak_memory()
    fc.ops.lora_delta_median(b, a, out=out, threads=threads)
    extra = peak_memory() - before
    left, right = torch.from_numpy(np.stack(b)), torch.from_numpy(np.stack(a))

    def products() -> list[np.ndarray]:
        return [fc.ops.lora_delta_sum([x], [y], [1.0], threads=threads).ravel() for x, y in zip(b, a, strict=True)]

    works = {
        "fedcore, median": lambda: fc.ops.lora_delta_median(b, a, out=out, threads=threads),
        "fedcore, trimmed mean": lambda: fc.ops.lora_delta_trimmed_mean(b, a, f, out=out, threads=threads),
        "dense products, then fedcore's median": lambda: fc.ops.median(products(), threads=threads),
        "torch.bmm, then torch.median": lambda: torch.bmm(left, right).median(0).values,
    }
    times = alternate(works, rounds=5)
    peer = times["torch.bmm, then torch.median"]["median"]
    found = {name: {**t, "times torch": peer / t["median"]} for name, t in times.items()}
    results = {
        "threads": threads,
        f"{D_OUT} x {D_IN}, {CLIENTS} clients of rank {RANK}, float32": found,
        "bytes that a median adds to the peak beside its output": extra,
        "bytes of the dense products": 4 * D_OUT * D_IN * CLIENTS,
    }
    save("lora_delta_order", results, ("torch",))


if __name__ == "__main__":
    main()
