"""The public discrete Gaussian: integer noise for differential privacy."""

from __future__ import annotations

import math
from fractions import Fraction
from numbers import Rational
from typing import Any

import numpy as np

from fedcore.backends import implementation
from fedcore.errors import RangeError
from fedcore.gaussian_table import LEAST, MOST, gaussian_table
from fedcore.numbers import got, whole
from fedcore.ops.rows import thread_count
from fedcore.ops.streams import KEY, fixed_bytes, stream_backend

MOST_SAMPLES = 1 << 63


def discrete_gaussian(
    size: int,
    sigma: Any,
    key: Any,
    counter: int = 0,
    stream: str = "chacha20",
    backend: str | None = None,
    threads: int | None = None,
) -> np.ndarray:
    """Samples of the discrete Gaussian, P(x) ∝ exp(−x² / 2σ²) on the integers: (size,) int64.

    size      samples, any number
    sigma     from 0.5 to 1e9: an int, a Fraction, or a float, whose exact binary value counts
    key       32 bytes (bytes, bytearray, memoryview or a uint8 array), for one σ and nothing else: samples of one key
              and number are the same on every backend, and those of another σ tell of them
    counter   number of the first sample: f(n, c)[i:] is f(n − i, c + i). counter + size may be 2⁶³ at most
    stream    as in keystream: 'chacha20', or 'aes256ctr' in C with AES instructions; the two give different samples

    Distance. A sample is within 2^−b of its distribution in total variation, b = discrete_gaussian_bits(sigma) > 100,
    if the stream is uniform. What is (ε, δ) private with exact noise is (ε, δ + (1 + e^ε) · D · T · 2^−b)
    private after T releases of D samples each; the advantage of telling the stream from uniform bits comes on top.
    Both belong in δ.

    Method. Inversion of a table of 159-bit entries (Peikert, CRYPTO 2010), made for this σ in integer arithmetic, and
    sums c_0 X_0 + c_1 X_1 + … where σ is large (Micciancio and Walter, CRYPTO 2017): fedcore/gaussian_table.py.
    Each draw takes a 32-bit word from a stream of its own: a sign, and 31 bits that decide unless they are an entry's
    first word. 2048 samples, from a multiple of it on, have words for eight such ties. They are compared always, so
    that a tie takes no other path than the rest; that there are more is counted in the distance.

    Constant time: the word of each draw is compared with every first word of the table, or with AVX2 and AVX-512 with
    five to seven that permutations of registers look up, one for each half of a search; where a tie belongs is found by
    comparing it with every place. No branch, address or count of instructions depends on what is drawn or on the key
    (benchmarks/constant_time.py). Time depends on σ, size and counter. NumPy's reference promises nothing.

    Numbers. Each of these streams has a nonce of its own, and sample n is made of word n of each: cipher block n // 16
    of ChaCha20, n // 4 of AES. The block's lower 32 bits are the counter and its upper bits go into the nonce: nothing
    repeats and nothing wraps up to sample 2⁶³ − 1.

    Raises ShapeError for the key, RangeError for a size, counter or sigma out of range, BackendError as keystream does.
    """
    exact = _exact("discrete_gaussian", sigma)
    name = stream_backend("discrete_gaussian", stream, backend)
    length = whole("size", size, 0, MOST_SAMPLES - 1, of="discrete_gaussian", error=RangeError)
    first = whole("counter", counter, 0, MOST_SAMPLES - 1, of="discrete_gaussian", error=RangeError)
    if first + length > MOST_SAMPLES:
        raise RangeError(f"discrete_gaussian: got {length} samples from {first} on, which pass 2^63; use another key")
    secret = fixed_bytes("discrete_gaussian", "key", key, KEY)
    work, count = implementation("discrete_gaussian", name), thread_count(threads)
    if name == "triton":
        import torch

        tensor = torch.empty(length, dtype=torch.int64, device="cuda" if torch.cuda.is_available() else "cpu")
        work(tensor, gaussian_table(exact), secret, first, stream, count)
        return tensor.cpu().numpy()
    out = np.empty(length, np.int64)
    work(out, gaussian_table(exact), secret, first, stream, count)
    return out


def discrete_gaussian_bits(sigma: Any) -> float:
    """b such that a sample of discrete_gaussian is within 2^−b of the discrete Gaussian of sigma in total variation.

    Above 100. It counts the entries' rounding, the values that a table leaves out, the sums of draws, and blocks with
    more ties than they have words for, for a stream of uniform bits. Raises RangeError.
    """
    distance = gaussian_table(_exact("discrete_gaussian_bits", sigma)).distance
    return math.floor(-100 * math.log2(distance) - 1e-6) / 100  # log2 itself is rounded


def _exact(op: str, sigma: Any) -> Fraction:
    value = Fraction(0)
    if isinstance(sigma, (float, np.floating)) and math.isfinite(sigma):
        value = Fraction(float(sigma))
    elif isinstance(sigma, Rational) and not isinstance(sigma, bool):
        value = Fraction(int(sigma.numerator), int(sigma.denominator))
    if not LEAST <= value <= MOST:
        raise RangeError(
            f"{got('sigma', sigma, op)}, expected a number from {float(LEAST)} to {int(MOST)}; scale the grid"
        )
    return value
