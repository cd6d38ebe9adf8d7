/* AES-256-CTR with VAES and AVX-512: four blocks a vector, GROUP vectors in flight, all round keys in registers. */
#include <immintrin.h>

#include "impl.h"

#define INLINE static inline __attribute__((always_inline))
enum { GROUP = 8, ROUNDS = 14 };
typedef enum { STORE, ADD, SUBTRACT, ADD64, SUBTRACT64 } mode;

/* What the block `counter` and the three after it encrypt, with the counter's bytes still in the machine's order. */
INLINE __m512i first_blocks(const uint32_t nonce[3], uint32_t counter) {
    const __m512i fixed =
        _mm512_broadcast_i32x4(_mm_setr_epi32((int)nonce[0], (int)nonce[1], (int)nonce[2], (int)counter));
    return _mm512_add_epi32(fixed, _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3));
}

INLINE void put(mode to, char* out, __m512i x) {
    if (to == ADD) x = _mm512_add_epi32(_mm512_loadu_si512(out), x);
    if (to == SUBTRACT) x = _mm512_sub_epi32(_mm512_loadu_si512(out), x);
    if (to == ADD64) x = _mm512_add_epi64(_mm512_loadu_si512(out), x);
    if (to == SUBTRACT64) x = _mm512_sub_epi64(_mm512_loadu_si512(out), x);
    _mm512_storeu_si512(out, x);
}

INLINE void run(mode to, const uint32_t* schedule, const uint32_t nonce[3], uint32_t counter, int64_t groups,
                char* out) {
    /* the standard's counter is big-endian: bytes 12 to 15 of each block are swapped */
    const __m512i swap = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 15, 14, 13, 12));
    const __m512i step = _mm512_broadcast_i32x4(_mm_setr_epi32(0, 0, 0, 4));
    __m512i next = first_blocks(nonce, counter), keys[ROUNDS + 1];
    for (int r = 0; r <= ROUNDS; r++)
        keys[r] = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)(const void*)(schedule + 4 * r)));
    for (int64_t g = 0; g < groups; g++, out += 64 * GROUP) {
        __m512i x[GROUP];
        for (int i = 0; i < GROUP; i++, next = _mm512_add_epi32(next, step))
            x[i] = _mm512_xor_si512(_mm512_shuffle_epi8(next, swap), keys[0]);
        for (int r = 1; r < ROUNDS; r++)
            for (int i = 0; i < GROUP; i++) x[i] = _mm512_aesenc_epi128(x[i], keys[r]);
        for (int i = 0; i < GROUP; i++) put(to, out + 64 * i, _mm512_aesenclast_epi128(x[i], keys[ROUNDS]));
    }
}

/* 8 fp32 times `by`, clamped to `most` in size: rounded to integers, ties to even, in the low 32 bits of each lane.
 * Added to 1.5 * 2^52, they end up there. */
INLINE __m512i rounded(const char* values, __m512d by, __m512d most) {
    enum { SMALLER_SIZE = 2 }; /* under the sign of the first operand */
    const __m512d x = _mm512_cvtps_pd(_mm256_loadu_ps((const float*)(const void*)values));
    const __m512d q = _mm512_range_pd(_mm512_mul_pd(x, by), most, SMALLER_SIZE);
    return _mm512_castpd_si512(_mm512_add_pd(q, _mm512_set1_pd(0x1.8p52)));
}

/* 16 fp32 as int32; `bad` becomes NaN somewhere if any is not finite. */
INLINE __m512i quantised(const char* values, __m512d by, __m512d most, __m512* bad) {
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    *bad = _mm512_fmadd_ps(_mm512_loadu_ps(values), _mm512_setzero_ps(), *bad);
    return _mm512_permutex2var_epi32(rounded(values, by, most), even, rounded(values + 32, by, most));
}

/* Half a group at a time: the processor then quantises one half while it encrypts for the next. */
INLINE int run_mask(const uint32_t* schedule, const uint32_t nonce[3], uint32_t counter, int64_t groups,
                    const char* values, double scale, double limit, uint32_t mask, char* out, int negative,
                    int bypass) {
    enum { NOW = 4, AHEAD = 4096 };
    const __m512i swap = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 15, 14, 13, 12));
    const __m512i step = _mm512_broadcast_i32x4(_mm_setr_epi32(0, 0, 0, 4)), low = _mm512_set1_epi32((int)mask);
    const __m512d by = _mm512_set1_pd(scale), most = _mm512_set1_pd(limit);
    __m512i next = first_blocks(nonce, counter), keys[ROUNDS + 1];
    __m512 bad = _mm512_setzero_ps();
    for (int r = 0; r <= ROUNDS; r++)
        keys[r] = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)(const void*)(schedule + 4 * r)));
    for (int64_t g = 0; g < groups * (GROUP / NOW); g++, out += 64 * NOW, values += 64 * NOW) {
        __m512i x[NOW];
        for (int i = 0; i < NOW; i++, next = _mm512_add_epi32(next, step))
            x[i] = _mm512_xor_si512(_mm512_shuffle_epi8(next, swap), keys[0]);
        for (int r = 1; r < ROUNDS; r++)
            for (int i = 0; i < NOW; i++) x[i] = _mm512_aesenc_epi128(x[i], keys[r]);
        for (int i = 0; i < NOW; i++) {
            __builtin_prefetch(values + 64 * i + AHEAD);
            const __m512i q = quantised(values + 64 * i, by, most, &bad);
            x[i] = _mm512_aesenclast_epi128(x[i], keys[ROUNDS]);
            x[i] = _mm512_and_si512(negative ? _mm512_sub_epi32(q, x[i]) : _mm512_add_epi32(q, x[i]), low);
            if (bypass) _mm512_stream_si512((void*)(out + 64 * i), x[i]);
            else _mm512_storeu_si512(out + 64 * i, x[i]);
        }
    }
    return _mm512_cmp_ps_mask(bad, bad, _CMP_UNORD_Q) != 0;
}

static int mask(const uint32_t* schedule, const uint32_t nonce[3], uint32_t counter, int64_t groups, const void* values,
                double scale, double limit, uint32_t low, void* out, int negative, int stream) {
    const int bypass = stream && ((uintptr_t)out & 63) == 0;
    if (negative) return run_mask(schedule, nonce, counter, groups, values, scale, limit, low, out, 1, bypass);
    return run_mask(schedule, nonce, counter, groups, values, scale, limit, low, out, 0, bypass);
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

const fc_stream_kernels fc_aes256ctr_vaes = {16, 64 * GROUP, fc_aes256_schedule, fill, {add, add64}, mask};
