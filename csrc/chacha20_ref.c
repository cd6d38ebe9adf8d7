/* Portable ChaCha20 (RFC 8439 section 2.3), a block at a time. */
#include "impl.h"

static uint32_t rotate(uint32_t x, int n) { return x << n | x >> (32 - n); }

static void quarter(uint32_t* x, int a, int b, int c, int d) {
    x[a] += x[b], x[d] = rotate(x[d] ^ x[a], 16);
    x[c] += x[d], x[b] = rotate(x[b] ^ x[c], 12);
    x[a] += x[b], x[d] = rotate(x[d] ^ x[a], 8);
    x[c] += x[d], x[b] = rotate(x[b] ^ x[c], 7);
}

static void block(const uint32_t* schedule, const uint32_t nonce[3], uint32_t counter, uint32_t x[16]) {
    uint32_t start[16] = FC_CHACHA20_CONSTANTS;
    memcpy(start + 4, schedule, 32);
    start[12] = counter;
    memcpy(start + 13, nonce, 12);
    memcpy(x, start, sizeof start);
    for (int round = 0; round < 10; round++) {
        for (int w = 0; w < 4; w++) quarter(x, w, 4 + w, 8 + w, 12 + w);
        for (int w = 0; w < 4; w++) quarter(x, w, 4 + (w + 1) % 4, 8 + (w + 2) % 4, 12 + (w + 3) % 4);
    }
    for (int w = 0; w < 16; w++) x[w] += start[w];
}

void fc_chacha20_schedule(const uint8_t key[32], uint32_t* schedule) { memcpy(schedule, key, 32); }

static void fill(const uint32_t* schedule, const uint32_t nonce[3], uint32_t counter, int64_t groups, uint8_t* out) {
    for (int64_t g = 0; g < groups; g++) {
        uint32_t x[16];
        block(schedule, nonce, counter + (uint32_t)g, x);
        memcpy(out + 64 * g, x, sizeof x);
    }
}

static void add(const uint32_t* schedule, const uint32_t nonce[3], uint32_t counter, int64_t groups, void* values,
                int negative) {
    uint32_t* to = values;
    for (int64_t g = 0; g < groups; g++, to += 16) {
        uint32_t x[16];
        block(schedule, nonce, counter + (uint32_t)g, x);
        for (int w = 0; w < 16; w++) to[w] += negative ? 0u - x[w] : x[w];
    }
}

static void add64(const uint32_t* schedule, const uint32_t nonce[3], uint32_t counter, int64_t groups, void* values,
                  int negative) {
    uint64_t* to = values;
    for (int64_t g = 0; g < groups; g++, to += 8) {
        uint32_t x[16];
        uint64_t wide[8];
        block(schedule, nonce, counter + (uint32_t)g, x);
        memcpy(wide, x, sizeof wide);
        for (int w = 0; w < 8; w++) to[w] += negative ? 0u - wide[w] : wide[w];
    }
}

const fc_stream_kernels fc_chacha20_ref = {64, 64, fc_chacha20_schedule, fill, {add, add64}, NULL};
