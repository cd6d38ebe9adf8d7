/* clip_round with AVX2 and F16C. */
#include <immintrin.h>

#include "impl.h"
#include "widen_avx2.h"

INLINE __m256i put(__m128 x, __m256d scale, int32_t* out) {
    const __m128i q = _mm256_cvtpd_epi32(_mm256_mul_pd(_mm256_cvtps_pd(x), scale));
    _mm_storeu_si128((__m128i*)out, q);
    const __m256i wide = _mm256_cvtepi32_epi64(q);
    return _mm256_mul_epi32(wide, wide);
}

INLINE int64_t round_row(const char* row, double scale, int64_t length, int32_t* out, fc_dtype type, int64_t* done) {
    const __m256d by = _mm256_set1_pd(scale);
    __m256i squares = _mm256_setzero_si256();
    int64_t k = 0;
    for (; k + 8 <= length; k += 8) {
        const __m256 x = widen8_f32(row + k * fc_itemsize(type), type);
        squares = _mm256_add_epi64(squares, put(_mm256_castps256_ps128(x), by, out + k));
        squares = _mm256_add_epi64(squares, put(_mm256_extractf128_ps(x, 1), by, out + k + 4));
    }
    int64_t lanes[4];
    _mm256_storeu_si256((__m256i*)lanes, squares);
    *done = k;
    return lanes[0] + lanes[1] + lanes[2] + lanes[3];
}

#define ROUND(name, type)                                                                                        \
    int64_t fc_clip_round_##name##_avx2(const void* row, double scale, int64_t length, int32_t* out) {           \
        int64_t k;                                                                                               \
        const int64_t squares = round_row(row, scale, length, out, type, &k);                                    \
        return squares +                                                                                         \
               fc_clip_round_##name##_ref((const char*)row + k * fc_itemsize(type), scale, length - k, out + k); \
    }
ROUND(f32, FC_F32)
ROUND(f16, FC_F16)
ROUND(bf16, FC_BF16)
