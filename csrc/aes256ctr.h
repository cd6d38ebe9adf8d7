/* AES-256-CTR (FIPS 197; NIST SP 800-38A section 6.5) with a processor's own rounds, GROUP vectors in flight. An ISA's
 * file defines
 *   vec, BLOCKS              the vector, and how many blocks of 16 bytes it holds
 *   EACH(x)                  a __m128i in every block; COUNT(): block b holds b in its last 32 bits
 *   ADD, SUB, XOR, AND       lane by lane of 32 bits; ADD64, SUB64: of 64 bits
 *   SHUFFLE, ROUND, LAST     bytes within a block; a round of encryption, and the last one
 *   LOAD, STORE, STREAM      at any alignment; past the cache, aligned
 *   real, REAL(x)            a vector of fp64, and a number in each lane
 *   finite, FINITE(), IS_FINITE(x), and quantised(values, by, most, &bad): the fp32 that a vector holds, times `by`,
 *                            clamped to `most` in size, rounded to integers, ties to even, as 32-bit lanes; `bad`, of
 *                            type finite and FINITE() at first, is no longer IS_FINITE if any is not finite
 * and then includes this once. */
#include "impl.h"

enum { GROUP = 8, ROUNDS = 14 };
typedef enum { STORED, ADDED, SUBTRACTED, ADDED64, SUBTRACTED64 } mode;

/* What the block `counter` and those after it encrypt, with the counter's bytes still in the machine's order. */
INLINE vec first_blocks(const uint32_t nonce[3], uint32_t counter) {
    return ADD(EACH(_mm_setr_epi32((int)nonce[0], (int)nonce[1], (int)nonce[2], (int)counter)), COUNT());
}

/* The standard's counter is big-endian: bytes 12 to 15 of each block are swapped. */
#define SWAP EACH(_mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 15, 14, 13, 12))
#define STEP EACH(_mm_setr_epi32(0, 0, 0, BLOCKS))
#define READ_KEYS(keys) \
    for (int r = 0; r <= ROUNDS; r++) keys[r] = EACH(_mm_loadu_si128((const __m128i*)(const void*)(schedule + 4 * r)))

INLINE void put(mode to, char* out, vec x) {
    if (to == ADDED) x = ADD(LOAD(out), x);
    if (to == SUBTRACTED) x = SUB(LOAD(out), x);
    if (to == ADDED64) x = ADD64(LOAD(out), x);
    if (to == SUBTRACTED64) x = SUB64(LOAD(out), x);
    STORE(out, x);
}

INLINE void run(mode to, const uint32_t* schedule, const uint32_t nonce[3], uint32_t counter, int64_t groups,
                char* out) {
    const vec swap = SWAP, step = STEP;
    vec next = first_blocks(nonce, counter), keys[ROUNDS + 1];
    READ_KEYS(keys);
    for (int64_t g = 0; g < groups; g++, out += 16 * BLOCKS * GROUP) {
        vec x[GROUP];
        for (int i = 0; i < GROUP; i++, next = ADD(next, step)) x[i] = XOR(SHUFFLE(next, swap), keys[0]);
        for (int r = 1; r < ROUNDS; r++)
            for (int i = 0; i < GROUP; i++) x[i] = ROUND(x[i], keys[r]);
        for (int i = 0; i < GROUP; i++) put(to, out + 16 * BLOCKS * i, LAST(x[i], keys[ROUNDS]));
    }
}

/* Half a group at a time: the processor then quantises one half while it encrypts for the next. */
INLINE int run_mask(const uint32_t* schedule, const uint32_t nonce[3], uint32_t counter, int64_t groups,
                    const char* values, double scale, double limit, uint32_t mask, char* out, int negative,
                    int bypass) {
    enum { NOW = GROUP / 2, AHEAD = 4096, SIZE = 16 * BLOCKS };
    const vec swap = SWAP, step = STEP, low = EACH(_mm_set1_epi32((int)mask));
    const real by = REAL(scale), most = REAL(limit);
    vec next = first_blocks(nonce, counter), keys[ROUNDS + 1];
    finite bad = FINITE();
    READ_KEYS(keys);
    for (int64_t g = 0; g < groups * (GROUP / NOW); g++, out += SIZE * NOW, values += SIZE * NOW) {
        vec x[NOW];
        for (int i = 0; i < NOW; i++, next = ADD(next, step)) x[i] = XOR(SHUFFLE(next, swap), keys[0]);
        for (int r = 1; r < ROUNDS; r++)
            for (int i = 0; i < NOW; i++) x[i] = ROUND(x[i], keys[r]);
        for (int i = 0; i < NOW; i++) {
            if (SIZE * i % 64 == 0) __builtin_prefetch(values + SIZE * i + AHEAD);
            const vec q = quantised(values + SIZE * i, by, most, &bad);
            x[i] = LAST(x[i], keys[ROUNDS]);
            x[i] = AND(negative ? SUB(q, x[i]) : ADD(q, x[i]), low);
            if (bypass) STREAM(out + SIZE * i, x[i]);
            else STORE(out + SIZE * i, x[i]);
        }
    }
    return !IS_FINITE(bad);
}

static int mask(const uint32_t* schedule, const uint32_t nonce[3], uint32_t counter, int64_t groups, const void* values,
                double scale, double limit, uint32_t low, void* out, int negative, int stream) {
    const int bypass = stream && (uintptr_t)out % (16 * BLOCKS) == 0;
    if (negative) return run_mask(schedule, nonce, counter, groups, values, scale, limit, low, out, 1, bypass);
    return run_mask(schedule, nonce, counter, groups, values, scale, limit, low, out, 0, bypass);
}

static void fill(const uint32_t* schedule, const uint32_t nonce[3], uint32_t counter, int64_t groups, uint8_t* out) {
    run(STORED, schedule, nonce, counter, groups, (char*)out);
}

static void add(const uint32_t* schedule, const uint32_t nonce[3], uint32_t counter, int64_t groups, void* values,
                int negative) {
    if (negative) run(SUBTRACTED, schedule, nonce, counter, groups, values);
    else run(ADDED, schedule, nonce, counter, groups, values);
}

static void add64(const uint32_t* schedule, const uint32_t nonce[3], uint32_t counter, int64_t groups, void* values,
                  int negative) {
    if (negative) run(SUBTRACTED64, schedule, nonce, counter, groups, values);
    else run(ADDED64, schedule, nonce, counter, groups, values);
}

#define AES256CTR(isa)                                                                           \
    const fc_stream_kernels fc_aes256ctr_##isa = {16,   16 * BLOCKS * GROUP, fc_aes256_schedule, \
                                                  fill, {add, add64},        mask};
