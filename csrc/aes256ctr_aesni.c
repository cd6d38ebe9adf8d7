/* AES-256-CTR with AES-NI, a block a vector; and the key schedule (FIPS 197 section 5.2) for VAES too. */
#include <immintrin.h>

#include "impl.h"

#define vec __m128i
enum { BLOCKS = 1 };
#define EACH(x) (x)
#define COUNT() _mm_setzero_si128()
#define ADD _mm_add_epi32
#define SUB _mm_sub_epi32
#define ADD64 _mm_add_epi64
#define SUB64 _mm_sub_epi64
#define XOR _mm_xor_si128
#define AND _mm_and_si128
#define SHUFFLE _mm_shuffle_epi8
#define ROUND _mm_aesenc_si128
#define LAST _mm_aesenclast_si128
#define LOAD(at) _mm_loadu_si128((const __m128i*)(const void*)(at))
#define STORE(at, x) _mm_storeu_si128((__m128i*)(void*)(at), x)
#define STREAM(at, x) _mm_stream_si128((__m128i*)(void*)(at), x)
#define finite __m128
#define FINITE() _mm_setzero_ps()
#define IS_FINITE(x) (_mm_testz_si128(_mm_castps_si128(x), _mm_castps_si128(x)))
#include "aes256ctr_avx2.h"

INLINE __m128i quantised(const char* values, __m256d by, __m256d most, __m128* bad) {
    const __m128 x = _mm_loadu_ps((const float*)(const void*)values);
    *bad = _mm_or_ps(*bad, _mm_sub_ps(x, x)); /* 0 where x is finite, and NaN elsewhere */
    return rounded(x, by, most);
}

#include "aes256ctr.h"
AES256CTR(aesni)

/* The next four words of the schedule: a running XOR of the four that lie eight back, on top of `word`. */
INLINE __m128i next_words(__m128i back, __m128i word) {
    for (int w = 0; w < 3; w++) back = _mm_xor_si128(back, _mm_slli_si128(back, 4));
    return _mm_xor_si128(back, word);
}

void fc_aes256_schedule(const uint8_t key[32], uint32_t* schedule) {
    __m128i even = _mm_loadu_si128((const __m128i*)(const void*)key);
    __m128i odd = _mm_loadu_si128((const __m128i*)(const void*)(key + 16));
    __m128i* out = (__m128i*)(void*)schedule;
    _mm_storeu_si128(out, even);
    _mm_storeu_si128(out + 1, odd);
#define TWO(round, constant)                                                                    \
    even = next_words(even, _mm_shuffle_epi32(_mm_aeskeygenassist_si128(odd, constant), 0xff)); \
    _mm_storeu_si128(out + 2 * (round), even);                                                  \
    if ((round) < 7) {                                                                          \
        odd = next_words(odd, _mm_shuffle_epi32(_mm_aeskeygenassist_si128(even, 0), 0xaa));     \
        _mm_storeu_si128(out + 2 * (round) + 1, odd);                                           \
    }
    TWO(1, 0x01) TWO(2, 0x02) TWO(3, 0x04) TWO(4, 0x08) TWO(5, 0x10) TWO(6, 0x20) TWO(7, 0x40)
#undef TWO
}
