/* Order statistics with AVX-512 F, BW: fp32 as floats, since on Intel's processors VMINPS
 * runs on two ports where VPMINSD has one (on AMD's it is the other way about: order_keys_avx512.c). A float
 * comparison takes -0 and +0 for equal, which no statistic shows: sums start at +0 and a zero result is +0. NaN, which
 * it would lose, is looked for as rows are loaded. 16-bit types as integer keys, 32 columns a
 * vector; there a comparison and two blends in place of some minima and maxima keep the second port busy. */
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

#define FN(name) name##_f32
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

int fc_order_f32_floats_avx512(const void* const* rows, int64_t n, int64_t offset, int64_t length,
                               fc_statistic statistic, int64_t f, void* scratch, double* acc) {
    if (length < 16) return fc_order_f32_ref(rows, n, offset, length, statistic, f, scratch, acc);
    return run_f32(rows, n, offset, length, statistic, f, scratch, acc);
}

/* The same bits either way. */
int fc_order_f32_avx512(const void* const* rows, int64_t n, int64_t offset, int64_t length, fc_statistic statistic,
                        int64_t f, void* scratch, double* acc) {
    fc_order_fn* const way = __builtin_cpu_is("amd") || (statistic == FC_MEDIAN && n >= FC_ORDER_SELECT)
                                 ? fc_order_f32_keys_avx512
                                 : fc_order_f32_floats_avx512;
    return way(rows, n, offset, length, statistic, f, scratch, acc);
}

typedef struct {
    __m512i low, high;
} state_16;
static inline state_16 begin_16(void) { return (state_16){_mm512_setzero_si512(), _mm512_setzero_si512()}; }
/* Keys of -Inf and less, of Inf and more. */
static inline int beyond(const state_16* state, int infinity) {
    return _mm512_cmple_epi16_mask(state->low, _mm512_set1_epi16((short)~infinity)) ||
           _mm512_cmpge_epi16_mask(state->high, _mm512_set1_epi16((short)infinity));
}
/* The map between bits and keys is its own inverse. */
static inline __m512i key_16(__m512i x) { return _mm512_xor_si512(x, _mm512_srli_epi16(_mm512_srai_epi16(x, 15), 1)); }

#define V __m512i
#define LANES 32
#define SIZE 2
#define PARTS 4
#define LOAD(i) key_16(_mm512_loadu_si512(rows[i] + offset))
#define MIN _mm512_min_epi16
#define MAX _mm512_max_epi16
#define CX(a, b)                                              \
    {                                                         \
        const __mmask32 swap = _mm512_cmpgt_epi16_mask(a, b); \
        const V lesser = _mm512_mask_blend_epi16(swap, a, b); \
        b = _mm512_mask_blend_epi16(swap, b, a);              \
        a = lesser;                                           \
    }
#define GREATEST _mm512_set1_epi16(0x7fff)
#define LEAST _mm512_set1_epi16(-0x8000)
#define CHECK(a, b)

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

typedef state_16 state_f16;
#define begin_f16 begin_16
static inline int bad_f16(const state_16* state) { return beyond(state, 0x7c00); }
static inline D widen_f16(__m512i x, int part) { return _mm512_cvtps_pd(_mm256_cvtph_ps(eighth(x, part))); }
#define FN(name) name##_f16
#define WIDEN widen_f16
#include "order_sort.h"
#undef FN
#undef WIDEN

int fc_order_f16_avx512(const void* const* rows, int64_t n, int64_t offset, int64_t length, fc_statistic statistic,
                        int64_t f, void* scratch, double* acc) {
    if (length < LANES) return fc_order_f16_ref(rows, n, offset, length, statistic, f, scratch, acc);
    if (statistic == FC_MEDIAN && n >= FC_ORDER_SELECT_16)
        return fc_order_f16_select_avx512(rows, n, offset, length, scratch, acc);
    return run_f16(rows, n, offset, length, statistic, f, scratch, acc);
}

typedef state_16 state_bf16;
#define begin_bf16 begin_16
static inline int bad_bf16(const state_16* state) { return beyond(state, 0x7f80); }
static inline D widen_bf16(__m512i x, int part) {
    return _mm512_cvtps_pd(_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(eighth(x, part)), 16)));
}
#define FN(name) name##_bf16
#define WIDEN widen_bf16
#include "order_sort.h"

int fc_order_bf16_avx512(const void* const* rows, int64_t n, int64_t offset, int64_t length, fc_statistic statistic,
                         int64_t f, void* scratch, double* acc) {
    if (length < LANES) return fc_order_bf16_ref(rows, n, offset, length, statistic, f, scratch, acc);
    if (statistic == FC_MEDIAN && n >= FC_ORDER_SELECT_16)
        return fc_order_bf16_select_avx512(rows, n, offset, length, scratch, acc);
    return run_bf16(rows, n, offset, length, statistic, f, scratch, acc);
}
