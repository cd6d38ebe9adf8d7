/* ChaCha20 with AVX-512 F: 16 blocks at a time, all of their state in registers. */
#include <immintrin.h>

#define vec __m512i
enum { LANES = 16 };
#define ADD _mm512_add_epi32
#define SUB _mm512_sub_epi32
#define ADD64 _mm512_add_epi64
#define SUB64 _mm512_sub_epi64
#define XOR _mm512_xor_si512
#define ROTATE(x, n) _mm512_rol_epi32(x, n)
#define SAME(x) _mm512_set1_epi32((int)(x))
#define COUNT() _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
#define LOAD(at) _mm512_loadu_si512(at)
#define STORE(at, x) _mm512_storeu_si512(at, x)

static inline __attribute__((always_inline)) void transpose(__m512i x[16]) {
    __m512i t[16];
    /* t[4g + j], 128-bit lane q: words 4g to 4g + 3 of block 4q + j */
    for (int g = 0; g < 16; g += 4) {
        const __m512i low = _mm512_unpacklo_epi32(x[g], x[g + 1]), high = _mm512_unpackhi_epi32(x[g], x[g + 1]);
        const __m512i low2 = _mm512_unpacklo_epi32(x[g + 2], x[g + 3]);
        const __m512i high2 = _mm512_unpackhi_epi32(x[g + 2], x[g + 3]);
        t[g] = _mm512_unpacklo_epi64(low, low2);
        t[g + 1] = _mm512_unpackhi_epi64(low, low2);
        t[g + 2] = _mm512_unpacklo_epi64(high, high2);
        t[g + 3] = _mm512_unpackhi_epi64(high, high2);
    }
    for (int j = 0; j < 4; j++) {
        const __m512i even = _mm512_shuffle_i32x4(t[j], t[4 + j], 0x88),
                      odd = _mm512_shuffle_i32x4(t[j], t[4 + j], 0xdd);
        const __m512i even2 = _mm512_shuffle_i32x4(t[8 + j], t[12 + j], 0x88);
        const __m512i odd2 = _mm512_shuffle_i32x4(t[8 + j], t[12 + j], 0xdd);
        x[j] = _mm512_shuffle_i32x4(even, even2, 0x88);
        x[4 + j] = _mm512_shuffle_i32x4(odd, odd2, 0x88);
        x[8 + j] = _mm512_shuffle_i32x4(even, even2, 0xdd);
        x[12 + j] = _mm512_shuffle_i32x4(odd, odd2, 0xdd);
    }
}

#include "chacha20.h"
CHACHA20(avx512)
