/* exact_sum with AVX2: 8 columns a step, each level read and written only where something is left for it. */
#include <immintrin.h>

#include "impl.h"
#include "widen_avx2.h"

/* *at += rest, and what that rounds off. */
INLINE __m256d two_sum(double* at, __m256d rest) {
    const __m256d old = _mm256_loadu_pd(at), sum = _mm256_add_pd(old, rest), part = _mm256_sub_pd(sum, old);
    _mm256_storeu_pd(at, sum);
    return _mm256_add_pd(_mm256_sub_pd(old, _mm256_sub_pd(sum, part)), _mm256_sub_pd(rest, part));
}

INLINE int any(__m256d a, __m256d b) {
    const __m256d zero = _mm256_setzero_pd();
    return _mm256_movemask_pd(_mm256_or_pd(_mm256_cmp_pd(a, zero, _CMP_NEQ_OQ), _mm256_cmp_pd(b, zero, _CMP_NEQ_OQ))) !=
           0;
}

INLINE int64_t cascade(const char* row, double weight, int64_t length, double* const* levels, int depth, fc_dtype type,
                       int* left) {
    const __m256d w = _mm256_set1_pd(weight);
    int64_t k = 0;
    for (; k + 8 <= length; k += 8) {
        const char* at = row + k * fc_itemsize(type);
        __m256d a = _mm256_mul_pd(widen4_f64(at, type), w),
                b = _mm256_mul_pd(widen4_f64(at + 4 * fc_itemsize(type), type), w);
        int l = 0, more = 1;
        for (; l < depth && more; l++) {
            a = two_sum(levels[l] + k, a);
            b = two_sum(levels[l] + k + 4, b);
            more = any(a, b);
        }
        if (more && l == depth && any(a, b)) {
            _mm256_storeu_pd(levels[depth] + k, a);
            _mm256_storeu_pd(levels[depth] + k + 4, b);
            *left = 1;
        }
    }
    return k;
}

#define EXACT(name, type)                                                                                              \
    int fc_exact_sum_##name##_avx2(const void* row, double weight, int64_t length, double* const* levels, int depth) { \
        int left = 0;                                                                                                  \
        const int64_t done = cascade(row, weight, length, levels, depth, type, &left);                                 \
        double* rest[FC_EXACT_MOST];                                                                                   \
        for (int l = 0; l <= depth; l++) rest[l] = levels[l] + done;                                                   \
        return left | fc_exact_sum_##name##_ref((const char*)row + done * fc_itemsize(type), weight, length - done,    \
                                                rest, depth);                                                          \
    }
EXACT(f32, FC_F32)
EXACT(f16, FC_F16)
EXACT(bf16, FC_BF16)
