"""Which of a secret's shares are false: Reed–Solomon decoding over GF(2^8), of all bytes together.

Shares of a byte are values of a polynomial of degree below t at m points, a word of a generalised Reed–Solomon code of
distance m − t + 1. With u_i = 1 / Π_{j ≠ i} (x_i − x_j) its syndromes are S_r = Σ_i u_i x_i^r y_i, r < m − t: zero for
true shares, so that they show what is false and nothing of the secret (MacWilliams and Sloane 1977, "The Theory of
Error-Correcting Codes", ch. 10 §8). If the shares at E are false, the coefficients of σ(x) = Π_{i ∈ E} (x − x_i) solve
Σ_j σ_j S_{r+j} = 0 for every r and every byte (Peterson 1960, "Encoding and error-correction procedures for the
Bose–Chaudhuri codes"). A false share is false in whole, so that all bytes have one σ: an interleaved code
(Bleichenbacher, Kiayias and Yung 2003, "Decoding of interleaved Reed Solomon codes over noisy data", ICALP).

Shares are read by shifts and XORs on whole arrays, as in fedcore/reference/shamir_split.py. Tables are looked up for
points, which are public, and for syndromes.
"""

from __future__ import annotations

from functools import cache

import numpy as np

#: z^8 modulo the field's polynomial, 0x11B
_REDUCTION = 0x1B


def false_shares(points: np.ndarray, shares: np.ndarray, threshold: int) -> list[int] | None:
    """Which shares are false, as indices; none where all lie on one polynomial a byte, None where it cannot be told.

    points: (m,) distinct, 1 to 255; shares: (m, size) uint8; threshold: t, from 1 to m

    Up to (m − t) // 2 false shares are found whatever is in them. Of more, up to (m − t) · c / (c + 1) are, most of the
    time, where they are false in c bytes without a pattern: what is beyond half the distance may be wrong, so check
    what it gives.
    """
    spare = len(points) - threshold
    syndromes, _ = _reduced(_syndromes(points, shares, spare).T)
    syndromes = syndromes[syndromes.any(1)]  # recurrences of all bytes are those of a basis
    if not len(syndromes):
        return []
    for most in sorted({spare // 2, spare * len(syndromes) // (len(syndromes) + 1)}):
        if (found := _roots(points, syndromes, most)) is not None:
            return found
    return None


def _syndromes(points: np.ndarray, shares: np.ndarray, count: int) -> np.ndarray:
    """S: (count, size). No branch and no address depends on a share."""
    powers, logarithms, _ = _tables()
    where = logarithms[points]
    apart = logarithms[points[:, None] ^ points].sum(1)  # the logarithm of 0 is 0, as that of a factor to leave out
    factors = powers[(np.arange(count)[:, None] * where - apart) % 255]
    found, power = np.zeros((count, shares.shape[1]), np.uint8), shares.copy()
    for bit in range(8):
        found ^= np.bitwise_xor.reduce((factors[..., None] >> bit & 1) * power, axis=1)
        power = power << 1 ^ (power >> 7) * np.uint8(_REDUCTION)
    return found


def _roots(points: np.ndarray, syndromes: np.ndarray, most: int) -> list[int] | None:
    """Where σ of the least degree, up to `most`, is 0, if it has as many roots among the points as its degree says."""
    length = syndromes.shape[1] - most
    windows = np.lib.stride_tricks.sliding_window_view(syndromes, most + 1, axis=1)[:, :length]
    rows, pivots = _reduced(windows.reshape(-1, most + 1))
    degree = next((j for j in range(most + 1) if j >= len(pivots) or pivots[j] != j), None)
    if not degree:
        return None
    products, value = _tables()[2], np.ones(len(points), np.uint8)
    for coefficient in rows[degree - 1 :: -1, degree][:degree]:
        value = products[value, points] ^ coefficient
    found = np.flatnonzero(value == 0).tolist()
    return found if len(found) == degree else None


def _reduced(matrix: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """The reduced row echelon form, and the columns of its pivots."""
    powers, logarithms, products = _tables()
    rows = matrix.copy()
    pivots: list[int] = []
    for column in range(rows.shape[1]):
        top = len(pivots)
        below = np.flatnonzero(rows[top:, column])
        if not len(below):
            continue
        rows[[top, top + below[0]]] = rows[[top + below[0], top]]
        rows[top] = products[powers[-logarithms[rows[top, column]] % 255], rows[top]]
        others = np.flatnonzero(rows[:, column])
        others = others[others != top]
        rows[others] ^= products[rows[others, column, None], rows[top]]
        pivots.append(column)
        if len(pivots) == len(rows):
            break
    return rows, pivots


@cache
def _tables() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Powers of the generator 3, logarithms to it (0 for 0), and all products."""
    powers, logarithms, value = np.zeros(255, np.uint8), np.zeros(256, np.int64), 1
    for exponent in range(255):
        powers[exponent], logarithms[value] = value, exponent
        value ^= (value << 1) ^ (value >> 7) * (0x100 | _REDUCTION)
    products = powers[(logarithms[:, None] + logarithms) % 255]
    products[0], products[:, 0] = 0, 0
    return powers, logarithms, products
