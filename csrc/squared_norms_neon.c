/* squared_norms with NEON (64-bit Arm): sixteen vectors of two lanes, in column order. */
#include <arm_neon.h>

#include "impl.h"
#include "widen_neon.h"

INLINE double block_norm(const char* row, const float* center, int64_t length, fc_dtype type) {
    const int size = fc_itemsize(type);
    float64x2_t lanes[16];
    for (int v = 0; v < 16; v++) lanes[v] = vdupq_n_f64(0.0);
    char padded[FC_NORM_LANES * 4] = {0};
    float padded_center[FC_NORM_LANES] = {0};
    for (int64_t k = 0; k < length; k += FC_NORM_LANES) {
        const char* at = row + size * k;
        const float* center_at = center ? center + k : NULL;
        if (length - k < FC_NORM_LANES) { /* zeros at the end add +0 to their lanes and change nothing */
            memcpy(padded, at, (size_t)(size * (length - k)));
            at = padded;
            if (center) {
                memcpy(padded_center, center_at, (size_t)(4 * (length - k)));
                center_at = padded_center;
            }
        }
        for (int v = 0; v < 8; v++) {
            const float32x4_t wide = widen4_f32(at + size * 4 * v, type);
            float64x2_t x[2] = {vcvt_f64_f32(vget_low_f32(wide)), vcvt_high_f64_f32(wide)};
            if (center) {
                const float32x4_t c = vld1q_f32(center_at + 4 * v);
                x[0] = vsubq_f64(x[0], vcvt_f64_f32(vget_low_f32(c)));
                x[1] = vsubq_f64(x[1], vcvt_high_f64_f32(c));
            }
            for (int h = 0; h < 2; h++) lanes[2 * v + h] = vaddq_f64(lanes[2 * v + h], vmulq_f64(x[h], x[h]));
        }
    }
    for (int width = 8; width; width /= 2)
        for (int v = 0; v < width; v++) lanes[v] = vaddq_f64(lanes[v], lanes[v + width]);
    return vgetq_lane_f64(lanes[0], 0) + vgetq_lane_f64(lanes[0], 1);
}

#define BLOCK_NORM(name, type)                                                                       \
    double fc_squared_norms_##name##_neon(const void* row, const float* center, int64_t length) {    \
        return center ? block_norm(row, center, length, type) : block_norm(row, NULL, length, type); \
    }
BLOCK_NORM(f32, FC_F32)
BLOCK_NORM(f16, FC_F16)
BLOCK_NORM(bf16, FC_BF16)
