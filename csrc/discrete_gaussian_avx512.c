/* Draws from a table with AVX-512 F and DQ, 64 at a time: a search by halves whose every look-up is by permutations of
 * registers over the whole level: time does not depend on the index, and memory is read in one order. */
#include <immintrin.h>

#include "discrete_gaussian.h"

enum { LANES = 16, AT_ONCE = 4, MOST_RECORDS = 16 };
_Static_assert((int)FC_GAUSSIAN_GROUP == LANES * (int)AT_ONCE, "ties come group by group");
_Static_assert((int)FC_GAUSSIAN_TIES <= (int)MOST_RECORDS && (int)FC_GAUSSIAN_TIES == 8, "in one register");
_Static_assert((int)FC_GAUSSIAN_ARRANGED == (int)LANES * 11, "levels of 1, 2, 4, ... 64 entries in registers");

static void arrange(const fc_gaussian_table* table, uint32_t* arranged) { fc_arrange(table, LANES, arranged); }

/* word[u] = entry j[u] of a level; the upper bit of j in the widest level, a mask here, by a blend. Each register of
 * the level is loaded once. */
INLINE void look_up(const uint32_t* levels, int level, const __m512i j[AT_ONCE], const __mmask16 above[AT_ONCE],
                    __m512i word[AT_ONCE]) {
    const uint32_t* at = levels + fc_level_at(level, LANES);
    if (level < 5) {
        for (int u = 0; u < AT_ONCE; u++) word[u] = _mm512_permutexvar_epi32(j[u], _mm512_load_si512(at));
        return;
    }
    for (int u = 0; u < AT_ONCE; u++)
        word[u] = _mm512_permutex2var_epi32(_mm512_load_si512(at), j[u], _mm512_load_si512(at + LANES));
    if (level == 5) return;
    for (int u = 0; u < AT_ONCE; u++)
        word[u] = _mm512_mask_mov_epi32(
            word[u], above[u],
            _mm512_permutex2var_epi32(_mm512_load_si512(at + 2 * LANES), j[u], _mm512_load_si512(at + 3 * LANES)));
}

/* How many first words each of x is below, and the first one that it is not below. */
INLINE void search(const uint32_t* levels, int number, const __m512i x[AT_ONCE], __m512i count[AT_ONCE],
                   __m512i next[AT_ONCE]) {
    const __m512i one = _mm512_set1_epi32(1);
    __mmask16 below[AT_ONCE], first[AT_ONCE];
    for (int u = 0; u < AT_ONCE; u++) count[u] = next[u] = _mm512_setzero_si512();
#pragma GCC unroll 7
    for (int level = 0; level < number; level++) {
        __m512i word[AT_ONCE];
        look_up(levels, level, count, first, word);
#pragma GCC unroll 4
        for (int u = 0; u < AT_ONCE; u++) { /* bit by bit, the highest first: 1 where x is below the entry */
            below[u] = _mm512_cmplt_epu32_mask(x[u], word[u]);
            if (level == 0) first[u] = below[u];
            next[u] = _mm512_mask_mov_epi32(word[u], below[u], next[u]);
            count[u] = _mm512_add_epi32(count[u], count[u]);
            count[u] = _mm512_mask_add_epi32(count[u], below[u], count[u], one);
        }
    }
}

/* Sums of 64 samples: narrow ones in 32 bits, wide ones in 64, the even lanes first. */
typedef struct {
    __m512i low[AT_ONCE], high[AT_ONCE];
} sums;

INLINE void add(sums* s, int u, int wide, __m512i count, __m512i stride, __mmask16 negative) {
    if (!wide) {
        const __m512i by = _mm512_mullo_epi32(count, stride);
        s->low[u] = _mm512_mask_sub_epi32(_mm512_add_epi32(s->low[u], by), negative, s->low[u], by);
        return;
    }
    count = _mm512_mask_sub_epi32(count, negative, _mm512_setzero_si512(), count);
    s->low[u] = _mm512_add_epi64(s->low[u], _mm512_mul_epi32(count, stride));
    s->high[u] = _mm512_add_epi64(s->high[u], _mm512_mul_epi32(_mm512_srli_epi64(count, 32), stride));
}

INLINE void put(const sums* s, int u, int wide, int64_t* out) {
    __m512i first = _mm512_cvtepi32_epi64(_mm512_castsi512_si256(s->low[u])),
            second = _mm512_cvtepi32_epi64(_mm512_extracti64x4_epi64(s->low[u], 1));
    if (wide) {
        const __m512i lower = _mm512_set_epi64(11, 3, 10, 2, 9, 1, 8, 0),
                      upper = _mm512_set_epi64(15, 7, 14, 6, 13, 5, 12, 4);
        first = _mm512_permutex2var_epi64(s->low[u], lower, s->high[u]);
        second = _mm512_permutex2var_epi64(s->low[u], upper, s->high[u]);
    }
    _mm512_storeu_si512(out, first);
    _mm512_storeu_si512(out + LANES / 2, second);
}

