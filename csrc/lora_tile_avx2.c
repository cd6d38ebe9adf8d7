/* The tile of products of LoRA factors with AVX2 and FMA: 4 rows x 3 vectors at a time, 12 sums in registers. */
#include <immintrin.h>

#include "impl.h"

#define UNROLL _Pragma("GCC unroll 4")
enum { ROWS = 4, WIDE = 3 };

static inline void part(const float* b, const float* a, int64_t length, double* acc, int64_t stride, int first) {
    __m256 sum[ROWS][WIDE];
    UNROLL for (int o = 0; o < ROWS; o++) UNROLL for (int v = 0; v < WIDE; v++) sum[o][v] = _mm256_setzero_ps();
    for (int64_t k = 0; k < length; k++) {
        __m256 x[WIDE];
        UNROLL for (int v = 0; v < WIDE; v++) x[v] = _mm256_load_ps(a + k * FC_LORA_COLUMNS + 8 * v);
        UNROLL for (int o = 0; o < ROWS; o++) {
            const __m256 row = _mm256_broadcast_ss(b + k * FC_LORA_ROWS + o);
            UNROLL for (int v = 0; v < WIDE; v++) sum[o][v] = _mm256_fmadd_ps(row, x[v], sum[o][v]);
        }
    }
    UNROLL for (int o = 0; o < ROWS; o++) UNROLL for (int v = 0; v < WIDE; v++) {
        double* to = acc + o * stride + 8 * v;
        __m256d low = _mm256_cvtps_pd(_mm256_castps256_ps128(sum[o][v]));
        __m256d high = _mm256_cvtps_pd(_mm256_extractf128_ps(sum[o][v], 1));
        if (!first) {
            low = _mm256_add_pd(_mm256_load_pd(to), low);
            high = _mm256_add_pd(_mm256_load_pd(to + 4), high);
        }
        _mm256_store_pd(to, low);
        _mm256_store_pd(to + 4, high);
    }
}

void fc_lora_tile_avx2(const float* b, const float* a, int64_t length, double* acc, int64_t stride, int first) {
    for (int c = 0; c < FC_LORA_COLUMNS; c += 8 * WIDE)
        for (int o = 0; o < FC_LORA_ROWS; o += ROWS) part(b + o, a + c, length, acc + o * stride + c, stride, first);
}
