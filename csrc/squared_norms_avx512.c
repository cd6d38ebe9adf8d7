/* squared_norms with AVX-512 F. bf16 lanes are held as evens and odds and put in order before they are folded. */
#include <immintrin.h>

#include "impl.h"

INLINE __m512d low(__m512 x) { return _mm512_cvtps_pd(_mm512_castps512_ps256(x)); }
INLINE __m512d high(__m512 x) {
    return _mm512_cvtps_pd(_mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(x), 1)));
}

/* 32 columns of a row as four vectors in column order (bf16: evens, then odds). */
INLINE void widen(const char* row, fc_dtype type, __m512d* x) {
    if (type == FC_F32) {
        for (int v = 0; v < 4; v++) x[v] = _mm512_cvtps_pd(_mm256_loadu_ps((const float*)(row + 32 * v)));
    } else if (type == FC_F16) {
        for (int v = 0; v < 2; v++) {
            const __m512 wide = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)(row + 32 * v)));
            x[2 * v] = low(wide);
            x[2 * v + 1] = high(wide);
        }
    } else {
        const __m512i pair = _mm512_loadu_si512(row);
        const __m512 even = _mm512_castsi512_ps(_mm512_slli_epi32(pair, 16));
        const __m512 odd = _mm512_castsi512_ps(_mm512_and_si512(pair, _mm512_set1_epi32((int)0xffff0000)));
        x[0] = low(even);
        x[1] = high(even);
        x[2] = low(odd);
        x[3] = high(odd);
    }
}

INLINE void widen_center(const float* center, fc_dtype type, __m512d* c) {
    if (type != FC_BF16) {
        for (int v = 0; v < 4; v++) c[v] = _mm512_cvtps_pd(_mm256_loadu_ps(center + 8 * v));
        return;
    }
    const __m512i evens = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odds = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
    const __m512 first = _mm512_loadu_ps(center), second = _mm512_loadu_ps(center + 16);
    const __m512 even = _mm512_permutex2var_ps(first, evens, second), odd = _mm512_permutex2var_ps(first, odds, second);
    c[0] = low(even);
    c[1] = high(even);
    c[2] = low(odd);
    c[3] = high(odd);
}

INLINE double block_norm(const char* row, const float* center, int64_t length, fc_dtype type) {
    const int size = fc_itemsize(type);
    __m512d lanes[4] = {_mm512_setzero_pd(), _mm512_setzero_pd(), _mm512_setzero_pd(), _mm512_setzero_pd()}, x[4], c[4];
    char padded[FC_NORM_LANES * 4] = {0};
    float padded_center[FC_NORM_LANES] = {0};
    for (int64_t k = 0; k < length; k += FC_NORM_LANES) {
        const char* at = row + size * k;
        const float* center_at = center ? center + k : NULL;
        if (length - k < FC_NORM_LANES) { /* zeros at the end add +0 to their lanes and change nothing */
            memcpy(padded, at, (size_t)(size * (length - k)));
            at = padded;
            if (center) {
                memcpy(padded_center, center_at, (size_t)(4 * (length - k)));
                center_at = padded_center;
            }
        }
        widen(at, type, x);
        if (center) {
            widen_center(center_at, type, c);
            for (int v = 0; v < 4; v++) x[v] = _mm512_sub_pd(x[v], c[v]);
        }
        for (int v = 0; v < 4; v++) lanes[v] = _mm512_add_pd(lanes[v], _mm512_mul_pd(x[v], x[v]));
    }
    if (type == FC_BF16) { /* evens 0..15 and odds 0..15 back to column order */
        const __m512i pair_low = _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11);
        const __m512i pair_high = _mm512_setr_epi64(4, 12, 5, 13, 6, 14, 7, 15);
        const __m512d even0 = lanes[0], even1 = lanes[1], odd0 = lanes[2], odd1 = lanes[3];
        lanes[0] = _mm512_permutex2var_pd(even0, pair_low, odd0);
        lanes[1] = _mm512_permutex2var_pd(even0, pair_high, odd0);
        lanes[2] = _mm512_permutex2var_pd(even1, pair_low, odd1);
        lanes[3] = _mm512_permutex2var_pd(even1, pair_high, odd1);
    }
    double folded[8];
    _mm512_storeu_pd(folded, _mm512_add_pd(_mm512_add_pd(lanes[0], lanes[2]), _mm512_add_pd(lanes[1], lanes[3])));
    for (int width = 4; width; width /= 2)
        for (int l = 0; l < width; l++) folded[l] += folded[l + width];
    return folded[0];
}

#define BLOCK_NORM(name, type)                                                                       \
    double fc_squared_norms_##name##_avx512(const void* row, const float* center, int64_t length) {  \
        return center ? block_norm(row, center, length, type) : block_norm(row, NULL, length, type); \
    }
BLOCK_NORM(f32, FC_F32)
BLOCK_NORM(f16, FC_F16)
BLOCK_NORM(bf16, FC_BF16)
