/* squared_distances with AVX-512: squares are formed along the columns of each pair, eight at a time, and an 8 × 8
 * transpose turns them so that a lane is a pair: each lane then adds its columns in order. */
#include <immintrin.h>

#include "impl.h"

static inline __attribute__((always_inline)) __m512d square(const double* a, const double* b) {
    const __m512d difference = _mm512_sub_pd(_mm512_loadu_pd(a), _mm512_loadu_pd(b));
    return _mm512_mul_pd(difference, difference);
}

void fc_pair_squares_avx512(const double* const* a, const double* const* b, int64_t length, double* sum) {
    __m512d total = _mm512_loadu_pd(sum);
    int64_t k = 0;
    for (; k + 8 <= length; k += 8) {
        __m512d s[8], pairs[8], quads[8];
        for (int p = 0; p < 8; p++) s[p] = square(a[p] + k, b[p] + k);
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
        const double *left[FC_PAIRS], *right[FC_PAIRS];
        for (int p = 0; p < FC_PAIRS; p++) {
            left[p] = a[p] + k;
            right[p] = b[p] + k;
        }
        fc_pair_squares_ref(left, right, length - k, sum);
    }
}
