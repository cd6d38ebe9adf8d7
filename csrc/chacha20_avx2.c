/* ChaCha20 with AVX2: 8 blocks at a time; rotations by whole bytes are byte shuffles. */
#include <immintrin.h>

#define vec __m256i
enum { LANES = 8 };
#define ADD _mm256_add_epi32
#define SUB _mm256_sub_epi32
#define ADD64 _mm256_add_epi64
#define SUB64 _mm256_sub_epi64
#define XOR _mm256_xor_si256
#define ROTATE(x, n) rotate(x, n)
#define SAME(x) _mm256_set1_epi32((int)(x))
#define COUNT() _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)
#define LOAD(at) _mm256_loadu_si256((const __m256i*)(const void*)(at))
#define STORE(at, x) _mm256_storeu_si256((__m256i*)(void*)(at), x)

static inline __attribute__((always_inline)) __m256i rotate(__m256i x, int n) {
    if (n == 16)
        return _mm256_shuffle_epi8(x, _mm256_setr_epi8(2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13, 2, 3, 0, 1,
                                                       6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13));
    if (n == 8)
        return _mm256_shuffle_epi8(x, _mm256_setr_epi8(3, 0, 1, 2, 7, 4, 5, 6, 11, 8, 9, 10, 15, 12, 13, 14, 3, 0, 1, 2,
                                                       7, 4, 5, 6, 11, 8, 9, 10, 15, 12, 13, 14));
    return _mm256_or_si256(_mm256_slli_epi32(x, n), _mm256_srli_epi32(x, 32 - n));
}

static inline __attribute__((always_inline)) void transpose(__m256i x[16]) {
    __m256i t[16];
    /* t[4g + j], 128-bit lane q: words 4g to 4g + 3 of block 4q + j */
    for (int g = 0; g < 16; g += 4) {
        const __m256i low = _mm256_unpacklo_epi32(x[g], x[g + 1]), high = _mm256_unpackhi_epi32(x[g], x[g + 1]);
        const __m256i low2 = _mm256_unpacklo_epi32(x[g + 2], x[g + 3]);
        const __m256i high2 = _mm256_unpackhi_epi32(x[g + 2], x[g + 3]);
        t[g] = _mm256_unpacklo_epi64(low, low2);
        t[g + 1] = _mm256_unpackhi_epi64(low, low2);
        t[g + 2] = _mm256_unpacklo_epi64(high, high2);
        t[g + 3] = _mm256_unpackhi_epi64(high, high2);
    }
    for (int j = 0; j < 4; j++)
        for (int half = 0; half < 2; half++) {
            x[2 * j + half] = _mm256_permute2x128_si256(t[8 * half + j], t[8 * half + 4 + j], 0x20);
            x[8 + 2 * j + half] = _mm256_permute2x128_si256(t[8 * half + j], t[8 * half + 4 + j], 0x31);
        }
}

#include "chacha20.h"
CHACHA20(avx2)
