/* Portable products in GF(2^8) modulo 0x11B: 8 bytes in a word, a shift and a masked XOR for each bit of the public
 * factor. */
#include "impl.h"

/* `power` times z in each byte. */
static uint64_t doubled(uint64_t power) {
    return (power & 0x7f7f7f7f7f7f7f7full) << 1 ^ (power >> 7 & 0x0101010101010101ull) * 0x1b;
}

static uint64_t times(uint8_t factor, uint64_t power) {
    uint64_t found = 0;
    for (int bit = 0; bit < 8; bit++, power = doubled(power)) found ^= power & (0ull - (factor >> bit & 1));
    return found;
}

static uint64_t load(const uint8_t* x, int64_t bytes) {
    uint64_t word = 0;
    memcpy(&word, x, (size_t)bytes);
    return word;
}

void fc_gf_sum_ref(const uint8_t* weights, const uint8_t* x, int64_t rows, int64_t stride, int64_t bytes,
                   uint8_t* out) {
    for (int64_t at = 0; at < bytes; at += 8) {
        const int64_t now = fc_min(8, bytes - at);
        uint64_t sum = 0;
        for (int64_t c = 0; c < rows; c++) sum ^= times(weights[c], load(x + c * stride + at, now));
        memcpy(out + at, &sum, (size_t)now);
    }
}

void fc_gf_horner_ref(uint8_t point, const uint8_t* x, int64_t rows, int64_t stride, int64_t bytes, uint8_t* out) {
    for (int64_t at = 0; at < bytes; at += 8) {
        const int64_t now = fc_min(8, bytes - at);
        uint64_t sum = 0;
        for (int64_t c = rows - 1; c >= 0; c--) sum = times(point, sum) ^ load(x + c * stride + at, now);
        memcpy(out + at, &sum, (size_t)now);
    }
}
