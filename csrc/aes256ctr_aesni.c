/* AES-256-CTR with AES-NI: GROUP blocks in flight; and the key schedule (FIPS 197 section 5.2) for VAES too. */
#include <immintrin.h>

#include "impl.h"

#define INLINE static inline __attribute__((always_inline))
enum { GROUP = 8, ROUNDS = 14 };
typedef enum { STORE, ADD, SUBTRACT, ADD64, SUBTRACT64 } mode;

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

INLINE void put(mode to, char* out, __m128i x) {
    if (to == ADD) x = _mm_add_epi32(_mm_loadu_si128((const __m128i*)(const void*)out), x);
    if (to == SUBTRACT) x = _mm_sub_epi32(_mm_loadu_si128((const __m128i*)(const void*)out), x);
    if (to == ADD64) x = _mm_add_epi64(_mm_loadu_si128((const __m128i*)(const void*)out), x);
    if (to == SUBTRACT64) x = _mm_sub_epi64(_mm_loadu_si128((const __m128i*)(const void*)out), x);
    _mm_storeu_si128((__m128i*)(void*)out, x);
}

INLINE void run(mode to, const uint32_t* schedule, const uint32_t nonce[3], uint32_t counter, int64_t groups,
                char* out) {
    const __m128i fixed = _mm_setr_epi32((int)nonce[0], (int)nonce[1], (int)nonce[2], 0);
    const __m128i* keys = (const __m128i*)(const void*)schedule;
    for (int64_t g = 0; g < groups; g++, out += 16 * GROUP) {
        __m128i x[GROUP];
        for (int i = 0; i < GROUP; i++, counter++) /* the standard's counter is big-endian */
            x[i] = _mm_xor_si128(_mm_insert_epi32(fixed, (int)__builtin_bswap32(counter), 3), _mm_loadu_si128(keys));
        for (int r = 1; r < ROUNDS; r++)
            for (int i = 0; i < GROUP; i++) x[i] = _mm_aesenc_si128(x[i], _mm_loadu_si128(keys + r));
        for (int i = 0; i < GROUP; i++)
            put(to, out + 16 * i, _mm_aesenclast_si128(x[i], _mm_loadu_si128(keys + ROUNDS)));
    }
}

static void fill(const uint32_t* schedule, const uint32_t nonce[3], uint32_t counter, int64_t groups, uint8_t* out) {
    run(STORE, schedule, nonce, counter, groups, (char*)out);
}

static void add(const uint32_t* schedule, const uint32_t nonce[3], uint32_t counter, int64_t groups, void* values,
                int negative) {
    if (negative) run(SUBTRACT, schedule, nonce, counter, groups, values);
    else run(ADD, schedule, nonce, counter, groups, values);
}

static void add64(const uint32_t* schedule, const uint32_t nonce[3], uint32_t counter, int64_t groups, void* values,
                  int negative) {
    if (negative) run(SUBTRACT64, schedule, nonce, counter, groups, values);
    else run(ADD64, schedule, nonce, counter, groups, values);
}

const fc_stream_kernels fc_aes256ctr_aesni = {16, 16 * GROUP, fc_aes256_schedule, fill, {add, add64}, NULL};
