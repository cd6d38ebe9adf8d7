/* The tile of products of LoRA factors with AVX-512 F: 8 rows x 3 vectors, 24 sums in registers. */
#include <immintrin.h>

#include "impl.h"

/* sums live in registers only where every loop over them is unrolled */
#define UNROLL _Pragma("GCC unroll 8")
enum { WIDE = FC_LORA_COLUMNS / 16 };

void fc_lora_tile_avx512(const float* b, const float* a, int64_t length, double* acc, int64_t stride, int first) {
    __m512 sum[FC_LORA_ROWS][WIDE];
    UNROLL for (int o = 0; o < FC_LORA_ROWS; o++) UNROLL for (int v = 0; v < WIDE; v++) sum[o][v] = _mm512_setzero_ps();
    for (int64_t k = 0; k < length; k++) {
        __m512 x[WIDE];
        UNROLL for (int v = 0; v < WIDE; v++) x[v] = _mm512_load_ps(a + k * FC_LORA_COLUMNS + 16 * v);
        UNROLL for (int o = 0; o < FC_LORA_ROWS; o++) {
            const __m512 row = _mm512_set1_ps(b[k * FC_LORA_ROWS + o]);
            UNROLL for (int v = 0; v < WIDE; v++) sum[o][v] = _mm512_fmadd_ps(row, x[v], sum[o][v]);
        }
    }
    UNROLL for (int o = 0; o < FC_LORA_ROWS; o++) UNROLL for (int v = 0; v < WIDE; v++) {
        double* to = acc + o * stride + 16 * v;
        __m512d low = _mm512_cvtps_pd(_mm512_castps512_ps256(sum[o][v]));
        __m512d high = _mm512_cvtps_pd(_mm512_extractf32x8_ps(sum[o][v], 1));
        if (!first) {
            low = _mm512_add_pd(_mm512_load_pd(to), low);
            high = _mm512_add_pd(_mm512_load_pd(to + 8), high);
        }
        _mm512_store_pd(to, low);
        _mm512_store_pd(to + 8, high);
    }
}
