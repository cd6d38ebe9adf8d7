/* pack_bits and unpack_add of up to 32 bits with AVX2: 8 residues make a window of at most 32 bytes, as in
 * pack_bits_avx512.c. Above 32 bits AVX2 has no permutation of 64-bit words by a vector. */
#include <immintrin.h>

#include "impl.h"

static __m256i load(const void* at) { return _mm256_loadu_si256((const __m256i*)at); }

void fc_unpack_add_avx2(const uint8_t* packed, int bits, int64_t count, void* total) {
    int64_t k = 0, at = 0;
    if (bits <= 32) {
        const int64_t left = (count * bits + 7) / 8;
        uint32_t index[8], shift[8];
        for (int i = 0; i < 8; i++) index[i] = (uint32_t)(i * bits / 32), shift[i] = (uint32_t)(i * bits % 32);
        const __m256i first = load(index), down = load(shift), next = _mm256_add_epi32(first, _mm256_set1_epi32(1));
        const __m256i up = _mm256_sub_epi32(_mm256_set1_epi32(32), down);
        const __m256i mask = _mm256_set1_epi32((int)(~0u >> (32 - bits)));
        for (; at + 32 <= left && k + 8 <= count; k += 8, at += bits) {
            const __m256i x = load(packed + at);
            const __m256i a = _mm256_srlv_epi32(_mm256_permutevar8x32_epi32(x, first), down);
            const __m256i b = _mm256_sllv_epi32(_mm256_permutevar8x32_epi32(x, next), up);
            uint32_t* to = (uint32_t*)total + k;
            const __m256i sum = _mm256_add_epi32(load(to), _mm256_or_si256(a, b));
            _mm256_storeu_si256((__m256i*)(void*)to, _mm256_and_si256(sum, mask));
        }
    }
    fc_unpack_add_ref(packed + at, bits, count - k, (uint32_t*)total + k);
}

void fc_pack_bits_avx2(const void* residues, int bits, int64_t count, uint8_t* out) {
    int64_t k = 0, at = 0;
    if (bits <= 32) {
        const int64_t left = (count * bits + 7) / 8;
        const int more = (32 + bits - 1) / bits;
        uint32_t index[8], shift[8];
        for (int i = 0; i < 8; i++) index[i] = (uint32_t)(i * 32 / bits), shift[i] = (uint32_t)(i * 32 % bits);
        const __m256i first = load(index), down = load(shift), one = _mm256_set1_epi32(1);
        const __m256i step = _mm256_set1_epi32(bits), mask = _mm256_set1_epi32((int)(~0u >> (32 - bits)));
        for (; at + 32 <= left && k + 8 <= count; k += 8, at += bits) {
            const __m256i x = _mm256_and_si256(load((const uint32_t*)residues + k), mask);
            __m256i word = _mm256_srlv_epi32(_mm256_permutevar8x32_epi32(x, first), down);
            __m256i from = first, up = _mm256_sub_epi32(_mm256_setzero_si256(), down);
            for (int j = 0; j < more; j++) { /* shifted by 32 and more, a residue of another word is 0 */
                from = _mm256_add_epi32(from, one), up = _mm256_add_epi32(up, step);
                word = _mm256_or_si256(word, _mm256_sllv_epi32(_mm256_permutevar8x32_epi32(x, from), up));
            }
            _mm256_storeu_si256((__m256i*)(void*)(out + at), word);
        }
    }
    fc_pack_bits_ref((const uint32_t*)residues + k, bits, count - k, out + at);
}
