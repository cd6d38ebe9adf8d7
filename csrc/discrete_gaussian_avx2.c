/* Draws from a table with AVX2, 16 at a time: signed comparisons of numbers whose top bit is flipped. */
#include <immintrin.h>

#include "discrete_gaussian.h"

#define INLINE static inline __attribute__((always_inline))
enum { LANES = 8, AT_ONCE = 2 };

INLINE __m256i flipped(__m256i x) { return _mm256_xor_si256(x, _mm256_set1_epi32(INT32_MIN)); }
INLINE void add_to(int64_t* out, __m128i count, __m256i stride) {
    const __m256i sum = _mm256_loadu_si256((const __m256i*)out);
    _mm256_storeu_si256((__m256i*)out, _mm256_add_epi64(sum, _mm256_mul_epi32(_mm256_cvtepi32_epi64(count), stride)));
}

/* Ties of a block: their records, and how many there are in each lane. */
typedef struct {
    __m256i records, held;
} noted;

/* The records where `tie` holds, behind those that are there. */
INLINE void note(noted* ties, __m256i record, __m256i tie) {
    const __m256i place = _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0);
    record = _mm256_and_si256(record, tie);
    for (int k = 0; k < LANES; k++) {
        const __m256i lane = _mm256_set1_epi32(k), here = _mm256_cmpeq_epi32(place, ties->held);
        const __m256i one = _mm256_permutevar8x32_epi32(record, lane);
        ties->records = _mm256_or_si256(ties->records, _mm256_and_si256(one, here));
        ties->held = _mm256_sub_epi32(ties->held, _mm256_permutevar8x32_epi32(tie, lane));
    }
}

/* Draw `draw` of the samples from `sample` on added to theirs. Masks are -1 where they hold. */
INLINE void add_draws(const fc_gaussian_table* table, int64_t draw, int64_t sample, const uint32_t* words, noted* ties,
                      int64_t* out) {
    const __m256i place = _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0);
    const __m256i stride = _mm256_set1_epi64x(table->strides[draw]), one = _mm256_set1_epi32(1);
    __m256i x[AT_ONCE], v[AT_ONCE], count[AT_ONCE], tie[AT_ONCE];
    for (int u = 0; u < AT_ONCE; u++) {
        x[u] = _mm256_loadu_si256((const __m256i*)(words + LANES * u));
        v[u] = flipped(_mm256_andnot_si256(one, x[u]));
        count[u] = tie[u] = _mm256_setzero_si256();
    }
    for (int64_t k = 0, first = 1; k < table->entries && first; k++) { /* as far as the first word of 0, the last one */
        first = table->first[k];
        const __m256i entry = flipped(_mm256_set1_epi32((int32_t)first));
        for (int u = 0; u < AT_ONCE; u++) {
            count[u] = _mm256_sub_epi32(count[u], _mm256_cmpgt_epi32(entry, v[u]));
            tie[u] = _mm256_or_si256(tie[u], _mm256_cmpeq_epi32(entry, v[u]));
        }
    }
    for (int u = 0; u < AT_ONCE; u++) {
        const __m256i sign = _mm256_and_si256(x[u], one), minus = _mm256_sub_epi32(_mm256_setzero_si256(), sign);
        const __m256i drawn = _mm256_sub_epi32(_mm256_xor_si256(count[u], minus), minus);
        __m256i record = _mm256_or_si256(_mm256_slli_epi32(place, FC_TIE_SAMPLE),
                                         _mm256_set1_epi32((int)fc_tie_at(sample + LANES * u, draw)));
        record = _mm256_or_si256(record, _mm256_slli_epi32(sign, FC_TIE_SIGN));
        note(ties, _mm256_or_si256(record, _mm256_slli_epi32(count[u], FC_TIE_COUNT)), tie[u]);
        add_to(out + LANES * u, _mm256_castsi256_si128(drawn), stride);
        add_to(out + LANES * u + LANES / 2, _mm256_extracti128_si256(drawn, 1), stride);
    }
}

void fc_discrete_gaussian_avx2(const fc_gaussian_table* table, const uint32_t* arranged, const uint32_t* words,
                               int64_t at, fc_gaussian_ties* ties, int64_t* out) {
    noted noted = {_mm256_loadu_si256((const __m256i*)ties->records), _mm256_set1_epi32((int)ties->count)};
    (void)arranged;
    memset(out, 0, FC_GAUSSIAN_CHUNK * sizeof *out);
    for (int64_t group = 0; group < FC_GAUSSIAN_CHUNK; group += FC_GAUSSIAN_GROUP)
        for (int64_t draw = 0; draw < table->draws; draw++)
            for (int64_t i = group; i < group + FC_GAUSSIAN_GROUP; i += LANES * AT_ONCE)
                add_draws(table, draw, at + i, words + draw * FC_GAUSSIAN_CHUNK + i, &noted, out + i);
    _mm256_storeu_si256((__m256i*)ties->records, noted.records);
    ties->count = (uint32_t)_mm256_extract_epi32(noted.held, 0);
}

void fc_discrete_gaussian_settle_avx2(const fc_gaussian_table* table, const fc_gaussian_ties* ties,
                                      const uint64_t* words, int64_t* out) {
    fc_settle(table, ties, words, out);
}
