/* weighted_sum with NEON (64-bit Arm): two fp64 lanes a vector, columns in order. FCVTXN rounds to odd in hardware. */
#include <arm_neon.h>

#include "impl.h"

/* 8 columns of a row as fp32. Bytes are loaded, so that any alignment is read safely. */
INLINE void load8(const char* row, fc_dtype type, float32x4_t* x) {
    if (type == FC_F32) {
        x[0] = vreinterpretq_f32_u8(vld1q_u8((const uint8_t*)row));
        x[1] = vreinterpretq_f32_u8(vld1q_u8((const uint8_t*)row + 16));
        return;
    }
    const uint16x8_t half = vreinterpretq_u16_u8(vld1q_u8((const uint8_t*)row));
    if (type == FC_F16) {
        x[0] = vcvt_f32_f16(vreinterpret_f16_u16(vget_low_u16(half)));
        x[1] = vcvt_f32_f16(vreinterpret_f16_u16(vget_high_u16(half)));
    } else {
        x[0] = vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(half), 16));
        x[1] = vreinterpretq_f32_u32(vshll_n_u16(vget_high_u16(half), 16));
    }
}

INLINE int64_t step(const void* const* rows, const double* w, int count, int64_t length, double* acc, int first,
                    fc_dtype type) {
    const int size = fc_itemsize(type);
    int64_t k = 0;
    for (; k + 8 <= length; k += 8) {
        float64x2_t sum[4];
        float32x4_t x[2];
        for (int v = 0; v < 4; v++) sum[v] = first ? vdupq_n_f64(0.0) : vld1q_f64(acc + k + 2 * v);
        for (int r = 0; r < count; r++) {
            const float64x2_t weight = vdupq_n_f64(w[r]);
            load8((const char*)rows[r] + size * k, type, x);
            for (int v = 0; v < 2; v++) {
                sum[2 * v] = vfmaq_f64(sum[2 * v], vcvt_f64_f32(vget_low_f32(x[v])), weight);
                sum[2 * v + 1] = vfmaq_f64(sum[2 * v + 1], vcvt_high_f64_f32(x[v]), weight);
            }
        }
        for (int v = 0; v < 4; v++) vst1q_f64(acc + k + 2 * v, sum[v]);
    }
    return k;
}

#define ACCUMULATE(name, type)                                                                                       \
    void fc_weighted_sum_##name##_neon(const void* const* rows, const double* w, int count, int64_t length,          \
                                       double* acc, int first) {                                                     \
        int64_t k = first ? step(rows, w, count, length, acc, 1, type) : step(rows, w, count, length, acc, 0, type); \
        const void* rest[FC_WS_GROUP];                                                                               \
        for (int r = 0; r < count; r++) rest[r] = (const char*)rows[r] + fc_itemsize(type) * k;                      \
        fc_weighted_sum_##name##_ref(rest, w, count, length - k, acc + k, first);                                    \
    }
ACCUMULATE(f32, FC_F32)
ACCUMULATE(f16, FC_F16)
ACCUMULATE(bf16, FC_BF16)

INLINE uint32x4_t odd4(const double* acc, float64x2_t by, int divide) {
    float64x2_t a = vld1q_f64(acc), b = vld1q_f64(acc + 2);
    if (divide) {
        a = vdivq_f64(a, by);
        b = vdivq_f64(b, by);
    }
    return vreinterpretq_u32_f32(vcvtx_high_f32_f64(vcvtx_f32_f64(a), b));
}

INLINE int any_infinite(uint16x8_t value, uint16_t mask) {
    return vmaxvq_u16(vceqq_u16(vandq_u16(value, vdupq_n_u16(mask)), vdupq_n_u16(mask))) != 0;
}

int fc_weighted_sum_to_bf16_neon(const double* acc, int64_t length, double divisor, void* out, int stream) {
    const float64x2_t by = vdupq_n_f64(divisor);
    const uint32x4_t half = vdupq_n_u32(0x7fff), one = vdupq_n_u32(1), exponent = vdupq_n_u32(0x7f800000);
    int bad = 0;
    int64_t k = 0;
    for (; k + 8 <= length; k += 8) {
        uint32x4_t part[2];
        for (int v = 0; v < 2; v++) {
            const uint32x4_t odd = odd4(acc + k + 4 * v, by, !isnan(divisor));
            /* the addition may carry out of a NaN of all ones, so NaN is looked for before it */
            bad |= vmaxvq_u32(vceqq_u32(vandq_u32(odd, exponent), exponent)) != 0;
            part[v] = vaddq_u32(odd, vaddq_u32(half, vandq_u32(vshrq_n_u32(odd, 16), one)));
        }
        const uint16x8_t packed = vcombine_u16(vshrn_n_u32(part[0], 16), vshrn_n_u32(part[1], 16));
        bad |= any_infinite(packed, 0x7f80);
        vst1q_u8((uint8_t*)out + 2 * k, vreinterpretq_u8_u16(packed));
    }
    return bad | fc_weighted_sum_to_bf16_ref(acc + k, length - k, divisor, (char*)out + 2 * k, stream);
}

int fc_weighted_sum_to_f16_neon(const double* acc, int64_t length, double divisor, void* out, int stream) {
    const float64x2_t by = vdupq_n_f64(divisor);
    int bad = 0;
    int64_t k = 0;
    for (; k + 8 <= length; k += 8) {
        float32x4_t part[2];
        for (int v = 0; v < 2; v++) part[v] = vreinterpretq_f32_u32(odd4(acc + k + 4 * v, by, !isnan(divisor)));
        const uint16x8_t packed = vreinterpretq_u16_f16(vcvt_high_f16_f32(vcvt_f16_f32(part[0]), part[1]));
        bad |= any_infinite(packed, 0x7c00);
        vst1q_u8((uint8_t*)out + 2 * k, vreinterpretq_u8_u16(packed));
    }
    return bad | fc_weighted_sum_to_f16_ref(acc + k, length - k, divisor, (char*)out + 2 * k, stream);
}
