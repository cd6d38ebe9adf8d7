/* The tile of products of LoRA factors with NEON (64-bit Arm): 8 rows x 3 vectors at a time, 24 sums in registers. */
#include <arm_neon.h>

#include "impl.h"

enum { WIDE = 3 };

static inline void part(const float* b, const float* a, int64_t length, double* acc, int64_t stride, int first) {
    float32x4_t sum[FC_LORA_ROWS][WIDE];
    for (int o = 0; o < FC_LORA_ROWS; o++)
        for (int v = 0; v < WIDE; v++) sum[o][v] = vdupq_n_f32(0.0f);
    for (int64_t k = 0; k < length; k++) {
        const float32x4_t top = vld1q_f32(b + k * FC_LORA_ROWS), bottom = vld1q_f32(b + k * FC_LORA_ROWS + 4);
        for (int v = 0; v < WIDE; v++) {
            const float32x4_t x = vld1q_f32(a + k * FC_LORA_COLUMNS + 4 * v);
            sum[0][v] = vfmaq_laneq_f32(sum[0][v], x, top, 0);
            sum[1][v] = vfmaq_laneq_f32(sum[1][v], x, top, 1);
            sum[2][v] = vfmaq_laneq_f32(sum[2][v], x, top, 2);
            sum[3][v] = vfmaq_laneq_f32(sum[3][v], x, top, 3);
            sum[4][v] = vfmaq_laneq_f32(sum[4][v], x, bottom, 0);
            sum[5][v] = vfmaq_laneq_f32(sum[5][v], x, bottom, 1);
            sum[6][v] = vfmaq_laneq_f32(sum[6][v], x, bottom, 2);
            sum[7][v] = vfmaq_laneq_f32(sum[7][v], x, bottom, 3);
        }
    }
    for (int o = 0; o < FC_LORA_ROWS; o++)
        for (int v = 0; v < WIDE; v++) {
            double* to = acc + o * stride + 4 * v;
            float64x2_t low = vcvt_f64_f32(vget_low_f32(sum[o][v])), high = vcvt_high_f64_f32(sum[o][v]);
            if (!first) {
                low = vaddq_f64(vld1q_f64(to), low);
                high = vaddq_f64(vld1q_f64(to + 2), high);
            }
            vst1q_f64(to, low);
            vst1q_f64(to + 2, high);
        }
}

void fc_lora_tile_neon(const float* b, const float* a, int64_t length, double* acc, int64_t stride, int first) {
    for (int c = 0; c < FC_LORA_COLUMNS; c += 4 * WIDE) part(b, a + c, length, acc + c, stride, first);
}
