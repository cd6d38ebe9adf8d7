/* clip_noise_accumulate with AVX-512 F and DQ. */
#include <immintrin.h>

#include "impl.h"

#define INLINE static inline __attribute__((always_inline))
enum { AHEAD = 1024 }; /* bytes: how far ahead of the load a line is asked for */

/* 8 columns as fp64. */
INLINE __m512d widen(const char* row, fc_dtype type) {
    if (type == FC_F32) return _mm512_cvtps_pd(_mm256_loadu_ps((const float*)row));
    const __m128i half = _mm_loadu_si128((const __m128i*)row);
    if (type == FC_F16) return _mm512_cvtps_pd(_mm256_cvtph_ps(half));
    return _mm512_cvtps_pd(_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16)));
}

INLINE int64_t accumulate(const void* const* rows, const double* scales, int count, int64_t length, int64_t* sum,
                          fc_dtype type) {
    int64_t k = 0;
    for (; k + 16 <= length; k += 16) {
        __m512i low = _mm512_loadu_si512(sum + k), high = _mm512_loadu_si512(sum + k + 8);
        for (int r = 0; r < count; r++) {
            const char* at = (const char*)rows[r] + k * fc_itemsize(type);
            const __m512d by = _mm512_set1_pd(scales[r]);
            _mm_prefetch(at + AHEAD, _MM_HINT_T0);
            low = _mm512_add_epi64(low, _mm512_cvtpd_epi64(_mm512_mul_pd(widen(at, type), by)));
            high =
                _mm512_add_epi64(high, _mm512_cvtpd_epi64(_mm512_mul_pd(widen(at + 8 * fc_itemsize(type), type), by)));
        }
        _mm512_storeu_si512(sum + k, low);
        _mm512_storeu_si512(sum + k + 8, high);
    }
    return k;
}

#define ACCUMULATE(name, type)                                                                              \
    void fc_clip_noise_accumulate_##name##_avx512(const void* const* rows, const double* scales, int count, \
                                                  int64_t length, int64_t* sum) {                           \
        const int64_t k = accumulate(rows, scales, count, length, sum, type);                               \
        const void* rest[FC_WS_GROUP];                                                                      \
        for (int r = 0; r < count; r++) rest[r] = (const char*)rows[r] + fc_itemsize(type) * k;             \
        fc_clip_noise_accumulate_##name##_ref(rest, scales, count, length - k, sum + k);                    \
    }
ACCUMULATE(f32, FC_F32)
ACCUMULATE(f16, FC_F16)
ACCUMULATE(bf16, FC_BF16)
