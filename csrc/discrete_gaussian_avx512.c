/* Draws from a table with AVX-512 F, 32 at a time: a search by halves whose every look-up is by permutations of
 * registers over the whole level: time does not depend on the index, and memory is read in one order. */
#include <immintrin.h>

#include "impl.h"

#define INLINE static inline __attribute__((always_inline))
enum { LANES = 8, AT_ONCE = 4, LEVELS = 7, FEWER = 6, LAID_OUT = LANES * 18, WORD = 64, NUMBER = 56 };
_Static_assert((int)FC_GAUSSIAN_ENTRIES < 1 << (int)LEVELS, "a draw's count is below the number of leaves");
_Static_assert((int)FC_GAUSSIAN_ARRANGED == 2 * (int)LAID_OUT, "first words and ties");

/* A search of a short table has a level less, which depends on the table alone. */
static int levels_of(const fc_gaussian_table* table) { return table->entries < 1 << FEWER ? FEWER : LEVELS; }

/* Level l of n halves the counts from j * 2h to (j + 1) * 2h - 1, h = 2^(n - 1 - l), at entry j * 2h + h - 1: its word
 * is at j of the level, which begins at level_at(l). 0, which no draw is below, from the last entry on. */
INLINE int level_at(int level) {
    static const int at[LEVELS] = {0, 1, 2, 3,
                                   4, 6, 10}; /* in registers: levels of 1, 2, 4, 8, 16, 32 and 64 entries */
    return LANES * at[level];
}

static void lay_out(const uint64_t* words, int64_t entries, int count, uint64_t* levels) {
    memset(levels, 0, LAID_OUT * sizeof *levels);
    for (int level = 0; level < count; level++)
        for (int64_t j = 0, half = 1 << (count - 1 - level); j < 1 << level; j++) {
            const int64_t k = j * 2 * half + half - 1;
            if (k < entries) levels[level_at(level) + j] = words[k];
        }
}

/* A tie is searched for as one word: 127 less the number of the first entry that has the first word, then 56 bits of
 * the second, whose low bits are 0. These words fall, too. */
void fc_discrete_gaussian_arrange_avx512(const fc_gaussian_table* table, uint64_t* arranged) {
    uint64_t ties[FC_GAUSSIAN_ENTRIES];
    for (int64_t k = 0, same = 0; k < table->entries; k++) {
        if (table->first[k] != table->first[same]) same = k;
        ties[k] = (uint64_t)(FC_GAUSSIAN_ENTRIES - same) << NUMBER | table->second[k] >> (WORD - NUMBER);
    }
    lay_out(table->first, table->entries, levels_of(table), arranged);
    lay_out(ties, table->entries, levels_of(table), arranged + LAID_OUT);
}

/* word[u] = entry j[u] of a level: the lower bits of j by permutation, the two upper bits of the widest levels, masks
 * here, by blends. Each register of the level is loaded once. */
INLINE void look_up(const uint64_t* levels, int level, const __m512i j[AT_ONCE], __mmask8 above[LEVELS][AT_ONCE],
                    __m512i word[AT_ONCE]) {
    const uint64_t* at = levels + level_at(level);
    if (level < 4) {
        for (int u = 0; u < AT_ONCE; u++) word[u] = _mm512_permutexvar_epi64(j[u], _mm512_load_si512(at));
        return;
    }
    const int parts = 1 << (level - 4);
    __m512i held[2][AT_ONCE];
#pragma GCC unroll 4
    for (int part = 0; part < parts; part++) {
        const __m512i low = _mm512_load_si512(at + 2 * LANES * part),
                      high = _mm512_load_si512(at + 2 * LANES * part + LANES);
#pragma GCC unroll 4
        for (int u = 0; u < AT_ONCE; u++) {
            word[u] = _mm512_permutex2var_epi64(low, j[u], high);
            if (part % 2) word[u] = _mm512_mask_mov_epi64(held[0][u], above[level - 5][u], word[u]);
            if (part == 3) word[u] = _mm512_mask_mov_epi64(held[1][u], above[0][u], word[u]);
            held[part % 2][u] = word[u];
        }
    }
}

