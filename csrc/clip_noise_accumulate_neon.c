/* clip_noise_accumulate with NEON (64-bit Arm). */
#include <arm_neon.h>

#include "impl.h"

#define INLINE static inline __attribute__((always_inline))

/* 4 columns as fp32. Bytes are loaded, so that any alignment is read safely. */
INLINE float32x4_t widen(const char* row, fc_dtype type) {
    if (type == FC_F32) return vreinterpretq_f32_u8(vld1q_u8((const uint8_t*)row));
    const uint16x4_t half = vreinterpret_u16_u8(vld1_u8((const uint8_t*)row));
    if (type == FC_F16) return vcvt_f32_f16(vreinterpret_f16_u16(half));
    return vreinterpretq_f32_u32(vshll_n_u16(half, 16));
}

INLINE int64_t accumulate(const void* const* rows, const double* scales, int count, int64_t length, int64_t* sum,
                          fc_dtype type) {
    int64_t k = 0;
    for (; k + 4 <= length; k += 4) {
        int64x2_t low = vld1q_s64(sum + k), high = vld1q_s64(sum + k + 2);
        for (int r = 0; r < count; r++) {
            const float32x4_t x = widen((const char*)rows[r] + k * fc_itemsize(type), type);
            const float64x2_t by = vdupq_n_f64(scales[r]);
            low = vaddq_s64(low, vcvtnq_s64_f64(vmulq_f64(vcvt_f64_f32(vget_low_f32(x)), by)));
            high = vaddq_s64(high, vcvtnq_s64_f64(vmulq_f64(vcvt_high_f64_f32(x), by)));
        }
        vst1q_s64(sum + k, low);
        vst1q_s64(sum + k + 2, high);
    }
    return k;
}

#define ACCUMULATE(name, type)                                                                            \
    void fc_clip_noise_accumulate_##name##_neon(const void* const* rows, const double* scales, int count, \
                                                int64_t length, int64_t* sum) {                           \
        const int64_t k = accumulate(rows, scales, count, length, sum, type);                             \
        const void* rest[FC_WS_GROUP];                                                                    \
        for (int r = 0; r < count; r++) rest[r] = (const char*)rows[r] + fc_itemsize(type) * k;           \
        fc_clip_noise_accumulate_##name##_ref(rest, scales, count, length - k, sum + k);                  \
    }
ACCUMULATE(f32, FC_F32)
ACCUMULATE(f16, FC_F16)
ACCUMULATE(bf16, FC_BF16)
