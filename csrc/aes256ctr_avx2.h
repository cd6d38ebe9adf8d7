/* What aes256ctr.h asks of an ISA and AVX2 has: fp64 in which to quantise. */
#define real __m256d
#define REAL _mm256_set1_pd

INLINE __m128i rounded(__m128 values, __m256d by, __m256d most) {
    const __m256d least = _mm256_sub_pd(_mm256_setzero_pd(), most), x = _mm256_mul_pd(_mm256_cvtps_pd(values), by);
    return _mm256_cvtpd_epi32(_mm256_min_pd(_mm256_max_pd(x, least), most));
}
