/* Numbers of a row one by one: what the vector kernels do to whole columns, and where a row ends. */
#ifndef FEDCORE_SCALARS_H
#define FEDCORE_SCALARS_H
#include <float.h>
#include <stdint.h>
#include <string.h>

/* The numeric laws rest on it. Where it fails there are no kernels, and the reference runs. */
_Static_assert(FLT_EVAL_METHOD == 0, "fp32 and fp64 must be computed as such: on 32-bit x86, -msse2 -mfpmath=sse");

static inline uint32_t fc_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}
static inline float fc_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}
static inline float fc_load_f32(const void* row, int64_t k) {
    float value;
    memcpy(&value, (const char*)row + 4 * k, 4);
    return value;
}
static inline float fc_load_bf16(const void* row, int64_t k) {
    uint16_t bits;
    memcpy(&bits, (const char*)row + 2 * k, 2);
    return fc_float((uint32_t)bits << 16);
}
static inline float fc_load_f16(const void* row, int64_t k) {
    uint16_t half;
    memcpy(&half, (const char*)row + 2 * k, 2);
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, exponent = (half >> 10) & 31, mantissa = half & 1023;
    if (exponent == 31) return fc_float(sign | 0x7f800000 | mantissa << 13);
    if (exponent) return fc_float(sign | (exponent + 112) << 23 | mantissa << 13);
    float value = (float)mantissa * 0x1p-24f; /* exact: subnormal halves are normal floats */
    return fc_float(sign | fc_bits(value));
}

/* fp64 to a 16-bit float with `ebits` exponent bits: one rounding, to nearest even, in integers alone. */
static inline uint16_t fc_round16(double value, int ebits) {
    const int mbits = 15 - ebits, bias = (1 << (ebits - 1)) - 1;
    uint64_t bits;
    memcpy(&bits, &value, 8);
    const uint16_t sign = (uint16_t)(bits >> 48 & 0x8000), infinity = (uint16_t)(((1 << ebits) - 1) << mbits);
    const uint64_t fraction = bits & 0xfffffffffffffull;
    const int exponent = (int)(bits >> 52 & 0x7ff);
    if (exponent == 0x7ff) return (uint16_t)(sign | infinity | (fraction ? 1 << (mbits - 1) : 0));
    if (exponent == 0) return sign;            /* below half of the least subnormal of either format */
    const int target = exponent - 1023 + bias; /* biased exponent in the 16-bit format */
    const uint64_t mantissa = fraction | 1ull << 52;
    int shift = 52 - mbits + (target < 1 ? 1 - target : 0);
    if (shift > 54) return sign;
    const uint64_t half = 1ull << (shift - 1), rest = mantissa & ((half << 1) - 1);
    uint64_t kept = mantissa >> shift;
    kept += rest > half || (rest == half && (kept & 1));
    /* a normal number's hidden bit adds 1 to the exponent field; a carry runs into it, which is right too */
    const uint64_t packed = target < 1 ? kept : kept + ((uint64_t)(target - 1) << mbits);
    return (uint16_t)(sign | (packed >= infinity ? infinity : packed));
}
#endif
