"""Shamir's shares over GF(2^8) modulo 0x11B by logarithms to base 3 and Newton's divided differences."""

from __future__ import annotations

EXPONENTIALS = [1]
while len(EXPONENTIALS) < 255:
    last = EXPONENTIALS[-1]
    doubled = last << 1 if last < 128 else (last << 1) ^ 0x11B
    EXPONENTIALS.append(doubled ^ last)  # times 3
LOGARITHMS = {value: power for power, value in enumerate(EXPONENTIALS)}


def times(a: int, b: int) -> int:
    return EXPONENTIALS[(LOGARITHMS[a] + LOGARITHMS[b]) % 255] if a and b else 0


def over(a: int, b: int) -> int:
    return EXPONENTIALS[(LOGARITHMS[a] - LOGARITHMS[b]) % 255] if a else 0


def evaluate(coefficients: list[int], x: int) -> int:
    """The polynomial whose coefficient of x^c is coefficients[c], as a sum of powers."""
    total, power = 0, 1
    for coefficient in coefficients:
        total ^= times(coefficient, power)
        power = times(power, x)
    return total


def interpolate(points: list[int], values: list[int], at: int) -> int:
    """The polynomial of least degree through the points, at another one."""
    differences = list(values)
    for level in range(1, len(points)):
        for i in range(len(points) - 1, level - 1, -1):
            differences[i] = over(differences[i] ^ differences[i - 1], points[i] ^ points[i - level])
    total = 0
    for difference, x in zip(reversed(differences), reversed(points), strict=True):
        total = times(total, at ^ x) ^ difference
    return total
