/* clip_noise_accumulate with NEON (64-bit Arm). */
#include <arm_neon.h>

#include "impl.h"
#include "widen_neon.h"

INLINE int64_t accumulate(const void* const* rows, const double* scales, int count, int64_t length, int64_t* sum,
                          fc_dtype type) {
    int64_t k = 0;
    for (; k + 4 <= length; k += 4) {
        int64x2_t low = vld1q_s64(sum + k), high = vld1q_s64(sum + k + 2);
        for (int r = 0; r < count; r++) {
            const float32x4_t x = widen4_f32((const char*)rows[r] + k * fc_itemsize(type), type);
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
        const void* rest[FC_INTEGER_GROUP];                                                               \
        for (int r = 0; r < count; r++) rest[r] = (const char*)rows[r] + fc_itemsize(type) * k;           \
        fc_clip_noise_accumulate_##name##_ref(rest, scales, count, length - k, sum + k);                  \
    }
ACCUMULATE(f32, FC_F32)
ACCUMULATE(f16, FC_F16)
ACCUMULATE(bf16, FC_BF16)