INLINE void draw_chunk(const fc_gaussian_table* table, const uint32_t* arranged, int levels, int wide,
                       const uint32_t* words, int64_t at, fc_gaussian_ties* ties, int64_t* out) {
    const __m512i lane =
        _mm512_slli_epi32(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0), FC_TIE_SAMPLE);
    const __m512i last = _mm512_set1_epi32(1), sign = _mm512_set1_epi32(1 << FC_TIE_SIGN);
    __m512i records = _mm512_loadu_si512(ties->records);
    uint32_t held = ties->count;
    for (int64_t i = 0; i < FC_GAUSSIAN_CHUNK; i += FC_GAUSSIAN_GROUP) {
        sums s;
        for (int u = 0; u < AT_ONCE; u++) s.low[u] = s.high[u] = _mm512_setzero_si512();
        for (int64_t draw = 0; draw < table->draws; draw++) {
            const __m512i stride = _mm512_set1_epi32((int)table->strides[draw]);
            const __m512i place = _mm512_or_si512(lane, _mm512_set1_epi32((int)fc_tie_at(at + i, draw)));
            __m512i x[AT_ONCE], count[AT_ONCE], next[AT_ONCE];
            for (int u = 0; u < AT_ONCE; u++)
                x[u] = _mm512_loadu_si512(words + draw * FC_GAUSSIAN_CHUNK + i + LANES * u);
            search(arranged, levels, x, count, next);
#pragma GCC unroll 4
            for (int u = 0; u < AT_ONCE; u++) {
                const __mmask16 negative = _mm512_test_epi32_mask(x[u], last);
                const __mmask16 tie = _mm512_cmple_epu32_mask(_mm512_sub_epi32(x[u], next[u]), last);
                __m512i record =
                    _mm512_or_si512(_mm512_or_si512(place, _mm512_set1_epi32((LANES * u) << FC_TIE_SAMPLE)),
                                    _mm512_slli_epi32(count[u], FC_TIE_COUNT));
                record = _mm512_mask_or_epi32(record, negative, record, sign);
                records = _mm512_mask_expand_epi32(records, (__mmask16)(0xffffu << held),
                                                   _mm512_maskz_compress_epi32(tie, record));
                held += (uint32_t)__builtin_popcount(tie);
                held = held < MOST_RECORDS ? held : MOST_RECORDS;
                add(&s, u, wide, count[u], stride, negative);
            }
        }
        for (int u = 0; u < AT_ONCE; u++) put(&s, u, wide, out + i + LANES * u);
    }
    _mm512_storeu_si512(ties->records, records);
    ties->count = held;
}

static void draw(const fc_gaussian_table* table, const uint32_t* arranged, const uint32_t* words, int64_t at,
                 fc_gaussian_ties* ties, int64_t* out) {
    int64_t most = 0;
    for (int64_t draw = 0; draw < table->draws; draw++) most += table->strides[draw] * table->entries;
    const int levels = fc_levels_of(table), wide = most > INT32_MAX;
    if (wide) draw_chunk(table, arranged, levels, 1, words, at, ties, out);
    else if (levels == 5) draw_chunk(table, arranged, 5, 0, words, at, ties, out);
    else if (levels == 6) draw_chunk(table, arranged, 6, 0, words, at, ties, out);
    else draw_chunk(table, arranged, 7, 0, words, at, ties, out);
}

static void settle(const fc_gaussian_table* table, const fc_gaussian_ties* ties, const uint64_t* words, int64_t* out) {
    const __m512i even = _mm512_set_epi64(14, 12, 10, 8, 6, 4, 2, 0), odd = _mm512_set_epi64(15, 13, 11, 9, 7, 5, 3, 1);
    const __m512i one = _mm512_set1_epi64(1), w[2] = {_mm512_loadu_si512(words), _mm512_loadu_si512(words + 8)};
    const __m512i high = _mm512_permutex2var_epi64(w[0], even, w[1]), low = _mm512_permutex2var_epi64(w[0], odd, w[1]);
    const __m512i records = _mm512_cvtepu32_epi64(_mm256_loadu_si256((const __m256i*)ties->records));
    const __m512i count =
        _mm512_and_si512(_mm512_srli_epi64(records, FC_TIE_COUNT), _mm512_set1_epi64(FC_GAUSSIAN_HEADS | 1));
    uint64_t sample[FC_GAUSSIAN_TIES], by[FC_GAUSSIAN_TIES];
    __m512i more = _mm512_setzero_si512();
    for (int64_t k = 0, same = 0; k < table->entries; k++) {
        const __m512i h = _mm512_set1_epi64((int64_t)table->rest[2 * k]),
                      l = _mm512_set1_epi64((int64_t)table->rest[2 * k + 1]);
        if (table->first[k] != table->first[same]) same = k; /* the first entry of this first word */
        const __mmask8 here = _mm512_cmpeq_epi64_mask(count, _mm512_set1_epi64(same));
        const __mmask8 below = _mm512_mask_cmplt_epu64_mask(here, high, h);
        const __mmask8 equal = _mm512_mask_cmpeq_epi64_mask(here, high, h);
        more = _mm512_mask_add_epi64(more, below | _mm512_mask_cmplt_epu64_mask(equal, low, l), more, one);
    }
    for (int t = 0; t < FC_GAUSSIAN_TIES; t++) fc_tie_of(table, ties->records[t], sample + t, by + t);
    const __m512i add = _mm512_mullo_epi64(more, _mm512_loadu_si512(by));
    const __m512i step = _mm512_set1_epi64(8);
    __m512i adds[FC_GAUSSIAN_TIES], places[FC_GAUSSIAN_TIES];
    __m512i i = _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0);
    for (int t = 0; t < FC_GAUSSIAN_TIES; t++) {
        adds[t] = _mm512_permutexvar_epi64(_mm512_set1_epi64(t), add);
        places[t] = _mm512_set1_epi64((int64_t)sample[t]);
    }
    for (int at = 0; at < FC_GAUSSIAN_BLOCK; at += 8, i = _mm512_add_epi64(i, step)) {
        __m512i x = _mm512_loadu_si512(out + at);
        for (int t = 0; t < FC_GAUSSIAN_TIES; t++)
            x = _mm512_mask_add_epi64(x, _mm512_cmpeq_epi64_mask(i, places[t]), x, adds[t]);
        _mm512_storeu_si512(out + at, x);
    }
}

const fc_gaussian_kernels fc_discrete_gaussian_avx512 = {arrange, draw, settle};
