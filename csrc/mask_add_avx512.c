/* Quantising for mask_add with AVX-512 DQ, and the reduction modulo 2^bits. */
#include <immintrin.h>

#include "impl.h"

/* clamp(x * by, -most, most): of both sizes the smaller one, under the sign of the product. */
INLINE __m512d scaled(__m512d x, __m512d by, __m512d most) {
    enum { SMALLER_SIZE = 2 };
    return _mm512_range_pd(_mm512_mul_pd(x, by), most, SMALLER_SIZE);
}

INLINE void put(char* out, int64_t k, __m512d q, int wide) {
    if (wide) _mm512_storeu_si512(out + 8 * k, _mm512_cvtpd_epi64(q));
    else _mm256_storeu_si256((__m256i*)(void*)(out + 4 * k), _mm512_cvtpd_epi32(q));
}

/* x - x is 0 where x is finite, and NaN elsewhere. */
INLINE int quantise(const char* values, double scale, double limit, int64_t length, char* out, int is64, int wide,
                    int64_t* done) {
    const __m512d by = _mm512_set1_pd(scale), most = _mm512_set1_pd(limit);
    __m512 bad = _mm512_setzero_ps();
    int64_t k = 0;
    for (; !is64 && k + 16 <= length; k += 16) {
        const __m512 x = _mm512_loadu_ps(values + 4 * k);
        bad = _mm512_or_ps(bad, _mm512_sub_ps(x, x));
        put(out, k, scaled(_mm512_cvtps_pd(_mm512_castps512_ps256(x)), by, most), wide);
        put(out, k + 8, scaled(_mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1)), by, most), wide);
    }
    for (; is64 && k + 8 <= length; k += 8) {
        const __m512d x = _mm512_loadu_pd(values + 8 * k);
        bad = _mm512_or_ps(bad, _mm512_castpd_ps(_mm512_sub_pd(x, x)));
        put(out, k, scaled(x, by, most), wide);
    }
    *done = k;
    return _mm512_test_epi32_mask(_mm512_castps_si512(bad), _mm512_castps_si512(bad)) != 0;
}

#define QUANTISE(name, is64, bits)                                                                             \
    int fc_quantise_##name##_##bits##_avx512(const void* values, double scale, double limit, int64_t length,   \
                                             void* out) {                                                      \
        int64_t k;                                                                                             \
        const int bad = quantise(values, scale, limit, length, out, is64, bits == 64, &k);                     \
        return bad | fc_quantise_##name##_##bits##_ref((const char*)values + (is64 ? 8 : 4) * k, scale, limit, \
                                                       length - k, (char*)out + bits / 8 * k);                 \
    }
QUANTISE(f32, 0, 32)
QUANTISE(f32, 0, 64)
QUANTISE(f64, 1, 32)
QUANTISE(f64, 1, 64)

void fc_reduce_avx512(const void* in, uint64_t mask, int64_t bytes, void* out, int stream) {
    const __m512i low = _mm512_set1_epi64((int64_t)mask);
    const int aligned = stream && ((uintptr_t)out & 63) == 0;
    int64_t at = 0;
    for (; at + 64 <= bytes; at += 64) {
        const __m512i x = _mm512_and_si512(_mm512_loadu_si512((const char*)in + at), low);
        if (aligned) _mm512_stream_si512((void*)((char*)out + at), x);
        else _mm512_storeu_si512((char*)out + at, x);
    }
    fc_reduce_ref((const char*)in + at, mask, bytes - at, (char*)out + at, stream);
}
