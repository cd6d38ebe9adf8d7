"""lora_delta_sum against torch's product of stacked factors and the published server code of LoRA aggregations."""

from __future__ import annotations

import argparse
import resource

import numpy as np
from measure import alternate, require_green, save

import fedcore as fc
from fedcore.ops.rows import available_cores

D_OUT, D_IN, CLIENTS, RANK = 4096, 4096, 16, 16


def peers(b, a, coefficients, base, threads: int) -> dict[str, object]:
    """The servers of FLoRA, FedEx-LoRA and FlexLoRA in a few lines of torch each, on one module."""
    import torch

    torch.set_num_threads(threads)
    left, right, weight = [torch.from_numpy(x) for x in b], [torch.from_numpy(x) for x in a], torch.from_numpy(base)
    ready_b = torch.cat([c * x for c, x in zip(coefficients.tolist(), left, strict=True)], 1)
    ready_a, result = torch.cat(right), torch.empty(D_OUT, D_IN)

    def flora():
        """Stack [p s A] and [B], multiply, add to the weight (ATP-1010/FederatedLLM)."""
        stacked = torch.cat([c * x for c, x in zip(coefficients.tolist(), right, strict=True)])
        return weight + torch.cat(left, 1) @ stacked

    def fedex():
        """The mean of the products less the product of the means, added to the weight (CERT-Lab/fedex-lora)."""
        total = torch.zeros(D_OUT, D_IN)
        for c, x, y in zip(coefficients.tolist(), left, right, strict=True):
            total += c * (x @ y)
        mean_b = sum(c * x for c, x in zip(coefficients.tolist(), left, strict=True))
        mean_a = sum(c * y for c, y in zip(coefficients.tolist(), right, strict=True))
        return weight + (total - mean_b @ mean_a)

    def flexlora():
        """Σ p B_i A_i, one client after the other (FederatedScope, branch FlexLoRA)."""
        total = torch.zeros(D_OUT, D_IN)
        for c, x, y in zip(coefficients.tolist(), left, right, strict=True):
            total += c * (x @ y)
        return total

    return {
        "torch.matmul, factors ready stacked": lambda: torch.matmul(ready_b, ready_a, out=result),
        "FLoRA's server, with the weight": flora,
        "FedEx-LoRA's server, with the weight": fedex,
        "FlexLoRA's server": flexlora,
    }


def speed(threads: int) -> dict[str, object]:
    rng = np.random.default_rng(0)
    b = [rng.standard_normal((D_OUT, RANK), np.float32) for _ in range(CLIENTS)]
    a = [rng.standard_normal((RANK, D_IN), np.float32) for _ in range(CLIENTS)]
    coefficients, base = np.full(CLIENTS, 2 / CLIENTS), rng.standard_normal((D_OUT, D_IN), np.float32)
    out = np.ones((D_OUT, D_IN), np.float32)  # memory that is there already
    brains = [[fc.bf16((x.view(np.uint32) >> 16).astype(np.uint16)) for x in side] for side in (b, a)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    fc.ops.lora_delta_sum(b, a, coefficients, out=out, threads=threads)
    extra = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    works = peers(b, a, coefficients, base, threads) | {
        "fedcore": lambda: fc.ops.lora_delta_sum(b, a, coefficients, out=out, threads=threads),
        "fedcore, bf16 factors": lambda: fc.ops.lora_delta_sum(*brains, coefficients, out=out, threads=threads),
        "fedcore, with the weight": lambda: fc.ops.lora_delta_sum(
            b, a, coefficients, base=base, out=out, threads=threads
        ),
    }
    times, work = alternate(works), 2 * D_OUT * D_IN * CLIENTS * RANK
    peer = times["torch.matmul, factors ready stacked"]["median"]
    found: dict[str, object] = {
        name: {**t, "GFLOP/s": work / t["median"] / 1e9, "of torch's rate": peer / t["median"]}
        for name, t in times.items()
    }
    return found | {"bytes that a call adds to the peak beside its output": extra}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=available_cores())
    threads = parser.parse_args().threads
    require_green("lora_delta_sum")
    name = f"{D_OUT} x {D_IN}, {CLIENTS} clients of rank {RANK}, float32"
    save("lora_delta_sum", {"threads": threads, name: speed(threads)}, ("torch",))


if __name__ == "__main__":
    main()
