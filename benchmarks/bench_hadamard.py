"""hadamard against the bandwidth of memory and a NumPy loop over stages."""

from __future__ import annotations

import argparse

import numpy as np
from inputs import rows
from measure import alternate, require_green, save

import fedcore as fc
from fedcore.native.read import read
from fedcore.ops.rows import as_rows, available_cores
from fedcore.reference.hadamard import hadamard as numpy_loop

LENGTH = 1 << 24
#: the columns that stay in cache, csrc/impl.h; a longer block takes another pass for every three stages
NEAR = 1 << 16


def passes(block: int) -> int:
    """Reads and writes of the whole vector that a block needs."""
    return 1 + max(0, -(-((block // NEAR).bit_length() - 1) // 3))


def against_memory(block: int, threads: int, loop: bool) -> dict[str, object]:
    """One block size; "of bandwidth": bytes read and written in all passes, against the rate of the best plain read."""
    x = rows(1, LENGTH)[0]
    table = as_rows([x.copy()]).table
    works = {f"read of as many bytes, {s} streams": (lambda s=s: read(table, s, threads)) for s in (1, 2, 4)}
    works["fedcore"] = lambda: fc.ops.hadamard(x, block, threads=threads)
    if loop:
        works["numpy, stage by stage"] = lambda: numpy_loop(x, block)
    times = alternate(works, 7)
    rate = x.nbytes / min(t["median"] for name, t in times.items() if name.startswith("read"))
    moved = 2 * passes(block) * x.nbytes
    fedcore = times["fedcore"]["median"]
    return {
        **times,
        "passes": passes(block),
        "fedcore, of bandwidth": moved / fedcore / rate,
        **({"fedcore, times the NumPy loop": times["numpy, stage by stage"]["median"] / fedcore} if loop else {}),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=available_cores())
    threads = parser.parse_args().threads
    require_green("hadamard")
    results: dict[str, object] = {"threads": threads, "length": LENGTH}
    for block in (1 << 12, 1 << 16, 1 << 20):
        results[f"blocks of {block}"] = against_memory(block, threads, loop=np.log2(block) == 16)
    save("hadamard", results)


if __name__ == "__main__":
    main()
