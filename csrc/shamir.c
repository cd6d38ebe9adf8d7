/* Shamir's shares over GF(2^8), byte by byte. Points and weights are public; secrets, coefficients and shares are only
 * multiplied by them and added, by kernels without branches or addresses that depend on bytes. */
#include <stdlib.h>

#include "impl.h"

int fc_shamir_split(const uint8_t* secrets, int64_t size, int threshold, int shares, const uint8_t* key, uint8_t* out,
                    fc_isa isa) {
    static const uint32_t nonce[3] = {0, 0, 0};
    const fc_kernels* kernels = fc_kernels_for(isa);
    if (!kernels) return FC_NO_ISA;
    const fc_stream_kernels* stream = kernels->chacha20;
    if (!fc_stream_checked(stream, FC_CHACHA20)) return FC_WRONG_STREAM;
    const size_t bytes = (size_t)(threshold * size);
    uint8_t* coefficients = fc_alloc(bytes); /* row c: those of x^c */
    if (!coefficients) return FC_NO_MEMORY;
    uint32_t schedule[FC_SCHEDULE];
    stream->schedule(key, schedule);
    memcpy(coefficients, secrets, (size_t)size);
    fc_stream_fill(stream, schedule, nonce, 0, (int64_t)bytes - size, coefficients + size);
    for (int x = 1; x <= shares; x++)
        kernels->gf_horner((uint8_t)x, coefficients, threshold, size, size, out + (x - 1) * size);
    fc_wipe(schedule, sizeof schedule);
    fc_wipe(coefficients, bytes);
    free(coefficients);
    fc_wipe_stack();
    return FC_OK;
}

/* Products of public numbers. */
static uint8_t product(uint8_t a, uint8_t b) {
    unsigned found = 0, power = a;
    for (int bit = 0; bit < 8; bit++) {
        found ^= power & (0u - (b >> bit & 1));
        power = power << 1 ^ (0x11bu & (0u - (power >> 7)));
    }
    return (uint8_t)found;
}

static uint8_t inverse(uint8_t a) { /* a^254: the group has 255 elements */
    uint8_t found = 1;
    for (int bit = 0; bit < 7; bit++) found = product(product(found, found), a);
    return product(found, found);
}

int fc_shamir_combine(const uint8_t* points, const uint8_t* shares, int count, int64_t size, uint8_t* out, fc_isa isa) {
    const fc_kernels* kernels = fc_kernels_for(isa);
    if (!kernels) return FC_NO_ISA;
    uint8_t weights[255], all = 1; /* Lagrange's at 0 */
    for (int i = 0; i < count; i++) all = product(all, points[i]);
    for (int i = 0; i < count; i++) {
        uint8_t below = points[i];
        for (int j = 0; j < count; j++)
            if (j != i) below = product(below, points[i] ^ points[j]);
        weights[i] = product(all, inverse(below));
    }
    kernels->gf_sum(weights, shares, count, size, size, out);
    fc_wipe_stack();
    return FC_OK;
}
