/* sign_counts with AVX2 and F16C: a comparison that holds is -1 in its lane. */
#include <immintrin.h>

#include "ask_x86.h"
#include "widen_avx2.h"

INLINE int signs(const void* const* rows, int count, const float* center, int64_t length, int32_t* votes, int first,
                 fc_dtype type, int64_t* done) {
    const __m256i magnitude = _mm256_set1_epi32(0x7fffffff), largest = _mm256_set1_epi32(0x7f7fffff);
    __m256i peak = _mm256_setzero_si256();
    const int amd = on_amd();
    int64_t k = 0;
    for (; k + 8 <= length; k += 8) {
        const __m256 middle = center ? _mm256_loadu_ps(center + k) : _mm256_setzero_ps();
        __m256i vote = first ? _mm256_setzero_si256() : _mm256_loadu_si256((const __m256i*)(votes + k));
        for (int r = 0; r < count; r++) {
            const char* at = (const char*)rows[r] + k * fc_itemsize(type);
            ask(at, amd);
            const __m256 x = widen8_f32(at, type);
            const __m256i above = _mm256_castps_si256(_mm256_cmp_ps(x, middle, _CMP_GT_OQ));
            const __m256i below = _mm256_castps_si256(_mm256_cmp_ps(x, middle, _CMP_LT_OQ));
            vote = _mm256_add_epi32(vote, _mm256_sub_epi32(below, above));
            peak = _mm256_max_epu32(peak, _mm256_and_si256(_mm256_castps_si256(x), magnitude));
        }
        _mm256_storeu_si256((__m256i*)(votes + k), vote);
    }
    *done = k;
    return _mm256_movemask_epi8(_mm256_cmpgt_epi32(peak, largest)) != 0;
}

#define SIGNS(name, type)                                                                                          \
    int fc_sign_counts_##name##_avx2(const void* const* rows, int count, const float* center, int64_t length,      \
                                     int32_t* votes, int first) {                                                  \
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
