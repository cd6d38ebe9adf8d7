/* clip_noise_accumulate with AVX2 and F16C, which cannot convert fp64 to 64-bit integers: added to 1.5 * 2^52, a number
 * below 2^51 is rounded to an integer that stands in the low bits, above a constant that is taken off again. */
#include <immintrin.h>

#include "ask_x86.h"
#include "widen_avx2.h"

INLINE int64_t accumulate(const void* const* rows, const double* scales, int count, int64_t length, int64_t* sum,
                          fc_dtype type) {
    const __m256d shift = _mm256_set1_pd(0x1.8p52);
    const __m256i bias = _mm256_castpd_si256(shift);
    const int amd = on_amd();
    int64_t k = 0;
    for (; k + 8 <= length; k += 8) {
        __m256i low = _mm256_loadu_si256((const __m256i*)(sum + k));
        __m256i high = _mm256_loadu_si256((const __m256i*)(sum + k + 4));
        for (int r = 0; r < count; r++) {
            const char* at = (const char*)rows[r] + k * fc_itemsize(type);
            const __m256d by = _mm256_set1_pd(scales[r]);
            ask(at, amd);
            const __m256d a = _mm256_fmadd_pd(widen4_f64(at, type), by, shift);
            const __m256d b = _mm256_fmadd_pd(widen4_f64(at + 4 * fc_itemsize(type), type), by, shift);
            low = _mm256_add_epi64(low, _mm256_sub_epi64(_mm256_castpd_si256(a), bias));
            high = _mm256_add_epi64(high, _mm256_sub_epi64(_mm256_castpd_si256(b), bias));
        }
        _mm256_storeu_si256((__m256i*)(sum + k), low);
        _mm256_storeu_si256((__m256i*)(sum + k + 4), high);
    }
    return k;
}

#define ACCUMULATE(name, type)                                                                            \
    void fc_clip_noise_accumulate_##name##_avx2(const void* const* rows, const double* scales, int count, \
                                                int64_t length, int64_t* sum) {                           \
        const int64_t k = accumulate(rows, scales, count, length, sum, type);                             \
        const void* rest[FC_INTEGER_GROUP];                                                               \
        for (int r = 0; r < count; r++) rest[r] = (const char*)rows[r] + fc_itemsize(type) * k;           \
        fc_clip_noise_accumulate_##name##_ref(rest, scales, count, length - k, sum + k);                  \
    }
ACCUMULATE(f32, FC_F32)
ACCUMULATE(f16, FC_F16)
ACCUMULATE(bf16, FC_BF16)
