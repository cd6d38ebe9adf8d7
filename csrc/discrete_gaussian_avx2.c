/* Draws from a table with AVX2, 16 at a time: signed comparisons of numbers whose top bit is flipped. */
#include <immintrin.h>

#include "impl.h"

#define INLINE static inline __attribute__((always_inline))
enum { LANES = 4, AT_ONCE = 4 };

INLINE __m256i load(const uint64_t* at) { return _mm256_loadu_si256((const __m256i*)at); }
INLINE __m256i flipped(__m256i x) { return _mm256_xor_si256(x, _mm256_set1_epi64x(INT64_MIN)); }
INLINE __m256i same(uint64_t x) { return _mm256_set1_epi64x((int64_t)x); }

/* Draw `draw` of the samples i to i + 15 added to their sums; where it ties, its words and strides become those of the
 * tie. Masks are -1 where they hold. */
INLINE void add_draw(const fc_gaussian_table* table, int64_t draw, const uint64_t* v, const uint64_t* w,
                     __m256i sum[AT_ONCE], __m256i tied[AT_ONCE], __m256i times[AT_ONCE]) {
    const __m256i stride = _mm256_set1_epi64x(table->strides[draw]), zero = _mm256_setzero_si256();
    const __m128i sign = _mm_cvtsi64_si128(draw);
    __m256i x[AT_ONCE], count[AT_ONCE], tie[AT_ONCE];
    for (int u = 0; u < AT_ONCE; u++) {
        x[u] = flipped(load(v + LANES * u));
        count[u] = tie[u] = zero;
    }
    for (int64_t k = 0; k < table->entries; k++) {
        const __m256i first = flipped(same(table->first[k]));
        for (int u = 0; u < AT_ONCE; u++) {
            count[u] = _mm256_sub_epi64(count[u], _mm256_cmpgt_epi64(first, x[u]));
            tie[u] = _mm256_or_si256(tie[u], _mm256_cmpeq_epi64(first, x[u]));
        }
    }
    for (int u = 0; u < AT_ONCE; u++) {
        const __m256i minus = _mm256_cmpgt_epi64(zero, _mm256_sll_epi64(load(w + LANES * u), sign));
        const __m256i by = _mm256_sub_epi64(_mm256_xor_si256(stride, minus), minus);
        sum[u] = _mm256_add_epi64(sum[u], _mm256_mul_epi32(count[u], by));
        tied[u] = _mm256_blendv_epi8(tied[u], x[u], tie[u]);
        times[u] = _mm256_blendv_epi8(times[u], by, tie[u]);
    }
}

void fc_discrete_gaussian_avx2(const fc_gaussian_table* table, const uint64_t* arranged, const uint64_t* words,
                               int64_t* out) {
    (void)arranged;
    const uint64_t* w = words + table->draws * FC_GAUSSIAN_CHUNK;
    for (int i = 0; i < FC_GAUSSIAN_CHUNK; i += LANES * AT_ONCE) {
        __m256i sum[AT_ONCE], tied[AT_ONCE], times[AT_ONCE], low[AT_ONCE], count[AT_ONCE];
        for (int u = 0; u < AT_ONCE; u++) {
            sum[u] = tied[u] = times[u] = count[u] = _mm256_setzero_si256();
            low[u] = flipped(_mm256_slli_epi64(load(w + i + LANES * u), FC_GAUSSIAN_DRAWS));
        }
        for (int64_t draw = 0; draw < table->draws; draw++)
            add_draw(table, draw, words + draw * FC_GAUSSIAN_CHUNK + i, w + i, sum, tied, times);
        for (int64_t k = 0; k < table->entries; k++) {
            const __m256i first = flipped(same(table->first[k])), second = flipped(same(table->second[k]));
            for (int u = 0; u < AT_ONCE; u++) {
                const __m256i smaller = _mm256_cmpgt_epi64(second, low[u]);
                count[u] = _mm256_sub_epi64(count[u], _mm256_and_si256(smaller, _mm256_cmpeq_epi64(first, tied[u])));
            }
        }
        for (int u = 0; u < AT_ONCE; u++)
            _mm256_storeu_si256((__m256i*)(out + i + LANES * u),
                                _mm256_add_epi64(sum[u], _mm256_mul_epi32(count[u], times[u])));
    }
}
