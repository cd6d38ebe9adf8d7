/* gram with NEON (64-bit Arm): products of 4 rows with one panel in 16 registers. Packing is the portable one: it is a
 * small part of the work and compilers vectorise it. */
#include <arm_neon.h>

#include "impl.h"

enum { ROWS = 4, VECTORS = FC_GRAM_PANEL / 4, LEVELS = 3 /* additions of two neighbours that leave one chain */ };

void fc_gram_tile_neon(const float* a, int rows, const float* b, int columns, int64_t length, double* sum,
                       int64_t stride, const double* row_scale, const double* column_scale) {
    (void)columns; /* all of the panel */
    for (int top = 0; top < rows; top += ROWS) {
        float32x4_t dot[ROWS][VECTORS], before[LEVELS][ROWS][VECTORS];
        for (int chain = 0; chain < FC_GRAM_CHAINS; chain++) {
            for (int r = 0; r < ROWS; r++)
                for (int v = 0; v < VECTORS; v++) dot[r][v] = vdupq_n_f32(0.0f);
            const int64_t start = chain * FC_GRAM_RUN, end = start + fc_ceil(length, FC_GRAM_CHAINS);
            for (int64_t k = start; k < end; k++) {
                const float32x4_t row = vld1q_f32(a + k * FC_GRAM_PANEL + top);
                for (int v = 0; v < VECTORS; v++) {
                    const float32x4_t x = vld1q_f32(b + k * FC_GRAM_PANEL + 4 * v);
                    dot[0][v] = vfmaq_laneq_f32(dot[0][v], x, row, 0);
                    dot[1][v] = vfmaq_laneq_f32(dot[1][v], x, row, 1);
                    dot[2][v] = vfmaq_laneq_f32(dot[2][v], x, row, 2);
                    dot[3][v] = vfmaq_laneq_f32(dot[3][v], x, row, 3);
                }
            }
            int level = 0;
            for (; chain >> level & 1; level++) /* two sums of as many chains each become one */
                for (int r = 0; r < ROWS; r++)
                    for (int v = 0; v < VECTORS; v++) dot[r][v] = vaddq_f32(before[level][r][v], dot[r][v]);
            if (level < LEVELS) memcpy(before[level], dot, sizeof dot);
        }
        for (int r = 0; r < ROWS; r++)
            for (int c = 0; c < FC_GRAM_PANEL; c++) {
                const double value = (double)dot[r][c / 4][c % 4];
                sum[(top + r) * stride + c] += row_scale ? value * (row_scale[top + r] * column_scale[c]) : value;
            }
    }
}
