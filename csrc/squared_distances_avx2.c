/* squared_distances with AVX2: as the AVX-512 kernel, with 4 × 4 transposes of four pairs at a time. */
#include <immintrin.h>

#include "impl.h"

static inline __attribute__((always_inline)) __m256d square(const double* a, const double* b) {
    const __m256d difference = _mm256_sub_pd(_mm256_loadu_pd(a), _mm256_loadu_pd(b));
    return _mm256_mul_pd(difference, difference);
}

void fc_pair_squares_avx2(const double* const* a, const double* const* b, int64_t length, double* sum) {
    __m256d total[2] = {_mm256_loadu_pd(sum), _mm256_loadu_pd(sum + 4)};
    int64_t k = 0;
    for (; k + 4 <= length; k += 4)
        for (int h = 0; h < 2; h++) {
            const double *const *x = a + 4 * h, *const *y = b + 4 * h;
            const __m256d s0 = square(x[0] + k, y[0] + k), s1 = square(x[1] + k, y[1] + k);
            const __m256d s2 = square(x[2] + k, y[2] + k), s3 = square(x[3] + k, y[3] + k);
            const __m256d even01 = _mm256_unpacklo_pd(s0, s1), odd01 = _mm256_unpackhi_pd(s0, s1);
            const __m256d even23 = _mm256_unpacklo_pd(s2, s3), odd23 = _mm256_unpackhi_pd(s2, s3);
            total[h] = _mm256_add_pd(total[h], _mm256_permute2f128_pd(even01, even23, 0x20));
            total[h] = _mm256_add_pd(total[h], _mm256_permute2f128_pd(odd01, odd23, 0x20));
            total[h] = _mm256_add_pd(total[h], _mm256_permute2f128_pd(even01, even23, 0x31));
            total[h] = _mm256_add_pd(total[h], _mm256_permute2f128_pd(odd01, odd23, 0x31));
        }
    _mm256_storeu_pd(sum, total[0]);
    _mm256_storeu_pd(sum + 4, total[1]);
    if (k < length) {
        const double *left[FC_PAIRS], *right[FC_PAIRS];
        for (int p = 0; p < FC_PAIRS; p++) {
            left[p] = a[p] + k;
            right[p] = b[p] + k;
        }
        fc_pair_squares_ref(left, right, length - k, sum);
    }
}
