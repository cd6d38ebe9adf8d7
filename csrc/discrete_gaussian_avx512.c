/* Draws from a table with AVX-512 F, 32 at a time: every BLOCKth entry is compared with all draws, which finds the
 * block of each, and then the entries of that block, which permutations of registers look up: their time does not
 * depend on the index, and memory is read in one order. */
#include <immintrin.h>

#include "impl.h"

#define INLINE static inline __attribute__((always_inline))
enum { LANES = 8, AT_ONCE = 4, BLOCK = 8, BLOCKS = 16 };
_Static_assert(FC_GAUSSIAN_ENTRIES < BLOCK * BLOCKS, "a draw above all entries stays inside the last block");

/* Entry j of block b at [j][b], by word; 0, which no draw is below, from the last entry on. */
typedef struct {
    _Alignas(FC_ALIGN) uint64_t first[BLOCK][BLOCKS], second[BLOCK][BLOCKS];
} by_block;

static void arrange(const fc_gaussian_table* table, by_block* t) {
    memset(t, 0, sizeof *t);
    for (int64_t k = 0; k < table->entries; k++) {
        t->first[k % BLOCK][k / BLOCK] = table->first[k];
        t->second[k % BLOCK][k / BLOCK] = table->second[k];
    }
}

/* count + 1 where (high, low) is below (first, second). */
INLINE __m512i count_below(__m512i count, __m512i high, __m512i low, __m512i first, __m512i second) {
    const __m512i one = _mm512_set1_epi64(1);
    const __m512i carried = _mm512_mask_add_epi64(first, _mm512_cmplt_epu64_mask(low, second), first, one);
    return _mm512_mask_add_epi64(count, _mm512_cmplt_epu64_mask(high, carried), count, one);
}

INLINE __m512i look_up(const uint64_t row[BLOCKS], __m512i block) {
    return _mm512_permutex2var_epi64(_mm512_load_si512(row), block, _mm512_load_si512(row + LANES));
}

void fc_discrete_gaussian_avx512(const fc_gaussian_table* table, const uint64_t* v, const uint64_t* w, int64_t stride,
                                 int64_t* sum) {
    const __m512i times = _mm512_set1_epi64(stride);
    by_block t;
    arrange(table, &t);
    for (int i = 0; i < FC_GAUSSIAN_CHUNK; i += LANES * AT_ONCE) {
        __m512i high[AT_ONCE], low[AT_ONCE], block[AT_ONCE], count[AT_ONCE];
        for (int u = 0; u < AT_ONCE; u++) {
            high[u] = _mm512_loadu_si512(v + i + LANES * u);
            low[u] = _mm512_slli_epi64(_mm512_loadu_si512(w + i + LANES * u), 1);
            block[u] = _mm512_setzero_si512();
        }
        for (int64_t b = 0; b < table->entries / BLOCK; b++) {
            const __m512i first = _mm512_set1_epi64((int64_t)t.first[BLOCK - 1][b]);
            const __m512i second = _mm512_set1_epi64((int64_t)t.second[BLOCK - 1][b]);
            for (int u = 0; u < AT_ONCE; u++) block[u] = count_below(block[u], high[u], low[u], first, second);
        }
        for (int u = 0; u < AT_ONCE; u++) count[u] = _mm512_slli_epi64(block[u], 3);
        for (int j = 0; j < BLOCK - 1; j++)
            for (int u = 0; u < AT_ONCE; u++)
                count[u] = count_below(count[u], high[u], low[u], look_up(t.first[j], block[u]),
                                       look_up(t.second[j], block[u]));
        for (int u = 0; u < AT_ONCE; u++) {
            const __m512i minus = _mm512_srai_epi64(_mm512_loadu_si512(w + i + LANES * u), 63);
            const __m512i drawn = _mm512_sub_epi64(_mm512_xor_si512(count[u], minus), minus);
            int64_t* to = sum + i + LANES * u;
            _mm512_storeu_si512(to, _mm512_add_epi64(_mm512_loadu_si512(to), _mm512_mul_epi32(drawn, times)));
        }
    }
}
