/* Quantised rows to fp32 with AVX2. The 16 codes of NF4 are two tables of eight, and the highest of the four bits
 * chooses between what both give. */
#include <immintrin.h>

#include "impl.h"

INLINE void int8_block(const uint8_t* codes, float scale, float* out) {
    const __m256 factor = _mm256_set1_ps(scale);
    for (int v = 0; v < 8; v++) {
        const __m256i wide = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)(codes + 8 * v)));
        _mm256_storeu_ps(out + 8 * v, _mm256_mul_ps(_mm256_cvtepi32_ps(wide), factor));
    }
}

INLINE void nf4_block(const uint8_t* pairs, float scale, float* out) {
    static const float code[16] = FC_NF4_CODE;
    const __m256 below = _mm256_loadu_ps(code), above = _mm256_loadu_ps(code + 8), factor = _mm256_set1_ps(scale);
    const __m256i shifts = _mm256_setr_epi32(4, 0, 12, 8, 20, 16, 28, 24);
    for (int v = 0; v < 8; v++) {
        int word; /* eight elements */
        memcpy(&word, pairs + 4 * v, 4);
        const __m256i index = _mm256_srlv_epi32(_mm256_set1_epi32(word), shifts);
        const __m256 choice = _mm256_castsi256_ps(_mm256_slli_epi32(index, 28)); /* blendv looks at the sign */
        const __m256 value =
            _mm256_blendv_ps(_mm256_permutevar8x32_ps(below, index), _mm256_permutevar8x32_ps(above, index), choice);
        _mm256_storeu_ps(out + 8 * v, _mm256_mul_ps(value, factor));
    }
}

#include "decode.h"
DECODE(int8, int8_block, FC_BLOCK, avx2)
DECODE(nf4, nf4_block, FC_BLOCK / 2, avx2)
