/* AVX2: columns of rows in fp32, fp16 or bf16, widened; `type` is a constant at each call. */
#ifndef FEDCORE_WIDEN_AVX2_H
#define FEDCORE_WIDEN_AVX2_H
#include <immintrin.h>

#include "impl.h"

/* 8 columns as fp32. */
INLINE __m256 widen8_f32(const char* row, fc_dtype type) {
    if (type == FC_F32) return _mm256_loadu_ps((const float*)row);
    const __m128i half = _mm_loadu_si128((const __m128i*)row);
    if (type == FC_F16) return _mm256_cvtph_ps(half);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

/* 4 columns as fp64. */
INLINE __m256d widen4_f64(const char* row, fc_dtype type) {
    if (type == FC_F32) return _mm256_cvtps_pd(_mm_loadu_ps((const float*)row));
    const __m128i half = _mm_loadl_epi64((const __m128i*)row);
    if (type == FC_F16) return _mm256_cvtps_pd(_mm_cvtph_ps(half));
    return _mm256_cvtps_pd(_mm_castsi128_ps(_mm_slli_epi32(_mm_cvtepu16_epi32(half), 16)));
}
#endif
