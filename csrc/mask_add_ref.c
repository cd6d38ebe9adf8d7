/* Portable quantising for mask_add, and the reduction modulo 2^bits on the way out. */
#include "impl.h"

static int64_t quantised(double x, double scale, double limit) {
    const double product = x * scale, low = product > -limit ? product : -limit; /* NaN becomes -limit */
    return llrint(low < limit ? low : limit);
}

#define QUANTISE(name, in, bits)                                                                                       \
    int fc_quantise_##name##_##bits##_ref(const void* values, double scale, double limit, int64_t length, void* out) { \
        int bad = 0;                                                                                                   \
        for (int64_t k = 0; k < length; k++) {                                                                         \
            in x;                                                                                                      \
            memcpy(&x, (const char*)values + k * (int64_t)sizeof x, sizeof x);                                         \
            bad |= x - x != 0;                                                                                         \
            ((int##bits##_t*)out)[k] = (int##bits##_t)quantised((double)x, scale, limit);                              \
        }                                                                                                              \
        return bad;                                                                                                    \
    }
QUANTISE(f32, float, 32)
QUANTISE(f32, float, 64)
QUANTISE(f64, double, 32)
QUANTISE(f64, double, 64)

void fc_reduce_ref(const void* in, uint64_t mask, int64_t bytes, void* out, int stream) {
    int64_t at = 0;
    (void)stream;
    for (; at + 8 <= bytes; at += 8) {
        uint64_t word;
        memcpy(&word, (const char*)in + at, 8);
        word &= mask;
        memcpy((char*)out + at, &word, 8);
    }
    if (at == bytes) return;
    uint32_t word;
    memcpy(&word, (const char*)in + at, 4);
    word &= (uint32_t)mask;
    memcpy((char*)out + at, &word, 4);
}
