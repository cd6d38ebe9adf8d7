/* squared_distances with AVX2: as the AVX-512 kernel, with 4 × 4 transposes of four pairs at a time. */
#include <immintrin.h>

#include "impl.h"

/* Columns of a row in fp32, or of a point in fp64. */
INLINE __m256d load(const void* row, int64_t k, int wide) {
    return wide ? _mm256_loadu_pd((const double*)row + k) : _mm256_cvtps_pd(_mm_loadu_ps((const float*)row + k));
}

INLINE __m256d square(const void* a, const void* b, int64_t k, int wide) {
    const __m256d difference = _mm256_sub_pd(load(a, k, wide), load(b, k, wide));
    return _mm256_mul_pd(difference, difference);
}

INLINE void squares(const void* const* a, const void* const* b, int wide, int64_t length, double* sum) {
    __m256d total[2] = {_mm256_loadu_pd(sum), _mm256_loadu_pd(sum + 4)};
    int64_t k = 0;
    for (; k + 4 <= length; k += 4)
        for (int h = 0; h < 2; h++) {
            const void *const *x = a + 4 * h, *const *y = b + 4 * h;
            const __m256d s0 = square(x[0], y[0], k, wide), s1 = square(x[1], y[1], k, wide);
            const __m256d s2 = square(x[2], y[2], k, wide), s3 = square(x[3], y[3], k, wide);
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
        const int64_t before = k * (int64_t)(wide ? sizeof(double) : sizeof(float));
        const void *left[FC_PAIRS], *right[FC_PAIRS];
        for (int p = 0; p < FC_PAIRS; p++) {
            left[p] = (const char*)a[p] + before;
            right[p] = (const char*)b[p] + before;
        }
        fc_pair_squares_ref(left, right, wide, length - k, sum);
    }
}

void fc_pair_squares_avx2(const void* const* a, const void* const* b, int wide, int64_t length, double* sum) {
    if (wide) squares(a, b, 1, length, sum);
    else squares(a, b, 0, length, sum);
}
