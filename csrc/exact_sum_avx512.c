/* exact_sum with AVX-512 F: 16 columns a step, each level read and written only where something is left for it. */
#include <immintrin.h>

#include "impl.h"
#include "widen_avx512.h"

/* *at += rest, and what that rounds off. */
INLINE __m512d two_sum(double* at, __m512d rest) {
    const __m512d old = _mm512_loadu_pd(at), sum = _mm512_add_pd(old, rest), part = _mm512_sub_pd(sum, old);
    _mm512_storeu_pd(at, sum);
    return _mm512_add_pd(_mm512_sub_pd(old, _mm512_sub_pd(sum, part)), _mm512_sub_pd(rest, part));
}

INLINE int any(__m512d a, __m512d b) {
    const __m512d zero = _mm512_setzero_pd();
    return (_mm512_cmp_pd_mask(a, zero, _CMP_NEQ_OQ) | _mm512_cmp_pd_mask(b, zero, _CMP_NEQ_OQ)) != 0;
}

INLINE int64_t cascade(const char* row, double weight, int64_t length, double* const* levels, int depth, fc_dtype type,
                       int* left) {
    const __m512d w = _mm512_set1_pd(weight);
    int64_t k = 0;
    for (; k + 16 <= length; k += 16) {
        const char* at = row + k * fc_itemsize(type);
        __m512d a = _mm512_mul_pd(widen8_f64(at, type), w),
                b = _mm512_mul_pd(widen8_f64(at + 8 * fc_itemsize(type), type), w);
        int l = 0, more = 1;
        for (; l < depth && more; l++) {
            a = two_sum(levels[l] + k, a);
            b = two_sum(levels[l] + k + 8, b);
            more = any(a, b);
        }
        if (more && l == depth && any(a, b)) {
            _mm512_storeu_pd(levels[depth] + k, a);
            _mm512_storeu_pd(levels[depth] + k + 8, b);
            *left = 1;
        }
    }
    return k;
}

#define EXACT(name, type)                                                                                           \
    int fc_exact_sum_##name##_avx512(const void* row, double weight, int64_t length, double* const* levels,         \
                                     int depth) {                                                                   \
        int left = 0;                                                                                               \
        const int64_t done = cascade(row, weight, length, levels, depth, type, &left);                              \
        double* rest[FC_EXACT_MOST];                                                                                \
        for (int l = 0; l <= depth; l++) rest[l] = levels[l] + done;                                                \
        return left | fc_exact_sum_##name##_ref((const char*)row + done * fc_itemsize(type), weight, length - done, \
                                                rest, depth);                                                       \
    }
EXACT(f32, FC_F32)
EXACT(f16, FC_F16)
EXACT(bf16, FC_BF16)
