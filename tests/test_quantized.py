"""Quantised arrays: the definition of each format, bit for bit against bitsandbytes, and what cannot be represented."""

from __future__ import annotations

import fractions

import numpy as np
import pytest
from inputs import same_bits

import fedcore as fc
from fedcore.dtypes import BF16, round_from_float64
from fedcore.errors import DTypeError, RangeError, ShapeError
from fedcore.quantized import DYNAMIC_CODE, NF4_CODE, decode

FORMATS = ("int8", "nf4")
#: around the halves of a byte, blocks of 64, nested blocks of 64 × 256, and chunks of the quantiser
SIZES = (0, 1, 2, 63, 64, 65, 127, 128, 129, 1000, 64 * 256 - 1, 64 * 256, 64 * 256 + 1, 64 * 257 + 33, (1 << 18) + 65)


def values(size: int, seed: int = 0) -> np.ndarray:
    """Numbers whose blocks differ in magnitude, some of them zero."""
    rng = np.random.default_rng(seed)
    blocks = -(-size // 64)
    scale = np.repeat(10.0 ** rng.uniform(-6, 1, blocks) * (rng.random(blocks) > 0.1), 64)[:size]
    return (rng.normal(size=size) * scale).astype(np.float32)


@pytest.mark.parametrize("size", SIZES)
def test_int8_is_the_product_of_code_and_scale_rounded_once(size):
    given = values(size)
    found = fc.Quantized.from_array(given, "int8")
    (absmax,) = found.scales
    assert (found.payload.dtype, absmax.dtype) == (np.int8, np.float32)
    assert absmax.tolist() == [float(np.abs(given[k : k + 64]).max()) for k in range(0, size, 64)]
    decoded = found.to_float32()
    for k in np.random.default_rng(1).choice(size, min(size, 50), replace=False) if size else ():
        scale = np.float32(fractions.Fraction(float(absmax[k // 64])) / 127)
        exact = fractions.Fraction(float(scale)) * int(found.payload[k])
        assert decoded[k] == np.float32(exact)
        assert abs(decoded[k] - given[k]) <= 0.5001 * scale


@pytest.mark.parametrize("size", SIZES)
def test_nf4_takes_the_nearest_code_and_quantises_its_scales(size):
    given = values(size)
    found = fc.Quantized.from_array(given, "nf4")
    absmax, nested, offset = found.scales
    assert [x.dtype for x in (found.payload, absmax, nested, offset)] == [np.uint8, np.uint8, np.float32, np.float32]
    scales = DYNAMIC_CODE[absmax] * nested[np.arange(len(absmax)) // 256] + offset
    halves = [found.payload[k // 2] >> 4 if k % 2 == 0 else found.payload[k // 2] & 15 for k in range(min(size, 3000))]
    expected = NF4_CODE[halves] * np.repeat(scales, 64)[: len(halves)]
    assert same_bits(found.to_float32()[: len(halves)], expected)
    largest = np.array([np.abs(given[k : k + 64]).max() for k in range(0, size, 64)])
    for k in range(0, len(halves), 7):
        if largest[k // 64]:
            ratio = given[k] / largest[k // 64]
            assert abs(NF4_CODE[halves[k]] - ratio) <= np.abs(NF4_CODE - ratio).min() + 1e-6


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("size", [65, 64 * 300])
def test_a_range_decodes_like_the_whole(format, size):
    found = fc.Quantized.from_array(values(size), format)
    whole = found.to_float32()
    for start, stop in ((0, 0), (0, 1), (1, 2), (1, 64), (63, 65), (7, size), (size - 3, size)):
        assert same_bits(decode(format, found.payload, found.scales, start, stop), whole[start:stop])


def bitsandbytes():
    torch = pytest.importorskip("torch", reason="bitsandbytes works on torch tensors")
    functional = pytest.importorskip("bitsandbytes.functional", reason="bitsandbytes is not installed")
    return torch, functional


@pytest.mark.parametrize(
    "shape", [(1,), (64,), (65,), (129,), (3, 50), (7, 31), (130, 2), (64, 256), (16449,), (5, 7, 11)]
)
def test_nf4_of_bitsandbytes_decodes_to_its_own_bits(shape):
    torch, functional = bitsandbytes()
    given = torch.from_numpy(values(int(np.prod(shape)), seed=3).reshape(shape))
    packed, state = functional.quantize_4bit(given, quant_type="nf4", compress_statistics=True, blocksize=64)
    theirs = functional.dequantize_4bit(packed, state).numpy().reshape(shape)
    scales = (state.absmax.numpy(), state.state2.absmax.numpy(), state.offset.numpy().reshape(1))
    ours = fc.Quantized("nf4", shape, packed.numpy().reshape(-1), scales).to_float32()
    assert same_bits(ours, theirs)


@pytest.mark.parametrize("shape", [(1,), (65,), (3, 50), (7, 31), (64, 256), (16449,)])
def test_bitsandbytes_decodes_our_nf4_to_our_bits(shape):
    torch, functional = bitsandbytes()
    given = values(int(np.prod(shape)), seed=4).reshape(shape)
    ours = fc.Quantized.from_array(given, "nf4")
    packed, state = functional.quantize_4bit(
        torch.from_numpy(given), quant_type="nf4", compress_statistics=True, blocksize=64
    )
    assert same_bits(ours.payload, packed.numpy().reshape(-1))
    absmax, nested, offset = (torch.from_numpy(scale.copy()) for scale in ours.scales)
    state.absmax, state.state2.absmax, state.offset = absmax, nested, offset[0]
    assert same_bits(functional.dequantize_4bit(packed, state).numpy().reshape(shape), ours.to_float32())


def test_codes_are_those_of_bitsandbytes():
    _, functional = bitsandbytes()
    assert same_bits(functional.create_dynamic_map().numpy(), DYNAMIC_CODE)
    assert same_bits(functional.get_4bit_type("nf4", device="cpu").numpy(), NF4_CODE)


def halfway(count: int = 40):
    """(33 elements at midpoints of the code times their magnitude, codes by its quotient, by its reciprocal)."""
    middle, rng = (NF4_CODE[:-1] + NF4_CODE[1:]) / np.float32(2), np.random.default_rng(0)
    for _ in range(count):
        largest = np.float32(np.exp(rng.normal()))
        flat = np.concatenate(([largest], middle[rng.integers(0, 15, 32)] * largest)).astype(np.float32)
        scaled = flat / largest, flat * (np.float32(1) / largest)
        yield flat, *(np.searchsorted(middle, x).tolist() for x in scaled)


def test_a_last_block_that_is_not_full_is_divided_by_its_magnitude():
    told = 0
    for flat, quotient, product in halfway():
        told += quotient != product
        whole = np.concatenate((flat, np.zeros(31, np.float32)))
        for given, expected in ((flat, quotient), (whole, product)):
            payload = fc.Quantized.from_array(given, "nf4").payload
            assert np.stack((payload >> 4, payload & 15), 1).reshape(-1)[:33].tolist() == expected
    assert told > 5


def test_so_it_is_in_bitsandbytes():
    torch, functional = bitsandbytes()
    for flat, _, _ in halfway():
        for given in (flat, np.concatenate((flat, np.zeros(31, np.float32)))):
            theirs, _ = functional.quantize_4bit(torch.from_numpy(given), quant_type="nf4", blocksize=64)
            assert same_bits(fc.Quantized.from_array(given, "nf4").payload, theirs.numpy().reshape(-1))


def test_the_offset_is_the_mean_in_fp64_rounded_once():
    """Magnitudes 1 and 2⁻²⁴: a sum in fp32 loses the small ones."""
    magnitudes = np.array([1.0] + [2.0**-24] * 6, np.float32)
    flat = np.repeat(magnitudes, 64)
    expected = np.float32(magnitudes.astype(np.float64).mean())
    assert expected != magnitudes.mean()
    assert fc.Quantized.from_array(flat, "nf4").scales[2][0] == expected


@pytest.mark.parametrize("format", FORMATS)
def test_zeros_stay_zero(format):
    assert (fc.Quantized.from_array(np.zeros(200, np.float32), format).to_float32() == 0).all()


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_visible(format, bad):
    given = values(200)
    given[70] = bad
    decoded = fc.Quantized.from_array(given, format).to_float32()
    assert np.isnan(decoded[64:128]).all()
    if format == "int8":
        assert np.isfinite(decoded[:64]).all()


@pytest.mark.parametrize("format", FORMATS)
def test_sixteen_bit_arrays_are_quantised_as_fp32(format):
    given = values(300, seed=5).astype(np.float16)
    wide = fc.Quantized.from_array(given.astype(np.float32), format)
    half = fc.Quantized.from_array(given, format)
    assert half.dtype == "float16"
    assert same_bits(half.to_float32(), wide.to_float32())
    brain = round_from_float64(given.astype(np.float64), "bfloat16")
    assert fc.Quantized.from_array(brain, format).dtype == "bfloat16"
    assert brain.dtype == BF16


def test_magnitudes_that_do_not_survive_are_refused():
    top = np.full(64, np.finfo(np.float32).max, np.float32)
    with pytest.raises(RangeError, match=r"a magnitude of 3.40282e\+38 does not survive int8; scale the array down"):
        fc.Quantized.from_array(top, "int8")
    with pytest.raises(RangeError, match=r"a magnitude of 3.40282e\+38 does not"):
        fc.Quantized.from_array(np.concatenate((np.full(64, np.nan, np.float32), top)), "int8")
    assert np.isfinite(fc.Quantized.from_array(top / 2, "int8").to_float32()).all()


def test_arrays_that_do_not_fit_are_named():
    codes, scale = np.zeros(65, np.int8), np.ones(2, np.float32)
    fc.Quantized("int8", (65,), codes, (scale,))
    with pytest.raises(DTypeError, match="format: got 'fp4', expected one of int8, nf4"):
        fc.Quantized("fp4", (65,), codes, (scale,))
    with pytest.raises(ShapeError, match=r"payload has shape \(65,\), expected \(66,\) for int8 of shape \(66,\)"):
        fc.Quantized("int8", (66,), codes, (scale,))
    with pytest.raises(ShapeError, match=r"absmax has shape \(1,\), expected \(2,\)"):
        fc.Quantized("int8", (65,), codes, (scale[:1],))
    with pytest.raises(ShapeError, match="got 1 scale arrays, expected 3"):
        fc.Quantized("nf4", (65,), np.zeros(33, np.uint8), (scale,))
    with pytest.raises(DTypeError, match="payload is uint8, expected int8"):
        fc.Quantized("int8", (65,), codes.view(np.uint8), (scale,))
    with pytest.raises(ShapeError, match="payload is not contiguous"):
        fc.Quantized("int8", (65,), np.zeros(130, np.int8)[::2], (scale,))
    with pytest.raises(DTypeError, match="quantise: got float64, expected one of float32, float16, bfloat16"):
        fc.Quantized.from_array(np.zeros(3), "int8")


def test_arrays_in_one_buffer_are_aligned_and_found_there_again():
    found = fc.Quantized.from_array(values(65), "nf4")
    buffer, starts = found.joined()
    assert buffer is found.payload.base
    assert [start % 8 for start in starts] == [0] * 4
    # a scale that lies elsewhere is copied to the others
    other = fc.Quantized("nf4", (65,), found.payload, (*found.scales[:2], found.scales[2].copy()))
    buffer, starts = other.joined()
    assert buffer is not found.payload.base
    assert same_bits(fc.Quantized.over(buffer, starts, "nf4", (65,), "float32").to_float32(), found.to_float32())