/* How many words each of x is below, and the first one that it is not below. */
INLINE void search(const uint64_t* levels, int number, const __m512i x[AT_ONCE], __m512i count[AT_ONCE],
                   __m512i next[AT_ONCE]) {
    const __m512i one = _mm512_set1_epi64(1);
    __mmask8 below[LEVELS][AT_ONCE];
    for (int u = 0; u < AT_ONCE; u++) {
        count[u] = _mm512_setzero_si512();
        next[u] = _mm512_set1_epi64(-1); /* which no word is */
    }
#pragma GCC unroll 7
    for (int level = 0; level < number; level++) {
        __m512i word[AT_ONCE];
        look_up(levels, level, count, below, word);
#pragma GCC unroll 4
        for (int u = 0; u < AT_ONCE; u++) { /* bit by bit, the highest first: 1 where x is below the entry */
            below[level][u] = _mm512_cmplt_epu64_mask(x[u], word[u]);
            next[u] = _mm512_mask_mov_epi64(word[u], below[level][u], next[u]);
            count[u] = _mm512_add_epi64(count[u], count[u]);
            count[u] = _mm512_mask_add_epi64(count[u], below[level][u], count[u], one);
        }
    }
}

INLINE void draw_chunk(const fc_gaussian_table* table, const uint64_t* arranged, int levels, const uint64_t* words,
                       int64_t* out) {
    const uint64_t* w = words + table->draws * FC_GAUSSIAN_CHUNK;
    const __m512i most = _mm512_set1_epi64(FC_GAUSSIAN_ENTRIES);
    for (int i = 0; i < FC_GAUSSIAN_CHUNK; i += LANES * AT_ONCE) {
        __m512i x[AT_ONCE], count[AT_ONCE], next[AT_ONCE], sum[AT_ONCE], tied[AT_ONCE], times[AT_ONCE];
        for (int u = 0; u < AT_ONCE; u++) sum[u] = tied[u] = times[u] = _mm512_setzero_si512();
        for (int64_t draw = 0; draw < table->draws; draw++) {
            const __m128i sign = _mm_cvtsi64_si128(draw);
            const __m512i stride = _mm512_set1_epi64(table->strides[draw]);
            for (int u = 0; u < AT_ONCE; u++)
                x[u] = _mm512_loadu_si512(words + draw * FC_GAUSSIAN_CHUNK + i + LANES * u);
            search(arranged, levels, x, count, next);
            for (int u = 0; u < AT_ONCE; u++) {
                const __m512i minus =
                    _mm512_srai_epi64(_mm512_sll_epi64(_mm512_loadu_si512(w + i + LANES * u), sign), WORD - 1);
                const __m512i by = _mm512_sub_epi64(_mm512_xor_si512(stride, minus), minus);
                const __mmask8 tie = _mm512_cmpeq_epi64_mask(x[u], next[u]);
                sum[u] = _mm512_add_epi64(sum[u], _mm512_mul_epi32(count[u], by));
                tied[u] = _mm512_mask_mov_epi64(tied[u], tie, count[u]);
                times[u] = _mm512_mask_mov_epi64(times[u], tie, by);
            }
        }
        for (int u = 0; u < AT_ONCE; u++) {
            const __m512i low = _mm512_slli_epi64(_mm512_loadu_si512(w + i + LANES * u), FC_GAUSSIAN_DRAWS);
            x[u] = _mm512_or_si512(_mm512_slli_epi64(_mm512_sub_epi64(most, tied[u]), NUMBER),
                                   _mm512_srli_epi64(low, WORD - NUMBER));
        }
        search(arranged + LAID_OUT, levels, x, count, next);
        for (int u = 0; u < AT_ONCE; u++) {
            const __m512i more = _mm512_mul_epi32(_mm512_sub_epi64(count[u], tied[u]), times[u]);
            _mm512_storeu_si512(out + i + LANES * u, _mm512_add_epi64(sum[u], more));
        }
    }
}

void fc_discrete_gaussian_avx512(const fc_gaussian_table* table, const uint64_t* arranged, const uint64_t* words,
                                 int64_t* out) {
    if (levels_of(table) == FEWER) draw_chunk(table, arranged, FEWER, words, out);
    else draw_chunk(table, arranged, LEVELS, words, out);
}
