/* Order statistics with AVX-512 F, BW, in two ways of the same bits. Here as it is fast on Intel's processors, where
 * VMINPS runs on two ports and integer minima on one: fp32 as floats, 16-bit keys with a comparison and two blends in
 * place of some minima and maxima, which keeps the second port busy. On AMD's, which run integer minima at twice the
 * rate of VMINPS and of comparisons, order_keys_avx512.c. A float comparison takes -0 and +0 for equal, which no
 * statistic shows: sums start at +0 and a zero result is +0. NaN, which it would lose, is looked for as rows are
 * loaded. */
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
    __m512 low, high;
    __mmask16 ordered;
} state_f32;
static inline state_f32 begin_f32(void) { return (state_f32){_mm512_setzero_ps(), _mm512_setzero_ps(), 0xffff}; }
static inline int bad_f32(const state_f32* state) {
    return state->ordered != 0xffff || _mm512_cmp_ps_mask(state->low, _mm512_set1_ps(-INFINITY), _CMP_EQ_OQ) |
                                           _mm512_cmp_ps_mask(state->high, _mm512_set1_ps(INFINITY), _CMP_EQ_OQ);
}
static inline D widen_f32(__m512 x, int part) {
    return _mm512_cvtps_pd(part ? _mm512_extractf32x8_ps(x, 1) : _mm512_castps512_ps256(x));
}

#define KEY(name) name##_f32
#define FN KEY
#define V __m512
#define LANES 16
#define SIZE 4
#define PARTS 2
#define LOAD(i) _mm512_loadu_ps(rows[i] + offset)
#define MIN _mm512_min_ps
#define MAX _mm512_max_ps
#define CE(a, b)                   \
    {                              \
        const V least = MIN(a, b); \
        b = MAX(a, b);             \
        a = least;                 \
    }
#define CX CE
#define GREATEST _mm512_set1_ps(INFINITY)
#define LEAST _mm512_set1_ps(-INFINITY)
#define CHECK(a, b) state->ordered = _mm512_mask_cmp_ps_mask(state->ordered, a, b, _CMP_ORD_Q);
#define ENDS(least, most)                \
    state->low = MIN(state->low, least); \
    state->high = MAX(state->high, most);
#define WIDEN widen_f32
#include "order_sort.h"
#include "order_statistics.h"

int fc_order_f32_floats_avx512(const void* const* rows, int64_t n, int64_t offset, int64_t length,
                               fc_statistic statistic, int64_t f, void* scratch, double* acc) {
    if (length < LANES) return fc_order_f32_ref(rows, n, offset, length, statistic, f, scratch, acc);
    return run_f32(rows, n, offset, length, statistic, f, scratch, acc);
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
#undef CX
#undef GREATEST
#undef LEAST
#undef CHECK
#undef WIDEN
#define CX(a, b)                                              \
    {                                                         \
        const __mmask32 swap = _mm512_cmpgt_epi16_mask(a, b); \
        const V lesser = _mm512_mask_blend_epi16(swap, a, b); \
        b = _mm512_mask_blend_epi16(swap, b, a);              \
        a = lesser;                                           \
    }
#include "order_16_avx512.h"

#define ORDER_16(name)                                                                                          \
    int fc_order_##name##_blends_avx512(const void* const* rows, int64_t n, int64_t offset, int64_t length,     \
                                        fc_statistic statistic, int64_t f, void* scratch, double* acc) {        \
        if (length < LANES) return fc_order_##name##_ref(rows, n, offset, length, statistic, f, scratch, acc);  \
        return run_##name(rows, n, offset, length, statistic, f, scratch, acc);                                 \
    }                                                                                                           \
    int fc_order_##name##_avx512(const void* const* rows, int64_t n, int64_t offset, int64_t length,            \
                                 fc_statistic statistic, int64_t f, void* scratch, double* acc) {               \
        fc_order_fn* const way = __builtin_cpu_is("amd") || (statistic == FC_MEDIAN && n >= FC_ORDER_SELECT_16) \
                                     ? fc_order_##name##_keys_avx512                                            \
                                     : fc_order_##name##_blends_avx512;                                         \
        return way(rows, n, offset, length, statistic, f, scratch, acc);                                        \
    }
ORDER_16(f16)
ORDER_16(bf16)

int fc_order_f32_avx512(const void* const* rows, int64_t n, int64_t offset, int64_t length, fc_statistic statistic,
                        int64_t f, void* scratch, double* acc) {
    fc_order_fn* const way = __builtin_cpu_is("amd") || (statistic == FC_MEDIAN && n >= FC_ORDER_SELECT)
                                 ? fc_order_f32_keys_avx512
                                 : fc_order_f32_floats_avx512;
    return way(rows, n, offset, length, statistic, f, scratch, acc);
}
