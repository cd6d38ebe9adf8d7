/* Draws from a table with AVX2, 16 at a time: signed comparisons of numbers whose top bit is flipped. */
#include <immintrin.h>

#include "impl.h"

enum { LANES = 4, AT_ONCE = 4 };

void fc_discrete_gaussian_avx2(const fc_gaussian_table* table, const uint64_t* v, const uint64_t* w, int64_t stride,
                               int64_t* sum) {
    const __m256i flip = _mm256_set1_epi64x(INT64_MIN), times = _mm256_set1_epi64x(stride);
    for (int i = 0; i < FC_GAUSSIAN_CHUNK; i += LANES * AT_ONCE) {
        __m256i high[AT_ONCE], low[AT_ONCE], count[AT_ONCE];
        for (int u = 0; u < AT_ONCE; u++) {
            high[u] = _mm256_xor_si256(_mm256_loadu_si256((const __m256i*)(v + i + LANES * u)), flip);
            low[u] = _mm256_slli_epi64(_mm256_loadu_si256((const __m256i*)(w + i + LANES * u)), 1);
            low[u] = _mm256_xor_si256(low[u], flip);
            count[u] = _mm256_setzero_si256();
        }
        for (int64_t k = 0; k < table->entries; k++) {
            const __m256i first = _mm256_xor_si256(_mm256_set1_epi64x((int64_t)table->first[k]), flip);
            const __m256i second = _mm256_xor_si256(_mm256_set1_epi64x((int64_t)table->second[k]), flip);
            for (int u = 0; u < AT_ONCE; u++) { /* a mask is -1 where it holds */
                const __m256i carried = _mm256_sub_epi64(first, _mm256_cmpgt_epi64(second, low[u]));
                count[u] = _mm256_sub_epi64(count[u], _mm256_cmpgt_epi64(carried, high[u]));
            }
        }
        for (int u = 0; u < AT_ONCE; u++) {
            __m256i* to = (__m256i*)(sum + i + LANES * u);
            const __m256i sign = _mm256_loadu_si256((const __m256i*)(w + i + LANES * u));
            const __m256i minus = _mm256_cmpgt_epi64(_mm256_setzero_si256(), sign);
            const __m256i drawn = _mm256_sub_epi64(_mm256_xor_si256(count[u], minus), minus);
            _mm256_storeu_si256(to, _mm256_add_epi64(_mm256_loadu_si256(to), _mm256_mul_epi32(drawn, times)));
        }
    }
}
