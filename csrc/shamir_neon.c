/* Products in GF(2^8) with NEON: by two tables in registers, as in shamir_avx2.c. */
#include <arm_neon.h>

#include "impl.h"

typedef struct {
    uint8x16_t low, high;
} table;

/* The factor times 0 to 15, and times 0, 16, ..., 240. */
static table table_of(uint8_t factor) {
    uint8_t made[2][16] = {{0}, {0}};
    unsigned power = factor;
    for (int bit = 0; bit < 8; bit++) {
        uint8_t* half = made[bit / 4];
        for (int k = 0; k < 1 << bit % 4; k++) half[(1 << bit % 4) + k] = (uint8_t)(half[k] ^ power);
        power = power << 1 ^ (0x11bu & (0u - (power >> 7)));
    }
    return (table){vld1q_u8(made[0]), vld1q_u8(made[1])};
}

static inline uint8x16_t times(table t, uint8x16_t x) {
    return veorq_u8(vqtbl1q_u8(t.low, vandq_u8(x, vdupq_n_u8(15))), vqtbl1q_u8(t.high, vshrq_n_u8(x, 4)));
}

void fc_gf_sum_neon(const uint8_t* weights, const uint8_t* x, int64_t rows, int64_t stride, int64_t bytes,
                    uint8_t* out) {
    table tables[255];
    for (int64_t c = 0; c < rows; c++) tables[c] = table_of(weights[c]);
    int64_t at = 0;
    for (; at + 16 <= bytes; at += 16) {
        uint8x16_t sum = vdupq_n_u8(0);
        for (int64_t c = 0; c < rows; c++) sum = veorq_u8(sum, times(tables[c], vld1q_u8(x + c * stride + at)));
        vst1q_u8(out + at, sum);
    }
    fc_gf_sum_ref(weights, x + at, rows, stride, bytes - at, out + at);
}

void fc_gf_horner_neon(uint8_t point, const uint8_t* x, int64_t rows, int64_t stride, int64_t bytes, uint8_t* out) {
    const table t = table_of(point);
    int64_t at = 0;
    for (; at + 16 <= bytes; at += 16) {
        uint8x16_t sum = vdupq_n_u8(0);
        for (int64_t c = rows - 1; c >= 0; c--) sum = veorq_u8(times(t, sum), vld1q_u8(x + c * stride + at));
        vst1q_u8(out + at, sum);
    }
    fc_gf_horner_ref(point, x + at, rows, stride, bytes - at, out + at);
}
