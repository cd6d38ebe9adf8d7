/* AVX-512 F: transposition of 16 × 16 fp32. */
#ifndef FEDCORE_TRANSPOSE_AVX512_H
#define FEDCORE_TRANSPOSE_AVX512_H
#include <immintrin.h>

#include "impl.h"

/* x[r] lane k becomes x[k] lane r: pairs, fours, then 128-bit quarters. */
INLINE void transpose(__m512* x) {
    __m512 t[16];
    for (int i = 0; i < 8; i++) {
        t[2 * i] = _mm512_unpacklo_ps(x[2 * i], x[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_ps(x[2 * i], x[2 * i + 1]);
    }
    for (int i = 0; i < 4; i++) {
        const __m512d a = _mm512_castps_pd(t[4 * i]), b = _mm512_castps_pd(t[4 * i + 1]);
        const __m512d c = _mm512_castps_pd(t[4 * i + 2]), d = _mm512_castps_pd(t[4 * i + 3]);
        x[4 * i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
        x[4 * i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
        x[4 * i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
        x[4 * i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
    }
    for (int j = 0; j < 4; j++) { /* x[4i + j] quarter q holds column 4q + j of rows 4i..4i+3 */
        const __m512 a = _mm512_shuffle_f32x4(x[j], x[4 + j], 0x88),
                     b = _mm512_shuffle_f32x4(x[8 + j], x[12 + j], 0x88);
        const __m512 c = _mm512_shuffle_f32x4(x[j], x[4 + j], 0xdd),
                     d = _mm512_shuffle_f32x4(x[8 + j], x[12 + j], 0xdd);
        t[j] = _mm512_shuffle_f32x4(a, b, 0x88);
        t[8 + j] = _mm512_shuffle_f32x4(a, b, 0xdd);
        t[4 + j] = _mm512_shuffle_f32x4(c, d, 0x88);
        t[12 + j] = _mm512_shuffle_f32x4(c, d, 0xdd);
    }
    for (int i = 0; i < 16; i++) x[i] = t[i];
}
#endif
