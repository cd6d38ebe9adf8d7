/* Order statistics with AVX-512 by minima and maxima of integer keys alone, as it is fast on AMD's processors (on
 * Intel's: order_avx512.c), and medians of many rows on any. */
#include <immintrin.h>

#include "impl.h"
#include "order_ahead.h"

#define D __m512d
#define ZERO _mm512_setzero_pd()
#define ADD _mm512_add_pd
#define SUB _mm512_sub_pd
#define ABS _mm512_abs_pd
#define HALVE(x) _mm512_mul_pd(x, _mm512_set1_pd(0.5))
#define LESS(a, b) _mm512_cmp_pd_mask(a, b, _CMP_LT_OQ)
#define AT_MOST(a, b) _mm512_cmp_pd_mask(a, b, _CMP_LE_OQ)
#define BOTH(a, b) ((__mmask8)((a) & (b)))
#define ADD_IF(mask, total, x) _mm512_mask_add_pd(total, mask, total, x)
#define SPLAT _mm512_set1_pd
#define STORE _mm512_storeu_pd

typedef struct {
    __m512i low, high;
} state_i32;
static inline state_i32 begin_i32(void) { return (state_i32){_mm512_setzero_si512(), _mm512_setzero_si512()}; }
/* Keys of -Inf and less, of Inf and more. */
static inline int bad_i32(const state_i32* state) {
    return _mm512_cmple_epi32_mask(state->low, _mm512_set1_epi32(-0x7f800000)) ||
           _mm512_cmpge_epi32_mask(state->high, _mm512_set1_epi32(0x7f800000));
}
/* The map between bits and keys is its own inverse, but for -0, which has the key of +0. */
static inline __m512i key_i32(__m512i x) {
    /* 0x78: |x| ^ (x & the sign) */
    return _mm512_ternarylogic_epi32(_mm512_abs_epi32(x), x, _mm512_set1_epi32((int)0x80000000), 0x78);
}
static inline D widen_i32(__m512i key, int part) {
    const __m512i x = key_i32(key);
    return _mm512_cvtps_pd(_mm256_castsi256_ps(part ? _mm512_extracti32x8_epi32(x, 1) : _mm512_castsi512_si256(x)));
}

#define KEY(name) name##_i32
#define FN KEY
#define V __m512i
#define LANES 16
#define SIZE 4
#define PARTS 2
#define LOAD(i) key_i32(_mm512_loadu_si512(rows[i] + offset))
#define MIN _mm512_min_epi32
#define MAX _mm512_max_epi32
#define CE(a, b)                   \
    {                              \
        const V least = MIN(a, b); \
        b = MAX(a, b);             \
        a = least;                 \
    }
#define CX CE
#define GREATEST _mm512_set1_epi32(0x7fffffff)
#define LEAST _mm512_set1_epi32(-0x7fffffff - 1)
#define CHECK(a, b)
#define ENDS(least, most)                \
    state->low = MIN(state->low, least); \
    state->high = MAX(state->high, most);
#define WIDEN widen_i32
#include "order_sort.h"
#include "order_statistics.h"
/* needs the networks above */
#include "order_select_avx512.h"

int fc_order_f32_keys_avx512(const void* const* rows, int64_t n, int64_t offset, int64_t length, fc_statistic statistic,
                             int64_t f, void* scratch, double* acc) {
    if (length < LANES) return fc_order_f32_ref(rows, n, offset, length, statistic, f, scratch, acc);
    if (statistic == FC_MEDIAN && n >= FC_ORDER_SELECT)
        return run_select(rows, n, offset, length, scratch, acc, FC_F32);
    return run_i32(rows, n, offset, length, statistic, f, scratch, acc);
}

#undef KEY
#undef FN
#undef V
#undef LANES
#undef SIZE
#undef PARTS
#undef LOAD
#undef MIN
#undef MAX
#undef GREATEST
#undef LEAST
#undef CHECK
#undef WIDEN
#include "order_16_avx512.h"

#define ORDER_16(name, dtype)                                                                                  \
    int fc_order_##name##_keys_avx512(const void* const* rows, int64_t n, int64_t offset, int64_t length,      \
                                      fc_statistic statistic, int64_t f, void* scratch, double* acc) {         \
        if (length < LANES) return fc_order_##name##_ref(rows, n, offset, length, statistic, f, scratch, acc); \
        if (statistic == FC_MEDIAN && n >= FC_ORDER_SELECT_16)                                                 \
            return run_select(rows, n, offset, length, scratch, acc, dtype);                                   \
        return run_##name(rows, n, offset, length, statistic, f, scratch, acc);                                \
    }
ORDER_16(f16, FC_F16)
ORDER_16(bf16, FC_BF16)
