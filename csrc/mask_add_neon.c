/* Quantising for mask_add with NEON; packing and the reduction are left to the portable kernels. */
#include <arm_neon.h>

#include "impl.h"

/* 2 elements as fp64. */
INLINE float64x2_t widen(const char* values, int64_t k, int is64) {
    if (is64) return vreinterpretq_f64_u8(vld1q_u8((const uint8_t*)(values + 8 * k)));
    return vcvt_f64_f32(vreinterpret_f32_u8(vld1_u8((const uint8_t*)(values + 4 * k))));
}

INLINE int quantise(const char* values, double scale, double limit, int64_t length, void* out, int is64, int wide,
                    int64_t* done) {
    const float64x2_t most = vdupq_n_f64(limit), least = vdupq_n_f64(-limit);
    uint64x2_t bad = vdupq_n_u64(0);
    int64_t k = 0;
    for (; k + 2 <= length; k += 2) {
        const float64x2_t x = widen(values, k, is64); /* x - x is 0 where x is finite, and NaN elsewhere */
        bad = vorrq_u64(bad, vreinterpretq_u64_f64(vsubq_f64(x, x)));
        const int64x2_t q = vcvtnq_s64_f64(vminnmq_f64(vmaxnmq_f64(vmulq_n_f64(x, scale), least), most));
        if (wide) vst1q_s64((int64_t*)out + k, q);
        else vst1_s32((int32_t*)out + k, vmovn_s64(q));
    }
    *done = k;
    return (vgetq_lane_u64(bad, 0) | vgetq_lane_u64(bad, 1)) != 0;
}

#define QUANTISE(name, is64, bits)                                                                             \
    int fc_quantise_##name##_##bits##_neon(const void* values, double scale, double limit, int64_t length,     \
                                           void* out) {                                                        \
        int64_t k;                                                                                             \
        const int bad = quantise(values, scale, limit, length, out, is64, bits == 64, &k);                     \
        return bad | fc_quantise_##name##_##bits##_ref((const char*)values + (is64 ? 8 : 4) * k, scale, limit, \
                                                       length - k, (char*)out + bits / 8 * k);                 \
    }
QUANTISE(f32, 0, 32)
QUANTISE(f32, 0, 64)
QUANTISE(f64, 1, 32)
QUANTISE(f64, 1, 64)
