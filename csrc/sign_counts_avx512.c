/* sign_counts with AVX-512 F: comparisons give masks, and votes are added under them. */
#include <immintrin.h>

#include "ask_x86.h"
#include "widen_avx512.h"

INLINE int signs(const void* const* rows, int count, const float* center, int64_t length, int32_t* votes, int first,
                 fc_dtype type, int64_t* done) {
    const __m512i one = _mm512_set1_epi32(1), magnitude = _mm512_set1_epi32(0x7fffffff);
    __m512i peak = _mm512_setzero_si512();
    const int amd = on_amd();
    int64_t k = 0;
    for (; k + 16 <= length; k += 16) {
        const __m512 middle = center ? _mm512_loadu_ps(center + k) : _mm512_setzero_ps();
        __m512i vote = first ? _mm512_setzero_si512() : _mm512_loadu_si512(votes + k);
        for (int r = 0; r < count; r++) {
            const char* at = (const char*)rows[r] + k * fc_itemsize(type);
            ask(at, amd);
            const __m512 x = widen16_f32(at, type);
            vote = _mm512_mask_add_epi32(vote, _mm512_cmp_ps_mask(x, middle, _CMP_GT_OQ), vote, one);
            vote = _mm512_mask_sub_epi32(vote, _mm512_cmp_ps_mask(x, middle, _CMP_LT_OQ), vote, one);
            peak = _mm512_max_epu32(peak, _mm512_and_si512(_mm512_castps_si512(x), magnitude));
        }
        _mm512_storeu_si512(votes + k, vote);
    }
    *done = k;
    return _mm512_cmpge_epu32_mask(peak, _mm512_set1_epi32(0x7f800000)) != 0;
}

#define SIGNS(name, type)                                                                                          \
    int fc_sign_counts_##name##_avx512(const void* const* rows, int count, const float* center, int64_t length,    \
                                       int32_t* votes, int first) {                                                \
        int64_t k;                                                                                                 \
        const int bad = signs(rows, count, center, length, votes, first, type, &k);                                \
        const void* rest[FC_INTEGER_GROUP];                                                                        \
        for (int r = 0; r < count; r++) rest[r] = (const char*)rows[r] + fc_itemsize(type) * k;                    \
        return bad |                                                                                               \
               fc_sign_counts_##name##_ref(rest, count, center ? center + k : NULL, length - k, votes + k, first); \
    }
SIGNS(f32, FC_F32)
SIGNS(f16, FC_F16)
SIGNS(bf16, FC_BF16)
