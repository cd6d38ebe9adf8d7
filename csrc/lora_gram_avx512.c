/* The tile of inner products of LoRA terms with AVX-512 F: 8 x 24 sums in 24 registers. */
#include <immintrin.h>

#include "impl.h"

/* sums live in registers only where every loop over them is unrolled */
#define UNROLL _Pragma("GCC unroll 8")

INLINE void tile(const double* rows, const double* columns, int64_t panel_stride, int wide, int64_t length, double* sum,
                 int64_t stride, int first) {
    __m512d dot[FC_LORA_PANEL][FC_LORA_WIDE];
    UNROLL for (int r = 0; r < FC_LORA_PANEL; r++) UNROLL for (int p = 0; p < wide; p++) dot[r][p] =
        first ? _mm512_setzero_pd() : _mm512_load_pd(sum + r * stride + 8 * p);
    for (int64_t k = 0; k < length; k++) {
        __m512d x[FC_LORA_WIDE];
        UNROLL for (int p = 0; p < wide; p++) x[p] = _mm512_load_pd(columns + p * panel_stride + k * FC_LORA_PANEL);
        UNROLL for (int r = 0; r < FC_LORA_PANEL; r++) {
            const __m512d row = _mm512_set1_pd(rows[k * FC_LORA_PANEL + r]);
            UNROLL for (int p = 0; p < wide; p++) dot[r][p] = _mm512_fmadd_pd(row, x[p], dot[r][p]);
        }
    }
    UNROLL for (int r = 0; r < FC_LORA_PANEL; r++) UNROLL for (int p = 0; p < wide; p++)
        _mm512_store_pd(sum + r * stride + 8 * p, dot[r][p]);
}

void fc_lora_gram_tile_avx512(const double* rows, const double* columns, int64_t panel_stride, int wide, int64_t length,
                              double* sum, int64_t stride, int first) {
    if (wide == 3) tile(rows, columns, panel_stride, 3, length, sum, stride, first);
    else if (wide == 2) tile(rows, columns, panel_stride, 2, length, sum, stride, first);
    else tile(rows, columns, panel_stride, 1, length, sum, stride, first);
}
