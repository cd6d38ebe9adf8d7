/* squared_distances with AVX-512: squares are formed along the columns of each pair, eight at a time, and an 8 × 8
 * transpose turns them so that a lane is a pair: each lane then adds its columns in order. */
#include <immintrin.h>

#include "impl.h"

/* Columns of a row in fp32, or of a point in fp64. */
INLINE __m512d load(const void* row, int64_t k, int wide) {
    return wide ? _mm512_loadu_pd((const double*)row + k) : _mm512_cvtps_pd(_mm256_loadu_ps((const float*)row + k));
}

INLINE __m512d square(const void* a, const void* b, int64_t k, int wide) {
    const __m512d difference = _mm512_sub_pd(load(a, k, wide), load(b, k, wide));
    return _mm512_mul_pd(difference, difference);
}

INLINE void squares(const void* const* a, const void* const* b, int wide, int64_t length, double* sum) {
    __m512d total = _mm512_loadu_pd(sum);
    int64_t k = 0;
    for (; k + 8 <= length; k += 8) {
        __m512d s[8], pairs[8], quads[8];
        for (int p = 0; p < 8; p++) s[p] = square(a[p], b[p], k, wide);
        for (int p = 0; p < 8; p += 2) { /* pairs[p + c]: columns c, c + 2, c + 4, c + 6 of pairs p and p + 1 */
            pairs[p] = _mm512_unpacklo_pd(s[p], s[p + 1]);
            pairs[p + 1] = _mm512_unpackhi_pd(s[p], s[p + 1]);
        }
        for (int p = 0; p < 8; p += 4) /* quads[p + ..]: two columns of pairs p to p + 3 */
            for (int c = 0; c < 2; c++) {
                quads[p + c] = _mm512_shuffle_f64x2(pairs[p + c], pairs[p + 2 + c], 0x88);
                quads[p + 2 + c] = _mm512_shuffle_f64x2(pairs[p + c], pairs[p + 2 + c], 0xdd);
            }
        /* columns 0 to 3 lie in the even 128-bit lanes, 4 to 7 in the odd ones */
        for (int c = 0; c < 4; c++) total = _mm512_add_pd(total, _mm512_shuffle_f64x2(quads[c], quads[4 + c], 0x88));
        for (int c = 0; c < 4; c++) total = _mm512_add_pd(total, _mm512_shuffle_f64x2(quads[c], quads[4 + c], 0xdd));
    }
    _mm512_storeu_pd(sum, total);
    if (k < length) {
        const int64_t before = k * (int64_t)(wide ? sizeof(double) : sizeof(float));
        const void *left[FC_PAIRS], *right[FC_PAIRS];
        for (int p = 0; p < FC_PAIRS; p++) {
            left[p] = (const char*)a[p] + before;
            right[p] = (const char*)b[p] + before;
        }
        fc_pair_squares_ref(left, right, wide, length - k, sum);
    }
}

void fc_pair_squares_avx512(const void* const* a, const void* const* b, int wide, int64_t length, double* sum) {
    if (wide) squares(a, b, 1, length, sum);
    else squares(a, b, 0, length, sum);
}
