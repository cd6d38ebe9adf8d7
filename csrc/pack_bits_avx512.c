/* pack_bits and unpack_add with AVX-512 F. 16 residues of up to 32 bits, or 8 of up to 64, make a window of at most 64
 * bytes that begins and ends at a byte. A window is read or written whole while 64 bytes are left: what it writes past
 * its own end the next one writes again. */
#include <immintrin.h>

#include "impl.h"

/* Word i of a window holds residue first[i] from bit 0 or before on, shifted by `shift` to the right. */
typedef struct {
    __m512i first, shift;
} places;

static places lanes(const uint64_t* index, const uint64_t* shift, int wide) {
    uint32_t narrow[2][16];
    for (int i = 0; i < 16; i++) narrow[0][i] = (uint32_t)index[i], narrow[1][i] = (uint32_t)shift[i];
    if (wide) return (places){_mm512_loadu_si512(index), _mm512_loadu_si512(shift)};
    return (places){_mm512_loadu_si512(narrow[0]), _mm512_loadu_si512(narrow[1])};
}

void fc_unpack_add_avx512(const uint8_t* packed, int bits, int64_t count, void* total) {
    const int wide = bits > 32, width = wide ? 64 : 32, group = 512 / width, bytes = group * bits / 8;
    uint64_t index[16], shift[16];
    for (int i = 0; i < 16; i++) index[i] = (uint64_t)(i * bits / width), shift[i] = (uint64_t)(i * bits % width);
    const places low = lanes(index, shift, wide);
    const int64_t left = (count * bits + 7) / 8;
    int64_t k = 0, at = 0;
    if (wide) {
        const __m512i next = _mm512_add_epi64(low.first, _mm512_set1_epi64(1));
        const __m512i up = _mm512_sub_epi64(_mm512_set1_epi64(64), low.shift);
        const __m512i mask = _mm512_set1_epi64((int64_t)(~0ull >> (64 - bits)));
        for (; at + 64 <= left && k + 8 <= count; k += 8, at += bytes) {
            const __m512i x = _mm512_loadu_si512(packed + at);
            const __m512i a = _mm512_srlv_epi64(_mm512_permutexvar_epi64(low.first, x), low.shift);
            const __m512i b = _mm512_sllv_epi64(_mm512_permutexvar_epi64(next, x), up);
            uint64_t* to = (uint64_t*)total + k;
            const __m512i sum = _mm512_add_epi64(_mm512_loadu_si512(to), _mm512_or_si512(a, b));
            _mm512_storeu_si512(to, _mm512_and_si512(sum, mask));
        }
    } else {
        const __m512i next = _mm512_add_epi32(low.first, _mm512_set1_epi32(1));
        const __m512i up = _mm512_sub_epi32(_mm512_set1_epi32(32), low.shift);
        const __m512i mask = _mm512_set1_epi32((int)(~0u >> (32 - bits)));
        for (; at + 64 <= left && k + 16 <= count; k += 16, at += bytes) {
            const __m512i x = _mm512_loadu_si512(packed + at);
            const __m512i a = _mm512_srlv_epi32(_mm512_permutexvar_epi32(low.first, x), low.shift);
            const __m512i b = _mm512_sllv_epi32(_mm512_permutexvar_epi32(next, x), up);
            uint32_t* to = (uint32_t*)total + k;
            const __m512i sum = _mm512_add_epi32(_mm512_loadu_si512(to), _mm512_or_si512(a, b));
            _mm512_storeu_si512(to, _mm512_and_si512(sum, mask));
        }
    }
    fc_unpack_add_ref(packed + at, bits, count - k, (char*)total + k * width / 8);
}

void fc_pack_bits_avx512(const void* residues, int bits, int64_t count, uint8_t* out) {
    const int wide = bits > 32, width = wide ? 64 : 32, group = 512 / width, bytes = group * bits / 8;
    const int more = (width + bits - 1) / bits; /* residues beside the first that a word can hold a part of */
    uint64_t index[16], shift[16];
    for (int i = 0; i < 16; i++) index[i] = (uint64_t)(i * width / bits), shift[i] = (uint64_t)(i * width % bits);
    const places low = lanes(index, shift, wide);
    const int64_t left = (count * bits + 7) / 8;
    int64_t k = 0, at = 0;
    if (wide) {
        const __m512i one = _mm512_set1_epi64(1), mask = _mm512_set1_epi64((int64_t)(~0ull >> (64 - bits)));
        const __m512i step = _mm512_set1_epi64(bits);
        for (; at + 64 <= left && k + 8 <= count; k += 8, at += bytes) {
            const __m512i x = _mm512_and_si512(_mm512_loadu_si512((const uint64_t*)residues + k), mask);
            __m512i word = _mm512_srlv_epi64(_mm512_permutexvar_epi64(low.first, x), low.shift);
            __m512i from = low.first, up = _mm512_sub_epi64(_mm512_setzero_si512(), low.shift);
            for (int j = 0; j < more; j++) { /* shifted by 64 and more, a residue of another word is 0 */
                from = _mm512_add_epi64(from, one), up = _mm512_add_epi64(up, step);
                word = _mm512_or_si512(word, _mm512_sllv_epi64(_mm512_permutexvar_epi64(from, x), up));
            }
            _mm512_storeu_si512(out + at, word);
        }
    } else {
        const __m512i one = _mm512_set1_epi32(1), mask = _mm512_set1_epi32((int)(~0u >> (32 - bits)));
        const __m512i step = _mm512_set1_epi32(bits);
        for (; at + 64 <= left && k + 16 <= count; k += 16, at += bytes) {
            const __m512i x = _mm512_and_si512(_mm512_loadu_si512((const uint32_t*)residues + k), mask);
            __m512i word = _mm512_srlv_epi32(_mm512_permutexvar_epi32(low.first, x), low.shift);
            __m512i from = low.first, up = _mm512_sub_epi32(_mm512_setzero_si512(), low.shift);
            for (int j = 0; j < more; j++) {
                from = _mm512_add_epi32(from, one), up = _mm512_add_epi32(up, step);
                word = _mm512_or_si512(word, _mm512_sllv_epi32(_mm512_permutexvar_epi32(from, x), up));
            }
            _mm512_storeu_si512(out + at, word);
        }
    }
    fc_pack_bits_ref((const char*)residues + k * width / 8, bits, count - k, out + at);
}
