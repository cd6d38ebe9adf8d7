/* Packing of gram where its chains are lanes of vectors: of each row, vectors of LANES columns, APART floats apart from
 * place(row) on, both of which the file that includes this defines. */
#ifndef FEDCORE_GRAM_ROWS_H
#define FEDCORE_GRAM_ROWS_H
#include <immintrin.h>

#include "impl.h"
#include "widen_avx2.h"

enum { LANES = FC_GRAM_CHAINS, LINE = 64 };

/* A row's differences, and the largest of their magnitudes as bits, in vectors of LANES columns `apart` floats apart;
 * the row at `next` is asked for. */
INLINE uint32_t pack_row(const char* row, const char* next, const float* center, int64_t length, float* to,
                         int64_t apart, fc_dtype type) {
    const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
    const int size = fc_itemsize(type);
    const int64_t whole = length / LANES * LANES;
    __m256i most = _mm256_setzero_si256();
    for (int64_t k = 0; k < whole; k += LANES, to += apart) {
        const __m256 x =
            _mm256_sub_ps(widen8_f32(row + size * k, type), center ? _mm256_loadu_ps(center + k) : _mm256_setzero_ps());
        if (size * k % LINE == 0) _mm_prefetch(next + size * k, _MM_HINT_T0);
        most = _mm256_max_epu32(most, _mm256_and_si256(_mm256_castps_si256(x), magnitude));
        _mm256_store_ps(to, x);
    }
    if (whole < length) { /* zeros to the end of the vector: columns of no row */
        float rest[LANES] = {0};
        for (int64_t k = whole; k < length; k++) {
            const float x = type == FC_F32   ? fc_load_f32(row, k)
                            : type == FC_F16 ? fc_load_f16(row, k)
                                             : fc_load_bf16(row, k);
            rest[k - whole] = x - (center ? center[k] : 0.0f);
        }
        const __m256 x = _mm256_loadu_ps(rest);
        most = _mm256_max_epu32(most, _mm256_and_si256(_mm256_castps_si256(x), magnitude));
        _mm256_store_ps(to, x);
    }
    uint32_t lanes[LANES], peak = 0;
    _mm256_storeu_si256((__m256i*)lanes, most);
    for (int i = 0; i < LANES; i++) peak = lanes[i] > peak ? lanes[i] : peak;
    return peak;
}

#define PACK(name, type, isa)                                                                                 \
    void fc_gram_pack_##name##_##isa(const void* const* rows, int count, const float* center, int64_t length, \
                                     float* panel, uint32_t* peak) {                                          \
        memset(peak, 0, FC_GRAM_PANEL * sizeof *peak);                                                        \
        for (int r = 0; r < count; r++) {                                                                     \
            const char *row = rows[r], *next = rows[r + FC_GRAM_NEXT];                                        \
            peak[r] = center ? pack_row(row, next, center, length, panel + place(r), APART, type)             \
                             : pack_row(row, next, NULL, length, panel + place(r), APART, type);              \
        }                                                                                                     \
    }
#endif
