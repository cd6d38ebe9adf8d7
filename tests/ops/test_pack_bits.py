"""Residues without gaps: every width, every tail, parts, and bytes that no vector packs to."""

from __future__ import annotations

import numpy as np
import pytest

import fedcore as fc
from fedcore.errors import DTypeError, FormatError, RangeError, ShapeError

WIDTHS = (1, 2, 7, 8, 13, 16, 17, 26, 31, 32, 33, 40, 57, 63, 64)
TILE = 1 << 16


def residues(bits: int, length: int, offset: int = 0) -> np.ndarray:
    drawn = np.random.default_rng(bits).integers(0, 1 << 64, length + offset, np.uint64)
    return (drawn & np.uint64((1 << bits) - 1)).astype(np.uint32 if bits <= 32 else np.uint64)[offset:]


def packed(values: np.ndarray, bits: int) -> bytes:
    """One long integer."""
    number = sum(int(x) << i * bits for i, x in enumerate(values))
    return number.to_bytes(-(-len(values) * bits // 8), "little")


@pytest.mark.parametrize("bits", WIDTHS)
def test_the_definition(bits):
    for length in (0, 1, 3, 8, 41):
        values = residues(bits, length)
        found = fc.ops.pack_bits(values, bits, backend="reference")
        assert found.tobytes() == packed(values, bits)
        total = values.copy()
        fc.ops.unpack_add(found, bits, total, backend="reference")
        assert total.tolist() == [2 * int(x) % (1 << bits) for x in values]


@pytest.mark.parametrize("bits", WIDTHS)
def test_every_tail(compiled, bits):
    """Every length up to a few windows of every ISA; nothing is written beside; misaligned bytes."""
    for length in (*range(70), 255, 1001):
        values = residues(bits, length, offset=length % 3)
        size = -(-length * bits // 8)
        room = np.full(size + 67, 0xA5, np.uint8)
        out = room[1 : 1 + size]
        assert fc.ops.pack_bits(values, bits, out, threads=1, **compiled) is out
        assert out.tobytes() == packed(values, bits)
        assert (room[:1] == 0xA5).all()
        assert (room[1 + size :] == 0xA5).all()
        total = residues(bits, length + 20)
        expected = total.copy()
        expected[9 : 9 + length] = [(int(t) + int(v)) % (1 << bits) for t, v in zip(total[9:], values, strict=False)]
        part = total[: 9 + length]
        assert fc.ops.unpack_add(out, bits, part, 9, threads=1, **compiled) is part
        assert (total == expected).all()


@pytest.mark.parametrize("bits", WIDTHS)
def test_every_width_on_threads(compiled, bits):
    values = residues(bits, TILE + 5)
    expected = fc.ops.pack_bits(values, bits, backend="reference")
    assert (fc.ops.pack_bits(values, bits, threads=3, **compiled) == expected).all()
    total = np.zeros_like(values)
    fc.ops.unpack_add(expected, bits, total, threads=3, **compiled)
    assert (total == values).all()


def test_parts_of_a_vector(compiled):
    for bits in (1, 26, 33):
        values = residues(bits, 1000)
        whole, total = fc.ops.pack_bits(values, bits, **compiled), np.zeros_like(values)
        for start in range(0, 1000, 136):
            part = whole[start * bits // 8 : (start + 136) * bits // 8 + (start + 136 > 1000)]
            fc.ops.unpack_add(part.tobytes(), bits, total, start, **compiled)
        assert (total == values).all()


def test_high_bits_are_not_packed(compiled):
    values = np.array([0xFFFFFFFF, 5, 0xFF000001] * 11, np.uint32)
    assert (fc.ops.pack_bits(values, 9, **compiled) == fc.ops.pack_bits(values & 511, 9, **compiled)).all()


def test_bytes_that_no_vector_packs_to(compiled):
    total = np.zeros(10, np.uint32)
    for data, start in ((bytes(34), 0), (bytes(30), 2), (bytes(2), 0), (bytes(1), 10)):
        with pytest.raises(FormatError, match=f"unpack_add: got {len(data)} bytes for elements from {start} on"):
            fc.ops.unpack_add(data, 26, total, start, **compiled)
    with pytest.raises(FormatError, match="got a 1 in the bits after the last residue"):
        fc.ops.unpack_add(bytes(32) + b"\x10", 26, total, **compiled)
    assert not total.any()
    fc.ops.unpack_add(bytes(32) + b"\x08", 26, total, **compiled)
    assert total[9] == 1 << 25


def test_bad_arguments():
    total = np.zeros(10, np.uint32)
    with pytest.raises(RangeError, match="pack_bits: got bits=0"):
        fc.ops.pack_bits(total, 0)
    with pytest.raises(DTypeError, match="pack_bits: got uint32 as residues, expected uint64 for 33 bits"):
        fc.ops.pack_bits(total, 33)
    with pytest.raises(ShapeError, match="pack_bits: got 4 elements as out, expected 5"):
        fc.ops.pack_bits(total, 4, np.zeros(4, np.uint8))
    with pytest.raises(ShapeError, match="pack_bits: out overlaps the residues"):
        fc.ops.pack_bits(total, 32, total.view(np.uint8))
    with pytest.raises(DTypeError, match="unpack_add: got int8 as packed"):
        fc.ops.unpack_add(np.zeros(5, np.int8), 4, total)
    with pytest.raises(RangeError, match="unpack_add: got start=11"):
        fc.ops.unpack_add(b"", 4, total, 11)
    total.flags.writeable = False
    with pytest.raises(ShapeError, match="unpack_add: got 10 elements as total, expected 10 that can be written to"):
        fc.ops.unpack_add(bytes(5), 4, total)
