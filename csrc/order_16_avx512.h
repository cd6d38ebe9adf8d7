/* Order statistics of 16-bit types with AVX-512, 32 columns a vector. The including file defines D and all for
 * sums in fp64 (order_statistics.h), CE, ENDS, and CX (order_sort.h), which is best done in different ways on different
 * processors. */
#include <immintrin.h>

typedef struct {
    __m512i low, high;
} state_16;
static inline state_16 begin_16(void) { return (state_16){_mm512_setzero_si512(), _mm512_setzero_si512()}; }
/* Keys of -Inf and less, of Inf and more. */
static inline int beyond(const state_16* state, int infinity) {
    return _mm512_cmple_epi16_mask(state->low, _mm512_set1_epi16((short)-infinity)) ||
           _mm512_cmpge_epi16_mask(state->high, _mm512_set1_epi16((short)infinity));
}
/* The map between bits and keys is its own inverse, but for -0, which has the key of +0. */
static inline __m512i key_16(__m512i x) {
    /* 0x78: |x| ^ (x & the sign) */
    return _mm512_ternarylogic_epi32(_mm512_abs_epi16(x), x, _mm512_set1_epi16((short)0x8000), 0x78);
}

#define V __m512i
#define LANES 32
#define SIZE 2
#define PARTS 4
#define LOAD(i) key_16(_mm512_loadu_si512(rows[i] + offset))
#define MIN _mm512_min_epi16
#define MAX _mm512_max_epi16
#define GREATEST _mm512_set1_epi16(0x7fff)
#define LEAST _mm512_set1_epi16(-0x8000)
#define CHECK(a, b)
#define KEY(name) name##_16
#define FN KEY
#include "order_sort.h"
#undef FN

static inline __m128i eighth(__m512i key, int part) {
    const __m512i x = key_16(key);
    switch (part) {
        case 0:
            return _mm512_castsi512_si128(x);
        case 1:
            return _mm512_extracti32x4_epi32(x, 1);
        case 2:
            return _mm512_extracti32x4_epi32(x, 2);
        default:
            return _mm512_extracti32x4_epi32(x, 3);
    }
}

static inline int bad_f16(const state_16* state) { return beyond(state, 0x7c00); }
static inline D widen_f16(__m512i x, int part) { return _mm512_cvtps_pd(_mm256_cvtph_ps(eighth(x, part))); }
#define FN(name) name##_f16
#define WIDEN widen_f16
#include "order_statistics.h"
#undef FN
#undef WIDEN

static inline int bad_bf16(const state_16* state) { return beyond(state, 0x7f80); }
static inline D widen_bf16(__m512i x, int part) {
    return _mm512_cvtps_pd(_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(eighth(x, part)), 16)));
}
#define FN(name) name##_bf16
#define WIDEN widen_bf16
#include "order_statistics.h"
