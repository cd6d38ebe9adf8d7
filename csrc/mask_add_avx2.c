/* Quantising to 32 bits for mask_add with AVX2, and the reduction modulo 2^bits. AVX2 has no conversion to 64 bits. */
#include <immintrin.h>

#include "impl.h"

/* 4 elements as fp64; x - x is 0 where x is finite, and NaN elsewhere. */
INLINE __m256d widen(const char* values, int64_t k, int is64) {
    if (is64) return _mm256_loadu_pd((const double*)(const void*)(values + 8 * k));
    return _mm256_cvtps_pd(_mm_loadu_ps((const float*)(const void*)(values + 4 * k)));
}

INLINE int quantise(const char* values, double scale, double limit, int64_t length, int32_t* out, int is64,
                    int64_t* done) {
    const __m256d by = _mm256_set1_pd(scale), most = _mm256_set1_pd(limit), least = _mm256_set1_pd(-limit);
    __m256d bad = _mm256_setzero_pd();
    int64_t k = 0;
    for (; k + 4 <= length; k += 4) {
        const __m256d x = widen(values, k, is64);
        bad = _mm256_or_pd(bad, _mm256_sub_pd(x, x));
        const __m256d q = _mm256_min_pd(_mm256_max_pd(_mm256_mul_pd(x, by), least), most);
        _mm_storeu_si128((__m128i*)(void*)(out + k), _mm256_cvtpd_epi32(q));
    }
    *done = k;
    return !_mm256_testz_si256(_mm256_castpd_si256(bad), _mm256_castpd_si256(bad));
}

#define QUANTISE(name, is64)                                                                                         \
    int fc_quantise_##name##_32_avx2(const void* values, double scale, double limit, int64_t length, void* out) {    \
        int64_t k;                                                                                                   \
        const int bad = quantise(values, scale, limit, length, out, is64, &k);                                       \
        return bad | fc_quantise_##name##_32_ref((const char*)values + (is64 ? 8 : 4) * k, scale, limit, length - k, \
                                                 (char*)out + 4 * k);                                                \
    }
QUANTISE(f32, 0)
QUANTISE(f64, 1)

void fc_reduce_avx2(const void* in, uint64_t mask, int64_t bytes, void* out, int stream) {
    const __m256i low = _mm256_set1_epi64x((int64_t)mask);
    const int aligned = stream && ((uintptr_t)out & 31) == 0;
    int64_t at = 0;
    for (; at + 32 <= bytes; at += 32) {
        const __m256i x =
            _mm256_and_si256(_mm256_loadu_si256((const __m256i*)(const void*)((const char*)in + at)), low);
        if (aligned) _mm256_stream_si256((__m256i*)(void*)((char*)out + at), x);
        else _mm256_storeu_si256((__m256i*)(void*)((char*)out + at), x);
    }
    fc_reduce_ref((const char*)in + at, mask, bytes - at, (char*)out + at, stream);
}
