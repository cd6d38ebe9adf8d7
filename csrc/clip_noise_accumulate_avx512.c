/* clip_noise_accumulate with AVX-512 F and DQ. */
#include <immintrin.h>

#include "ask_x86.h"
#include "widen_avx512.h"

INLINE int64_t accumulate(const void* const* rows, const double* scales, int count, int64_t length, int64_t* sum,
                          fc_dtype type) {
    const int amd = on_amd();
    int64_t k = 0;
    for (; k + 16 <= length; k += 16) {
        __m512i low = _mm512_loadu_si512(sum + k), high = _mm512_loadu_si512(sum + k + 8);
        for (int r = 0; r < count; r++) {
            const char* at = (const char*)rows[r] + k * fc_itemsize(type);
            const __m512d by = _mm512_set1_pd(scales[r]);
            ask(at, amd);
            low = _mm512_add_epi64(low, _mm512_cvtpd_epi64(_mm512_mul_pd(widen8_f64(at, type), by)));
            high = _mm512_add_epi64(
                high, _mm512_cvtpd_epi64(_mm512_mul_pd(widen8_f64(at + 8 * fc_itemsize(type), type), by)));
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
        const void* rest[FC_INTEGER_GROUP];                                                                 \
        for (int r = 0; r < count; r++) rest[r] = (const char*)rows[r] + fc_itemsize(type) * k;             \
        fc_clip_noise_accumulate_##name##_ref(rest, scales, count, length - k, sum + k);                    \
    }
ACCUMULATE(f32, FC_F32)
ACCUMULATE(f16, FC_F16)
ACCUMULATE(bf16, FC_BF16)
