/* clip_round with AVX-512 F. */
#include <immintrin.h>

#include "impl.h"
#include "widen_avx512.h"

INLINE int64_t round_row(const char* row, double scale, int64_t length, int32_t* out, fc_dtype type, int64_t* done) {
    const __m512d by = _mm512_set1_pd(scale);
    __m512i squares = _mm512_setzero_si512();
    int64_t k = 0;
    for (; k + 8 <= length; k += 8) {
        const __m256 x = widen8_f32(row + k * fc_itemsize(type), type);
        const __m256i q = _mm512_cvtpd_epi32(_mm512_mul_pd(_mm512_cvtps_pd(x), by));
        _mm256_storeu_si256((__m256i*)(out + k), q);
        const __m512i wide = _mm512_cvtepi32_epi64(q);
        squares = _mm512_add_epi64(squares, _mm512_mul_epi32(wide, wide));
    }
    *done = k;
    return _mm512_reduce_add_epi64(squares);
}

#define ROUND(name, type)                                                                                        \
    int64_t fc_clip_round_##name##_avx512(const void* row, double scale, int64_t length, int32_t* out) {         \
        int64_t k;                                                                                               \
        const int64_t squares = round_row(row, scale, length, out, type, &k);                                    \
        return squares +                                                                                         \
               fc_clip_round_##name##_ref((const char*)row + k * fc_itemsize(type), scale, length - k, out + k); \
    }
ROUND(f32, FC_F32)
ROUND(f16, FC_F16)
ROUND(bf16, FC_BF16)
