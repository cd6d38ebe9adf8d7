/* Products in GF(2^8) with AVX2: a product by a public factor is linear, so it is the sum of what the factor makes of
 * the low and of the high half of each byte: two tables of 16 entries, which lie in registers and are looked up by
 * shuffles, in one time for all bytes. */
#include <immintrin.h>

#include "impl.h"

typedef struct {
    __m256i low, high;
} table;

/* The factor times 0 to 15, and times 0, 16, ..., 240. */
static table table_of(uint8_t factor) {
    uint8_t made[2][16] = {{0}, {0}};
    unsigned power = factor;
    for (int bit = 0; bit < 8; bit++) {
        uint8_t* half = made[bit / 4];
        for (int k = 0; k < 1 << bit % 4; k++) half[(1 << bit % 4) + k] = (uint8_t)(half[k] ^ power);
        power = power << 1 ^ (0x11bu & (0u - (power >> 7)));
    }
    return (table){_mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)(const void*)made[0])),
                   _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)(const void*)made[1]))};
}

INLINE __m256i times(table t, __m256i x) {
    const __m256i half = _mm256_set1_epi8(15);
    return _mm256_xor_si256(_mm256_shuffle_epi8(t.low, _mm256_and_si256(x, half)),
                            _mm256_shuffle_epi8(t.high, _mm256_and_si256(_mm256_srli_epi16(x, 4), half)));
}

INLINE __m256i load(const uint8_t* x) { return _mm256_loadu_si256((const __m256i*)(const void*)x); }

void fc_gf_sum_avx2(const uint8_t* weights, const uint8_t* x, int64_t rows, int64_t stride, int64_t bytes,
                    uint8_t* out) {
    table tables[255];
    for (int64_t c = 0; c < rows; c++) tables[c] = table_of(weights[c]);
    int64_t at = 0;
    for (; at + 32 <= bytes; at += 32) {
        __m256i sum = _mm256_setzero_si256();
        for (int64_t c = 0; c < rows; c++) sum = _mm256_xor_si256(sum, times(tables[c], load(x + c * stride + at)));
        _mm256_storeu_si256((__m256i*)(void*)(out + at), sum);
    }
    fc_gf_sum_ref(weights, x + at, rows, stride, bytes - at, out + at);
}

void fc_gf_horner_avx2(uint8_t point, const uint8_t* x, int64_t rows, int64_t stride, int64_t bytes, uint8_t* out) {
    const table t = table_of(point);
    int64_t at = 0;
    for (; at + 32 <= bytes; at += 32) {
        __m256i sum = _mm256_setzero_si256();
        for (int64_t c = rows - 1; c >= 0; c--) sum = _mm256_xor_si256(times(t, sum), load(x + c * stride + at));
        _mm256_storeu_si256((__m256i*)(void*)(out + at), sum);
    }
    fc_gf_horner_ref(point, x + at, rows, stride, bytes - at, out + at);
}
