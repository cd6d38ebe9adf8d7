/* Order statistics with AVX2 and F16C: integer keys, 8 columns of fp32 or 16 of a 16-bit type a vector. */
#include <immintrin.h>

#include "impl.h"
#include "order_ahead.h"

#define D __m256d
#define ZERO _mm256_setzero_pd()
#define ADD _mm256_add_pd
#define SUB _mm256_sub_pd
#define ABS(x) _mm256_andnot_pd(_mm256_set1_pd(-0.0), x)
#define HALVE(x) _mm256_mul_pd(x, _mm256_set1_pd(0.5))
#define LESS(a, b) _mm256_cmp_pd(a, b, _CMP_LT_OQ)
#define AT_MOST(a, b) _mm256_cmp_pd(a, b, _CMP_LE_OQ)
#define BOTH _mm256_and_pd
#define ADD_IF(mask, total, x) _mm256_add_pd(total, _mm256_and_pd(mask, x))
#define SPLAT _mm256_set1_pd
#define STORE _mm256_storeu_pd

/* The least and the greatest key seen: Inf and NaN lie at the ends of the order. */
typedef struct {
    __m256i low, high;
} state_32;
typedef state_32 state_16;

static inline state_32 begin_32(void) { return (state_32){_mm256_setzero_si256(), _mm256_setzero_si256()}; }
#define begin_16 begin_32

/* Keys of -Inf and less, of Inf and more. */
static inline int bad_f32(const state_32* state) {
    const __m256i low = _mm256_cmpgt_epi32(_mm256_set1_epi32(-0x7f800000 + 1), state->low);
    const __m256i high = _mm256_cmpgt_epi32(state->high, _mm256_set1_epi32(0x7f800000 - 1));
    return !!_mm256_movemask_epi8(_mm256_or_si256(low, high));
}
static inline int beyond(const state_16* state, int infinity) {
    const __m256i low = _mm256_cmpgt_epi16(_mm256_set1_epi16((short)(-infinity + 1)), state->low);
    const __m256i high = _mm256_cmpgt_epi16(state->high, _mm256_set1_epi16((short)(infinity - 1)));
    return !!_mm256_movemask_epi8(_mm256_or_si256(low, high));
}
static inline int bad_f16(const state_16* state) { return beyond(state, 0x7c00); }
static inline int bad_bf16(const state_16* state) { return beyond(state, 0x7f80); }

/* Sign and magnitude to a key, and back; -0 has the key of +0. */
static inline __m256i key_32(__m256i x) {
    return _mm256_sign_epi32(_mm256_and_si256(x, _mm256_set1_epi32(0x7fffffff)), x);
}
static inline __m256i key_16(__m256i x) { return _mm256_sign_epi16(_mm256_and_si256(x, _mm256_set1_epi16(0x7fff)), x); }
static inline __m256i bits_32(__m256i key) {
    return _mm256_or_si256(_mm256_abs_epi32(key), _mm256_and_si256(key, _mm256_set1_epi32((int)0x80000000)));
}
static inline __m256i bits_16(__m256i key) {
    return _mm256_or_si256(_mm256_abs_epi16(key), _mm256_and_si256(key, _mm256_set1_epi16((short)0x8000)));
}

static inline D widen_f32(__m256i key, int part) {
    const __m256i x = bits_32(key);
    return _mm256_cvtps_pd(_mm_castsi128_ps(part ? _mm256_extracti128_si256(x, 1) : _mm256_castsi256_si128(x)));
}
/* Four 16-bit numbers in the lower half. */
static inline __m128i quarter(__m256i key, int part) {
    const __m256i x = bits_16(key);
    const __m128i half = part & 2 ? _mm256_extracti128_si256(x, 1) : _mm256_castsi256_si128(x);
    return part & 1 ? _mm_unpackhi_epi64(half, half) : half;
}
static inline D widen_f16(__m256i key, int part) { return _mm256_cvtps_pd(_mm_cvtph_ps(quarter(key, part))); }
static inline D widen_bf16(__m256i key, int part) {
    return _mm256_cvtps_pd(_mm_castsi128_ps(_mm_slli_epi32(_mm_cvtepu16_epi32(quarter(key, part)), 16)));
}

#define V __m256i
#define CE(a, b)                    \
    {                               \
        const V lesser = MIN(a, b); \
        b = MAX(a, b);              \
        a = lesser;                 \
    }
#define CX CE
#define CHECK(a, b)
#define ENDS(least, most)                \
    state->low = MIN(state->low, least); \
    state->high = MAX(state->high, most);

#define KEY(name) name##_32
#define FN KEY
#define LANES 8
#define SIZE 4
#define PARTS 2
#define LOAD(i) key_32(_mm256_loadu_si256((const __m256i*)(rows[i] + offset)))
#define MIN _mm256_min_epi32
#define MAX _mm256_max_epi32
#define GREATEST _mm256_set1_epi32(0x7fffffff)
#define LEAST _mm256_set1_epi32((int)0x80000000)
#include "order_sort.h"
#undef FN
#define FN(name) name##_f32
#define WIDEN widen_f32
#include "order_statistics.h"
#undef KEY
#undef FN
#undef LANES
#undef SIZE
#undef PARTS
#undef LOAD
#undef MIN
#undef MAX
#undef GREATEST
#undef LEAST
#undef WIDEN

#define KEY(name) name##_16
#define FN KEY
#define LANES 16
#define SIZE 2
#define PARTS 4
#define LOAD(i) key_16(_mm256_loadu_si256((const __m256i*)(rows[i] + offset)))
#define MIN _mm256_min_epi16
#define MAX _mm256_max_epi16
#define GREATEST _mm256_set1_epi16(0x7fff)
#define LEAST _mm256_set1_epi16(-0x8000)
#include "order_sort.h"
#undef FN

#define FN(name) name##_f16
#define WIDEN widen_f16
#include "order_statistics.h"
#undef FN
#undef WIDEN

#define FN(name) name##_bf16
#define WIDEN widen_bf16
#include "order_statistics.h"

#define ORDER(name, lanes)                                                                                     \
    int fc_order_##name##_avx2(const void* const* rows, int64_t n, int64_t offset, int64_t length,             \
                               fc_statistic statistic, int64_t f, void* scratch, double* acc) {                \
        if (length < lanes) return fc_order_##name##_ref(rows, n, offset, length, statistic, f, scratch, acc); \
        return run_##name(rows, n, offset, length, statistic, f, scratch, acc);                                \
    }
ORDER(f32, 8)
ORDER(f16, 16)
ORDER(bf16, 16)
