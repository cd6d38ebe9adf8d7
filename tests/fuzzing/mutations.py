"""Hostile variations of valid bytes: of any bytes, and of a safetensors message by the fields of its header."""

from __future__ import annotations

import json
import random

#: sizes that overflow, wrap round, or point just past an end
NUMBERS = (-1, 0, 1, 2, 7, 63, 64, 65, 255, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**62, 2**63 - 1, 2**63, 2**64, 10**40)
ODD = (None, True, "", "F32", "x" * 300, [], {}, 1.5, -0.0, float("nan"), [[]], "\u0000", "\ud800")


def vary(data: bytes, rng: random.Random) -> bytes:
    """One hostile variation of `data`."""
    kinds = [flip, cut, insert, overwrite, duplicate]
    if len(data) > 8 and int.from_bytes(data[:8], "little") <= len(data) - 8:
        kinds += [header_length, header_field, header_field, header_field, header_field]
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        data = rng.choice(kinds)(data, rng)
    return data


def flip(data: bytes, rng: random.Random) -> bytes:
    """One bit turned over."""
    if not data:
        return data
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]


def cut(data: bytes, rng: random.Random) -> bytes:
    """Truncated, or a stretch left out."""
    low, high = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return data[:low] if rng.random() < 0.5 else data[:low] + data[high:]


def insert(data: bytes, rng: random.Random) -> bytes:
    """Random bytes put in."""
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.randbytes(rng.choice((1, 8, 64))) + data[at:]


def overwrite(data: bytes, rng: random.Random) -> bytes:
    """A stretch replaced by bytes that numbers are afraid of."""
    at, pattern = rng.randrange(len(data) + 1), rng.choice((b"\xff", b"\x00", b"\x7f", b"\x80", b"{", b"9", b'"'))
    size = rng.choice((1, 2, 4, 8))
    return data[:at] + pattern * size + data[at + size :]


def duplicate(data: bytes, rng: random.Random) -> bytes:
    """A stretch twice."""
    low, high = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return data[:high] + data[low:high] + data[high:]


def header_length(data: bytes, rng: random.Random) -> bytes:
    """A message whose length prefix lies."""
    return (rng.choice(NUMBERS) % 2**64).to_bytes(8, "little") + data[8:]


def header_field(data: bytes, rng: random.Random) -> bytes:
    """A message with one value of its header, at any depth, replaced."""
    size = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8 : 8 + size])
    except (ValueError, RecursionError):
        return flip(data, rng)
    changed = _replace(header, rng)
    text = json.dumps(changed).encode("utf-8", "surrogatepass")
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def _replace(value: object, rng: random.Random) -> object:
    """`value` with something inside it replaced, removed, renamed or doubled."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key, other = rng.choice(list(value)), rng.choice(list(value))
        kind = rng.random()
        if kind < 0.1:
            return {k: v for k, v in value.items() if k != key}
        if kind < 0.2:
            return {
                (rng.choice(("", "../x", "a" * 5000, "lora_A", other)) if k == key else k): v for k, v in value.items()
            }
        return value | {key: value[other] if kind < 0.3 else _replace(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.8:
        at = rng.randrange(len(value))
        return [*value[:at], _replace(value[at], rng), *value[at + (rng.random() < 0.9) :]]
    if isinstance(value, int) and not isinstance(value, bool) and rng.random() < 0.6:
        return value + rng.choice((-1, 1, 4, 2**32))
    return rng.choice(NUMBERS) if rng.random() < 0.6 else rng.choice(ODD)
