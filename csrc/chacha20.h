/* ChaCha20 (RFC 8439 section 2.3) of as many blocks side by side as a vector has 32-bit lanes. An ISA's file defines
 *   vec, LANES        the vector and its lanes: lane b works on block counter + b
 *   ADD, SUB, XOR     lane by lane; ADD64, SUB64: by lanes of 64 bits
 *   ROTATE(x, n)      to the left, n one of 16, 12, 8, 7
 *   SAME(x), COUNT()  a word in every lane; lane b holds b
 *   LOAD, STORE       at any alignment
 *   transpose(x)      x[w] lane b, word w of block b, to x[i] = 4 * LANES bytes of the stream, in order
 * and then includes this once. */
#include "impl.h"

#define QUARTER(a, b, c, d)                                                                             \
    (a = ADD(a, b), d = ROTATE(XOR(d, a), 16), c = ADD(c, d), b = ROTATE(XOR(b, c), 12), a = ADD(a, b), \
     d = ROTATE(XOR(d, a), 8), c = ADD(c, d), b = ROTATE(XOR(b, c), 7))

enum { CHACHA_GROUP = 64 * LANES };

static inline __attribute__((always_inline)) void chacha_group(const vec start[16], vec x[16]) {
    for (int w = 0; w < 16; w++) x[w] = start[w];
    for (int round = 0; round < 10; round++) {
        QUARTER(x[0], x[4], x[8], x[12]);
        QUARTER(x[1], x[5], x[9], x[13]);
        QUARTER(x[2], x[6], x[10], x[14]);
        QUARTER(x[3], x[7], x[11], x[15]);
        QUARTER(x[0], x[5], x[10], x[15]);
        QUARTER(x[1], x[6], x[11], x[12]);
        QUARTER(x[2], x[7], x[8], x[13]);
        QUARTER(x[3], x[4], x[9], x[14]);
    }
    for (int w = 0; w < 16; w++) x[w] = ADD(x[w], start[w]);
    transpose(x);
}

static inline __attribute__((always_inline)) void chacha_start(const uint32_t* schedule, const uint32_t nonce[3],
                                                               uint32_t counter, vec start[16]) {
    static const uint32_t constants[4] = FC_CHACHA20_CONSTANTS;
    for (int w = 0; w < 4; w++) start[w] = SAME(constants[w]);
    for (int w = 0; w < 8; w++) start[4 + w] = SAME(schedule[w]);
    start[12] = ADD(SAME(counter), COUNT());
    for (int w = 0; w < 3; w++) start[13 + w] = SAME(nonce[w]);
}

static inline __attribute__((always_inline)) void chacha_fill(const uint32_t* schedule, const uint32_t nonce[3],
                                                              uint32_t counter, int64_t groups, uint8_t* out) {
    vec start[16], x[16];
    chacha_start(schedule, nonce, counter, start);
    for (; groups > 0; groups--, out += CHACHA_GROUP) {
        chacha_group(start, x);
        for (int i = 0; i < 16; i++) STORE(out + 4 * LANES * i, x[i]);
        start[12] = ADD(start[12], SAME(LANES));
    }
}

static inline __attribute__((always_inline)) void chacha_add(const uint32_t* schedule, const uint32_t nonce[3],
                                                             uint32_t counter, int64_t groups, char* values, int wide,
                                                             int negative) {
    vec start[16], x[16];
    chacha_start(schedule, nonce, counter, start);
    for (; groups > 0; groups--, values += CHACHA_GROUP) {
        chacha_group(start, x);
        for (int i = 0; i < 16; i++) {
            const vec old = LOAD(values + 4 * LANES * i);
            if (wide) x[i] = negative ? SUB64(old, x[i]) : ADD64(old, x[i]);
            else x[i] = negative ? SUB(old, x[i]) : ADD(old, x[i]);
        }
        for (int i = 0; i < 16; i++) STORE(values + 4 * LANES * i, x[i]);
        start[12] = ADD(start[12], SAME(LANES));
    }
}

#define CHACHA20(isa)                                                                                                  \
    static void fill(const uint32_t* schedule, const uint32_t nonce[3], uint32_t counter, int64_t groups,              \
                     uint8_t* out) {                                                                                   \
        chacha_fill(schedule, nonce, counter, groups, out);                                                            \
    }                                                                                                                  \
    static void add(const uint32_t* schedule, const uint32_t nonce[3], uint32_t counter, int64_t groups, void* values, \
                    int negative) {                                                                                    \
        if (negative) chacha_add(schedule, nonce, counter, groups, values, 0, 1);                                      \
        else chacha_add(schedule, nonce, counter, groups, values, 0, 0);                                               \
    }                                                                                                                  \
    static void add64(const uint32_t* schedule, const uint32_t nonce[3], uint32_t counter, int64_t groups,             \
                      void* values, int negative) {                                                                    \
        if (negative) chacha_add(schedule, nonce, counter, groups, values, 1, 1);                                      \
        else chacha_add(schedule, nonce, counter, groups, values, 1, 0);                                               \
    }                                                                                                                  \
    const fc_stream_kernels fc_chacha20_##isa = {64, CHACHA_GROUP, fc_chacha20_schedule, fill, {add, add64}, NULL};
