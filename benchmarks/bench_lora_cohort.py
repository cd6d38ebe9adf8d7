"""LoRA adapters of a 7B model's shape, from safetensors files in the page cache: their mean in parameter space."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from bench_weighted_sum import summary
from inputs import lora_cohort
from measure import alternate, require_green, save

import fedcore as fc
from fedcore.native.read import read
from fedcore.ops.rows import available_cores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--clients", type=int, default=32)
    options = parser.parse_args()
    require_green("weighted_sum")
    with tempfile.TemporaryDirectory() as folder:
        paths = lora_cohort(Path(folder), options.clients)
        start = time.perf_counter()
        updates = [fc.Update.from_peft(path) for path in paths]
        opened = time.perf_counter() - start
        ((names, table),) = fc.Cohort(updates).tables()
        built = alternate({"tables": lambda: fc.Cohort(updates).tables()})["tables"]["median"]
        weights, out = np.array([u.num_examples for u in updates]), np.zeros(table.d, np.float32)
        works = {f"roof, {s} streams": (lambda s=s: read(table, s, options.threads)) for s in (2, 4, 8)}
        works["fedcore"] = lambda: fc.ops.weighted_sum(table, weights, weights.sum(), out=out, threads=options.threads)
        results = {
            "threads": options.threads,
            "clients": options.clients,
            "tensors": len(names),
            "parameters": table.d,
            "seconds to open and read headers": opened,
            "microseconds of Python per tensor and client, pointer table": built / len(names) / options.clients * 1e6,
            "mean, bf16 rows": summary(alternate(works), table.nbytes),
        }
    save("lora_cohort", results)


if __name__ == "__main__":
    main()
