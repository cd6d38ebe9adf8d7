"""A client's mask stage and a server's fold and unmasking on one core, beside Flower's SecAgg+ on the same vector.

Flower's arithmetic alone is timed, as its client and server call it: no key agreement, no bytes. It rounds at random,
mask_add to the nearest, and its stream is a Mersenne Twister.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
from measure import alternate, require_green, save

import fedcore as fc

SIZE, KEYS, BITS = 10_000_000, 100, 26
SCALE, LIMIT = 1e4, 32767
STREAMS = {"aes256ctr": "AES-256-CTR", "chacha20": "ChaCha20"}


def flower(values: np.ndarray, keys: list[bytes]) -> Callable[[], object]:
    """secaggplus_mod._collect_masked_vectors from quantise to modulo."""
    from flwr.common.secure_aggregation.ndarrays_arithmetic import (
        parameters_addition,
        parameters_mod,
        parameters_subtraction,
    )
    from flwr.common.secure_aggregation.quantization import quantize
    from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen

    def work() -> object:
        vectors = quantize([values], LIMIT / SCALE, 2 * LIMIT)
        for i, key in enumerate(keys):
            mask = pseudo_rand_gen(key, 1 << BITS, [values.shape])
            vectors = (parameters_subtraction if i % 2 else parameters_addition)(vectors, mask)
        return parameters_mod(vectors, 1 << BITS)

    return work


def flower_unmask(total: np.ndarray, key: bytes) -> Callable[[], object]:
    """What secaggplus_workflow does for one mask: draw, take away, and the modulo."""
    from flwr.common.secure_aggregation.ndarrays_arithmetic import parameters_mod, parameters_subtraction
    from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen

    return lambda: parameters_mod(
        parameters_subtraction([total], pseudo_rand_gen(key, 1 << BITS, [total.shape])), 1 << BITS
    )


def client(results: dict[str, object]) -> None:
    values, out = np.random.default_rng(0).normal(size=SIZE).astype(np.float32), np.zeros(SIZE, np.uint32)
    keys, signs = [os.urandom(32) for _ in range(KEYS)], [1, -1] * (KEYS // 2)

    def ours(count: int, stream: str) -> Callable[[], object]:
        return lambda: fc.ops.mask_add(
            values, keys[:count], signs[:count], BITS, scale=SCALE, limit=LIMIT, stream=stream, out=out, threads=1
        )

    single: dict[str, Callable[[], object]] = {"copy": lambda: np.copyto(out.view(np.float32), values)}
    single |= {f"1 key, {name}": ours(1, stream) for stream, name in STREAMS.items()}
    few = {f"10 keys, {name}": ours(10, stream) for stream, name in STREAMS.items()}
    many = {f"{KEYS} keys, {name}": ours(KEYS, stream) for stream, name in STREAMS.items()}
    times = alternate(single, 15) | alternate(few | {"10 keys, Flower": flower(values, keys[:10])}, 3)
    times |= alternate(many, 3) | alternate({f"{KEYS} keys, Flower": flower(values, keys)}, 1)
    copy = times["copy"]["median"]
    for name, entry in times.items():
        count, _, what = name.partition(", ")
        if what:
            entry["times a copy"] = entry["median"] / copy
            entry["times as fast as Flower"] = times.get(f"{count}, Flower", {}).get("median", 0.0) / entry["median"]
            if count == "1 key":
                del entry["times as fast as Flower"]
    results["client"] = times


def server(results: dict[str, object]) -> None:
    """Messages of 26 bits that come one after the other: into a total in the cache, and into one that is not."""
    found: dict[str, object] = {}
    works: dict[str, Callable[[], object]]
    for size in (1_000_000, SIZE):
        residues = np.random.default_rng(1).integers(0, 1 << BITS, size, np.uint32)
        packed, total = fc.ops.pack_bits(residues, BITS, threads=1), np.zeros(size, np.uint32)
        key, wide = os.urandom(32), residues.astype(np.int64)
        wide_total, copied = wide.copy(), np.empty_like(residues)
        works = {
            "pack_bits": lambda r=residues, p=packed: fc.ops.pack_bits(r, BITS, p, threads=1),
            "unpack_add": lambda p=packed, t=total: fc.ops.unpack_add(p, BITS, t, threads=1),
            "copy": lambda r=residues, t=copied: np.copyto(t, r),
            "numpy sum of int64": lambda w=wide, t=wide_total: np.add(t, w, out=t),
        }
        times = alternate(works)
        works = {"unmask_sum, Flower": flower_unmask(wide, key)}
        for stream, name in STREAMS.items():
            works[f"unmask_sum, {name}"] = lambda s=stream, t=total, k=key: fc.ops.unmask_sum(
                t, [k], [-1], BITS, stream=s, out=t, threads=1
            )
        times |= alternate(works, 7)
        for name in ("pack_bits", "unpack_add"):
            times[name]["GB/s of packed bytes"] = len(packed) / times[name]["median"] / 1e9
        # what memory does for it: the packed bytes are read, the total is read and written
        times["unpack_add"]["GB/s moved"] = (len(packed) + 2 * total.nbytes) / times["unpack_add"]["median"] / 1e9
        times["copy"]["GB/s moved"] = 2 * total.nbytes / times["copy"]["median"] / 1e9
        found[f"{size} elements"] = times
    results["server"] = found


def main() -> None:
    require_green("mask_add")
    require_green("pack_bits")
    results: dict[str, object] = {"elements": SIZE, "bits": BITS, "threads": 1}
    client(results)
    server(results)
    save("mask_add", results, ("flwr",))


if __name__ == "__main__":
    main()
