/* Draws from a table with AVX-512 F, 32 at a time: a search by halves whose every look-up is by permutations of
 * registers over the whole level: time does not depend on the index, and memory is read in one order. */
#include <immintrin.h>

#include "impl.h"

#define INLINE static inline __attribute__((always_inline))
enum { LANES = 8, AT_ONCE = 4, LEVELS = 7, ENTRIES = 1 << LEVELS };
_Static_assert(FC_GAUSSIAN_ENTRIES < ENTRIES, "a draw's count is below the number of leaves");

/* Level l halves the counts from j * 2h to (j + 1) * 2h - 1, h = 64 >> l, at entry j * 2h + h - 1: its words are at j
 * of the level, which begins at level_at(l). 0, which no draw is below, from the last entry on. */
typedef struct {
    _Alignas(FC_ALIGN) uint64_t first[LANES * 18], second[LANES * 18];
} by_level;

INLINE int level_at(int level) {
    static const int at[LEVELS] = {0, 1, 2, 3,
                                   4, 6, 10}; /* in registers: levels of 1, 2, 4, 8, 16, 32 and 64 entries */
    return LANES * at[level];
}

static void arrange(const fc_gaussian_table* table, by_level* t) {
    memset(t, 0, sizeof *t);
    for (int level = 0; level < LEVELS; level++)
        for (int64_t j = 0, half = ENTRIES / 2 >> level; j < 1 << level; j++) {
            const int64_t k = j * 2 * half + half - 1;
            if (k < table->entries) {
                t->first[level_at(level) + j] = table->first[k];
                t->second[level_at(level) + j] = table->second[k];
            }
        }
}

/* Entry j of a level: the lower bits of j by permutation, the two upper bits of the widest levels, masks here, by
 * blends. */
INLINE __m512i look_up(const uint64_t* words, int level, __m512i j, const __mmask8 above[LEVELS]) {
    const uint64_t* at = words + level_at(level);
    if (level < 4) return _mm512_permutexvar_epi64(j, _mm512_load_si512(at));
    __m512i part[4];
    const int parts = 1 << (level - 4);
    for (int p = 0; p < parts; p++)
        part[p] = _mm512_permutex2var_epi64(_mm512_load_si512(at + 2 * LANES * p), j,
                                            _mm512_load_si512(at + 2 * LANES * p + LANES));
    if (level == 4) return part[0];
    if (level == 5) return _mm512_mask_mov_epi64(part[0], above[0], part[1]);
    return _mm512_mask_mov_epi64(_mm512_mask_mov_epi64(part[0], above[1], part[1]), above[0],
                                 _mm512_mask_mov_epi64(part[2], above[1], part[3]));
}

void fc_discrete_gaussian_avx512(const fc_gaussian_table* table, const uint64_t* v, const uint64_t* w, int64_t stride,
                                 int64_t* sum) {
    const __m512i times = _mm512_set1_epi64(stride), one = _mm512_set1_epi64(1);
    by_level t;
    arrange(table, &t);
    for (int i = 0; i < FC_GAUSSIAN_CHUNK; i += LANES * AT_ONCE) {
        __m512i high[AT_ONCE], low[AT_ONCE], count[AT_ONCE];
        __mmask8 below[AT_ONCE][LEVELS];
        for (int u = 0; u < AT_ONCE; u++) {
            high[u] = _mm512_loadu_si512(v + i + LANES * u);
            low[u] = _mm512_slli_epi64(_mm512_loadu_si512(w + i + LANES * u), 1);
            count[u] = _mm512_setzero_si512();
        }
#pragma GCC unroll 7
        for (int level = 0; level < LEVELS; level++)
#pragma GCC unroll 4
            for (int u = 0; u < AT_ONCE;
                 u++) { /* bit by bit, the highest first: 1 where (high, low) is below the entry */
                const __m512i first = look_up(t.first, level, count[u], below[u]);
                const __m512i second = look_up(t.second, level, count[u], below[u]);
                const __m512i carried =
                    _mm512_mask_add_epi64(first, _mm512_cmplt_epu64_mask(low[u], second), first, one);
                below[u][level] = _mm512_cmplt_epu64_mask(high[u], carried);
                count[u] = _mm512_add_epi64(count[u], count[u]);
                count[u] = _mm512_mask_add_epi64(count[u], below[u][level], count[u], one);
            }
        for (int u = 0; u < AT_ONCE; u++) {
            const __m512i minus = _mm512_srai_epi64(_mm512_loadu_si512(w + i + LANES * u), 63);
            const __m512i drawn = _mm512_sub_epi64(_mm512_xor_si512(count[u], minus), minus);
            int64_t* to = sum + i + LANES * u;
            _mm512_storeu_si512(to, _mm512_add_epi64(_mm512_loadu_si512(to), _mm512_mul_epi32(drawn, times)));
        }
    }
}
