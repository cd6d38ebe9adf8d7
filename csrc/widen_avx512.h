/* AVX-512 F: columns of rows in fp32, fp16 or bf16, widened; `type` is a constant at each call. */
#ifndef FEDCORE_WIDEN_AVX512_H
#define FEDCORE_WIDEN_AVX512_H
#include "widen_avx2.h"

/* 16 columns as fp32. */
INLINE __m512 widen16_f32(const char* row, fc_dtype type) {
    if (type == FC_F32) return _mm512_loadu_ps(row);
    const __m256i half = _mm256_loadu_si256((const __m256i*)row);
    if (type == FC_F16) return _mm512_cvtph_ps(half);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

/* 8 columns as fp64. */
INLINE __m512d widen8_f64(const char* row, fc_dtype type) { return _mm512_cvtps_pd(widen8_f32(row, type)); }
#endif
