"""A call of everything that takes backend=, on small data in NumPy; a process of its own can say what each raises."""

from __future__ import annotations

import json
import sys

import numpy as np

import fedcore as fc

KEY, NONCE, X = bytes(32), bytes(12), np.ones((3, 16), np.float32)
B, A, WORDS = [np.ones((16, 4), np.float32)] * 3, [np.ones((4, 16), np.float32)] * 3, np.ones(4, np.uint32)


def updates() -> list[fc.Update]:
    return [fc.Update.from_tensors({"w": row}, client_id=str(i)) for i, row in enumerate(X)]


#: ops by their public names, then what calls them
CALLS = {
    "ExactSum": lambda **on: fc.ops.ExactSum(16, **on).add(X[0]),
    "clip_noise_accumulate": lambda **on: fc.ops.clip_noise_accumulate(X, 1.0, **on),
    "clip_round": lambda **on: fc.ops.clip_round(X[0], 1.0, **on),
    "discrete_gaussian": lambda **on: fc.ops.discrete_gaussian(4, 1.0, KEY, **on),
    "gram": lambda **on: fc.ops.gram(X, **on),
    "gram_epsilon": lambda **on: fc.ops.gram_epsilon(**on),
    "hadamard": lambda **on: fc.ops.hadamard(X[0].copy(), 16, **on),
    "keystream": lambda **on: fc.ops.keystream(4, KEY, NONCE, 0, **on),
    "keystream_add": lambda **on: fc.ops.keystream_add(WORDS.copy(), [KEY], NONCE, 0, [1], **on),
    "lora_blocks": lambda **on: fc.ops.lora_blocks(B, A, **on),
    "lora_delta_median": lambda **on: fc.ops.lora_delta_median(B, A, **on),
    "lora_delta_sum": lambda **on: fc.ops.lora_delta_sum(B, A, [1.0] * 3, **on),
    "lora_delta_trimmed_mean": lambda **on: fc.ops.lora_delta_trimmed_mean(B, A, 1, **on),
    "lora_gram": lambda **on: fc.ops.lora_gram([(B, A, None)], **on),
    "mask_add": lambda **on: fc.ops.mask_add(WORDS, [KEY], [1], 32, **on),
    "mean_around_median": lambda **on: fc.ops.mean_around_median(X, 1, **on),
    "median": lambda **on: fc.ops.median(X, **on),
    "pack_bits": lambda **on: fc.ops.pack_bits(WORDS, 8, **on),
    "shamir_combine": lambda **on: fc.ops.shamir_combine([1], np.ones((1, 1, 4), np.uint8), **on),
    "shamir_split": lambda **on: fc.ops.shamir_split(b"1234", 1, 2, KEY, **on),
    "sign_counts": lambda **on: fc.ops.sign_counts(X, **on),
    "squared_distances": lambda **on: fc.ops.squared_distances(X, [[0, 1]], **on),
    "squared_norms": lambda **on: fc.ops.squared_norms(X, **on),
    "trimmed_mean": lambda **on: fc.ops.trimmed_mean(X, 1, **on),
    "unmask_sum": lambda **on: fc.ops.unmask_sum(WORDS, [KEY], [1], 32, **on),
    "unpack_add": lambda **on: fc.ops.unpack_add(b"1234", 8, WORDS.copy(), **on),
    "weighted_sum": lambda **on: fc.ops.weighted_sum(X, [1.0] * 3, **on),
    "weighted_sums": lambda **on: fc.ops.weighted_sums(X, [[1.0] * 3] * 2, **on),
    "Median": lambda **on: fc.rules.Median()(X, **on),
    "Krum": lambda **on: fc.rules.Krum(0)(X, **on),
    "aggregate": lambda **on: fc.aggregate(updates(), fc.rules.Mean(), space="parameters", **on),
    "Accumulator": lambda **on: fc.Accumulator(fc.rules.Mean(), **on),
}


def told(**on: str) -> dict[str, str]:
    """What each call says where it fails: the error's type and text, or 'works'."""
    found = {}
    for name, call in CALLS.items():
        try:
            call(**on)
            found[name] = "works"
        # whatever comes is what a caller would see
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found


if __name__ == "__main__":
    print(json.dumps(told(**json.loads(sys.argv[1]))))
