/* squared_norms with AVX2 and F16C: eight vectors of four lanes, in column order. */
#include <immintrin.h>

#include "impl.h"
#include "widen_avx2.h"

INLINE void widen8(const char* row, fc_dtype type, __m256d* x) {
    const __m256 wide = widen8_f32(row, type);
    x[0] = _mm256_cvtps_pd(_mm256_castps256_ps128(wide));
    x[1] = _mm256_cvtps_pd(_mm256_extractf128_ps(wide, 1));
}

INLINE double block_norm(const char* row, const float* center, int64_t length, fc_dtype type) {
    const int size = fc_itemsize(type);
    __m256d lanes[8], x[2], c[2];
    for (int v = 0; v < 8; v++) lanes[v] = _mm256_setzero_pd();
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
        for (int v = 0; v < 8; v += 2) {
            widen8(at + size * 4 * v, type, x);
            if (center) {
                widen8((const char*)(center_at + 4 * v), FC_F32, c);
                x[0] = _mm256_sub_pd(x[0], c[0]);
                x[1] = _mm256_sub_pd(x[1], c[1]);
            }
            lanes[v] = _mm256_add_pd(lanes[v], _mm256_mul_pd(x[0], x[0]));
            lanes[v + 1] = _mm256_add_pd(lanes[v + 1], _mm256_mul_pd(x[1], x[1]));
        }
    }
    for (int width = 4; width; width /= 2)
        for (int v = 0; v < width; v++) lanes[v] = _mm256_add_pd(lanes[v], lanes[v + width]);
    double folded[4];
    _mm256_storeu_pd(folded, lanes[0]);
    return (folded[0] + folded[2]) + (folded[1] + folded[3]);
}

#define BLOCK_NORM(name, type)                                                                       \
    double fc_squared_norms_##name##_avx2(const void* row, const float* center, int64_t length) {    \
        return center ? block_norm(row, center, length, type) : block_norm(row, NULL, length, type); \
    }
BLOCK_NORM(f32, FC_F32)
BLOCK_NORM(f16, FC_F16)
BLOCK_NORM(bf16, FC_BF16)
