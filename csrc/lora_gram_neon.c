/* The tile of inner products of LoRA terms with NEON (64-bit Arm): 4 x 8 sums in 16 registers. */
#include <arm_neon.h>

#include "impl.h"

enum { ROWS = 4, VECTORS = FC_LORA_PANEL / 2 };

static inline void part(const double* rows, const double* columns, int64_t length, double* sum, int64_t stride,
                        int first) {
    float64x2_t dot[ROWS][VECTORS];
    for (int r = 0; r < ROWS; r++)
        for (int v = 0; v < VECTORS; v++) dot[r][v] = first ? vdupq_n_f64(0.0) : vld1q_f64(sum + r * stride + 2 * v);
    for (int64_t k = 0; k < length; k++) {
        const float64x2_t low = vld1q_f64(rows + k * FC_LORA_PANEL), high = vld1q_f64(rows + k * FC_LORA_PANEL + 2);
        for (int v = 0; v < VECTORS; v++) {
            const float64x2_t x = vld1q_f64(columns + k * FC_LORA_PANEL + 2 * v);
            dot[0][v] = vfmaq_laneq_f64(dot[0][v], x, low, 0);
            dot[1][v] = vfmaq_laneq_f64(dot[1][v], x, low, 1);
            dot[2][v] = vfmaq_laneq_f64(dot[2][v], x, high, 0);
            dot[3][v] = vfmaq_laneq_f64(dot[3][v], x, high, 1);
        }
    }
    for (int r = 0; r < ROWS; r++)
        for (int v = 0; v < VECTORS; v++) vst1q_f64(sum + r * stride + 2 * v, dot[r][v]);
}

void fc_lora_gram_tile_neon(const double* rows, const double* columns, int64_t panel_stride, int wide, int64_t length,
                            double* sum, int64_t stride, int first) {
    for (int p = 0; p < wide; p++)
        for (int r = 0; r < FC_LORA_PANEL; r += ROWS)
            part(rows + r, columns + p * panel_stride, length, sum + r * stride + p * FC_LORA_PANEL, stride, first);
}
