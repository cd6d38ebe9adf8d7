/* Draws from a table with AVX2, 16 at a time: a search by halves whose every look-up is by permutations of registers
 * over the whole level, as with AVX-512; signed comparisons of numbers whose top bit is flipped. */
#include <immintrin.h>

#include "discrete_gaussian.h"

enum { LANES = 8, AT_ONCE = 2 };

static void arrange(const fc_gaussian_table* table, uint32_t* arranged) {
    fc_arrange(table, LANES, arranged);
    for (int k = 0; k < FC_GAUSSIAN_ARRANGED; k++) arranged[k] ^= 1u << 31;
}

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

/* word = entry j of a level: the lower bits of j by permutation, the upper ones, which are the first decisions, by
 * blends. */
INLINE __m256i look_up(const uint32_t* levels, int level, __m256i j, const __m256i below[FC_GAUSSIAN_LEVELS]) {
    const __m256i* at = (const __m256i*)(levels + fc_level_at(level, LANES));
    const int parts = level < 4 ? 1 : 1 << (level - 3);
    __m256i word[LANES];
#pragma GCC unroll 8
    for (int part = 0; part < parts; part++) word[part] = _mm256_permutevar8x32_epi32(_mm256_load_si256(at + part), j);
#pragma GCC unroll 3
    for (int step = 1, decision = level - 4; step < parts; step *= 2, decision--)
#pragma GCC unroll 4
        for (int part = 0; part < parts; part += 2 * step)
            word[part] = _mm256_blendv_epi8(word[part], word[part + step], below[decision]);
    return word[0];
}

/* How many first words v is below, and whether it is the first one that it is not below. */
INLINE __m256i search(const uint32_t* levels, int number, __m256i v, __m256i* tie) {
    __m256i below[FC_GAUSSIAN_LEVELS], count = _mm256_setzero_si256(), next = count;
#pragma GCC unroll 7
    for (int level = 0; level < number; level++) { /* bit by bit, the highest first: 1 where v is below the entry */
        const __m256i word = look_up(levels, level, count, below);
        below[level] = _mm256_cmpgt_epi32(word, v);
        next = _mm256_blendv_epi8(word, next, below[level]);
        count = _mm256_sub_epi32(_mm256_add_epi32(count, count), below[level]);
    }
    *tie = _mm256_cmpeq_epi32(v, next);
    return count;
}

/* Draw `draw` of the samples from `sample` on added to theirs. Masks are -1 where they hold. */
INLINE void add_draws(const fc_gaussian_table* table, const uint32_t* arranged, int levels, int64_t draw,
                      int64_t sample, const uint32_t* words, noted* ties, int64_t* out) {
    const __m256i lane = _mm256_slli_epi32(_mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0), FC_TIE_SAMPLE);
    const __m256i stride = _mm256_set1_epi64x(table->strides[draw]), one = _mm256_set1_epi32(1);
    __m256i x[AT_ONCE], count[AT_ONCE], tie[AT_ONCE];
    for (int u = 0; u < AT_ONCE; u++) {
        x[u] = _mm256_loadu_si256((const __m256i*)(words + LANES * u));
        count[u] = search(arranged, levels, flipped(_mm256_andnot_si256(one, x[u])), tie + u);
    }
    for (int u = 0; u < AT_ONCE; u++) {
        const __m256i sign = _mm256_and_si256(x[u], one), minus = _mm256_sub_epi32(_mm256_setzero_si256(), sign);
        const __m256i drawn = _mm256_sub_epi32(_mm256_xor_si256(count[u], minus), minus);
        __m256i record = _mm256_or_si256(lane, _mm256_set1_epi32((int)fc_tie_at(sample + LANES * u, draw)));
        record = _mm256_or_si256(record, _mm256_slli_epi32(sign, FC_TIE_SIGN));
        note(ties, _mm256_or_si256(record, _mm256_slli_epi32(count[u], FC_TIE_COUNT)), tie[u]);
        add_to(out + LANES * u, _mm256_castsi256_si128(drawn), stride);
        add_to(out + LANES * u + LANES / 2, _mm256_extracti128_si256(drawn, 1), stride);
    }
}

INLINE void draw_chunk(const fc_gaussian_table* table, const uint32_t* arranged, int levels, const uint32_t* words,
                       int64_t at, fc_gaussian_ties* ties, int64_t* out) {
    noted noted = {_mm256_loadu_si256((const __m256i*)ties->records), _mm256_set1_epi32((int)ties->count)};
    memset(out, 0, FC_GAUSSIAN_CHUNK * sizeof *out);
    for (int64_t group = 0; group < FC_GAUSSIAN_CHUNK; group += FC_GAUSSIAN_GROUP)
        for (int64_t draw = 0; draw < table->draws; draw++)
            for (int64_t i = group; i < group + FC_GAUSSIAN_GROUP; i += LANES * AT_ONCE)
                add_draws(table, arranged, levels, draw, at + i, words + draw * FC_GAUSSIAN_CHUNK + i, &noted, out + i);
    _mm256_storeu_si256((__m256i*)ties->records, noted.records);
    ties->count = (uint32_t)_mm256_extract_epi32(noted.held, 0);
}

static void draw(const fc_gaussian_table* table, const uint32_t* arranged, const uint32_t* words, int64_t at,
                 fc_gaussian_ties* ties, int64_t* out) {
    const int levels = fc_levels_of(table);
    if (levels == 5) draw_chunk(table, arranged, 5, words, at, ties, out);
    else if (levels == 6) draw_chunk(table, arranged, 6, words, at, ties, out);
    else draw_chunk(table, arranged, 7, words, at, ties, out);
}

const fc_gaussian_kernels fc_discrete_gaussian_avx2 = {arrange, draw, fc_settle};
