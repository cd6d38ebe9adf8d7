/* clip_round with NEON (64-bit Arm). */
#include <arm_neon.h>

#include "impl.h"
#include "widen_neon.h"

INLINE int64_t round_row(const char* row, double scale, int64_t length, int32_t* out, fc_dtype type, int64_t* done) {
    const float64x2_t by = vdupq_n_f64(scale);
    int64x2_t squares = vdupq_n_s64(0);
    int64_t k = 0;
    for (; k + 4 <= length; k += 4) {
        const float32x4_t x = widen4_f32(row + k * fc_itemsize(type), type);
        const int32x2_t low = vmovn_s64(vcvtnq_s64_f64(vmulq_f64(vcvt_f64_f32(vget_low_f32(x)), by)));
        const int32x2_t high = vmovn_s64(vcvtnq_s64_f64(vmulq_f64(vcvt_high_f64_f32(x), by)));
        vst1q_s32(out + k, vcombine_s32(low, high));
        squares = vmlal_s32(vmlal_s32(squares, low, low), high, high);
    }
    *done = k;
    return vaddvq_s64(squares);
}

#define ROUND(name, type)                                                                                        \
    int64_t fc_clip_round_##name##_neon(const void* row, double scale, int64_t length, int32_t* out) {           \
        int64_t k;                                                                                               \
        const int64_t squares = round_row(row, scale, length, out, type, &k);                                    \
        return squares +                                                                                         \
               fc_clip_round_##name##_ref((const char*)row + k * fc_itemsize(type), scale, length - k, out + k); \
    }
ROUND(f32, FC_F32)
ROUND(f16, FC_F16)
ROUND(bf16, FC_BF16)
