/* The tile of inner products of LoRA terms with AVX2 and FMA: 4 x 8 sums in 8 registers, which is what hides the
 * latency of both multipliers. */
#include <immintrin.h>

#include "impl.h"

#define UNROLL _Pragma("GCC unroll 4")
enum { ROWS = 4 };

static inline void part(const double* rows, const double* columns, int64_t length, double* sum, int64_t stride,
                        int first) {
    __m256d dot[ROWS][2];
    UNROLL for (int r = 0; r < ROWS; r++) UNROLL for (int v = 0; v < 2; v++) dot[r][v] =
        first ? _mm256_setzero_pd() : _mm256_load_pd(sum + r * stride + 4 * v);
    for (int64_t k = 0; k < length; k++) {
        const __m256d low = _mm256_load_pd(columns + k * FC_LORA_PANEL);
        const __m256d high = _mm256_load_pd(columns + k * FC_LORA_PANEL + 4);
        UNROLL for (int r = 0; r < ROWS; r++) {
            const __m256d row = _mm256_broadcast_sd(rows + k * FC_LORA_PANEL + r);
            dot[r][0] = _mm256_fmadd_pd(row, low, dot[r][0]);
            dot[r][1] = _mm256_fmadd_pd(row, high, dot[r][1]);
        }
    }
    UNROLL for (int r = 0; r < ROWS; r++) UNROLL for (int v = 0; v < 2; v++)
        _mm256_store_pd(sum + r * stride + 4 * v, dot[r][v]);
}

void fc_lora_gram_tile_avx2(const double* rows, const double* columns, int64_t panel_stride, int wide, int64_t length,
                            double* sum, int64_t stride, int first) {
    for (int p = 0; p < wide; p++)
        for (int r = 0; r < FC_LORA_PANEL; r += ROWS)
            part(rows + r, columns + p * panel_stride, length, sum + r * stride + p * FC_LORA_PANEL, stride, first);
}
