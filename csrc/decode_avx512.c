/* Quantised rows to fp32 with AVX-512 F and BW. A permutation of 16 floats looks at four bits of each index, so the 16
 * codes of NF4 need no mask: each lane is the word that holds its four bits, shifted until they are the lowest. */
#include <immintrin.h>

#include "impl.h"

INLINE void int8_block(const uint8_t* codes, float scale, float* out) {
    const __m512 factor = _mm512_set1_ps(scale);
    for (int v = 0; v < 4; v++) {
        const __m512i wide = _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)(codes + 16 * v)));
        _mm512_storeu_ps(out + 16 * v, _mm512_mul_ps(_mm512_cvtepi32_ps(wide), factor));
    }
}

INLINE __m128i eight(const uint8_t* pairs) {
    int word;
    memcpy(&word, pairs, 4);
    return _mm_cvtsi32_si128(word);
}

INLINE void nf4_block(const uint8_t* pairs, float scale, float* out) {
    static const float code[16] = FC_NF4_CODE;
    const __m512 codes = _mm512_loadu_ps(code), factor = _mm512_set1_ps(scale);
    const __m512i shifts = _mm512_setr_epi32(4, 0, 12, 8, 20, 16, 28, 24, 4, 0, 12, 8, 20, 16, 28, 24);
    for (int v = 0; v < 4; v++) {
        /* eight elements each, broadcast by the load itself */
        const __m512i low = _mm512_broadcastd_epi32(eight(pairs + 8 * v));
        const __m512i words = _mm512_mask_broadcastd_epi32(low, 0xff00, eight(pairs + 8 * v + 4));
        const __m512 value = _mm512_permutexvar_ps(_mm512_srlv_epi32(words, shifts), codes);
        _mm512_storeu_ps(out + 16 * v, _mm512_mul_ps(value, factor));
    }
}

#include "decode.h"
DECODE(int8, int8_block, FC_BLOCK, avx512)
DECODE(nf4, nf4_block, FC_BLOCK / 2, avx512)
