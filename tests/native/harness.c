/* Compares every ISA of this machine with the portable kernels, bit for bit, on rows that end where their memory ends
 * and begin at every alignment. Built by test_harness.py with sanitizers, and for 64-bit Arm to run under an emulator.
 */
#include <stdio.h>
#include <stdlib.h>

#include "impl.h"

static uint64_t state = 0x9e3779b97f4a7c15ull;
static uint64_t draw(void) {
    state ^= state << 13;
    state ^= state >> 7;
    return state ^= state << 17;
}

static int64_t compared, differed;
static void compare(const void* a, const void* b, size_t bytes, const char* what, fc_isa isa, fc_dtype dtype,
                    int64_t d) {
    compared++;
    if (bytes && memcmp(a, b, bytes)) {
        differed++;
        printf("%s: isa %d, dtype %d, %lld columns differ\n", what, (int)isa, (int)dtype, (long long)d);
    }
}

/* Bits of a finite number: mostly of moderate exponent; of any exponent, subnormals too, where `wild`. */
static void put(char* at, fc_dtype dtype, int wild) {
    const uint64_t r = draw();
    if (dtype == FC_F32) {
        const uint32_t exponent = wild ? (uint32_t)(r >> 32) % 255 : 100 + (uint32_t)(r >> 32) % 55;
        const uint32_t bits = (uint32_t)(r & 0x807fffff) | exponent << 23;
        memcpy(at, &bits, 4);
    } else {
        const uint16_t half = (uint16_t)((r & 0x83ff) | (r >> 20) % (wild ? 31 : 28) << 10);
        const uint16_t brain = (uint16_t)((r & 0x807f) | (wild ? (r >> 20) % 255 : 100 + (r >> 20) % 55) << 7);
        memcpy(at, dtype == FC_F16 ? &half : &brain, 2);
    }
}

enum { ROWS = 37 }; /* three panels of gram, the last with half a tile */

static void check(fc_dtype dtype, int64_t d, int offset, int segments, int wild) {
    const int size = fc_itemsize(dtype);
    char* memory[ROWS];
    const void* pointers[ROWS * 3];
    int64_t starts[4] = {0, d, d, d};
    if (segments == 3) {
        starts[1] = d / 3;
        starts[2] = d / 3 + d / 2;
    }
    for (int i = 0; i < ROWS; i++) {
        memory[i] = malloc((size_t)(d * size + offset) + 1); /* the last byte keeps malloc(0) away */
        for (int64_t k = 0; k < d; k++) put(memory[i] + 1 + offset + k * size, dtype, wild && i % 3 == 0);
        for (int k = 0; k < segments; k++) pointers[k * ROWS + i] = memory[i] + 1 + offset + starts[k] * size;
    }
    const void* center_pointers[3] = {pointers[3], pointers[ROWS + 3], pointers[2 * ROWS + 3]};
    const fc_rows x = {pointers, starts, segments, ROWS, dtype}, center = {center_pointers, starts, segments, 1, dtype};
    float weights[ROWS];
    int64_t pairs[10];
    for (int i = 0; i < ROWS; i++) weights[i] = i == 4 ? 0.0f : (float)((int)(draw() % 2001) - 1000) / 64.0f;
    for (int p = 0; p < 10; p++) pairs[p] = (int64_t)(draw() % ROWS);
    const double divisor = wild ? NAN : offset % 2 ? -1e-3 : 17.0;
    for (int out = 0; out < 4; out++) {
        const size_t bytes = (size_t)(d * fc_itemsize((fc_dtype)out));
        char *expected = malloc(bytes + 1), *got = malloc(bytes + 1);
        const int status = fc_weighted_sum(&x, weights, divisor, expected, (fc_dtype)out, FC_ISA_REF, 1);
        for (int isa = FC_ISA_AUTO; isa <= FC_ISA_NEON; isa++) {
            if (!fc_isa_available((fc_isa)isa)) continue;
            const int again = fc_weighted_sum(&x, weights, divisor, got, (fc_dtype)out, (fc_isa)isa, 2);
            compare(&status, &again, sizeof status, "status", (fc_isa)isa, dtype, d);
            compare(expected, got, bytes, "weighted_sum", (fc_isa)isa, dtype, d);
        }
        free(expected);
        free(got);
    }
    double norms[2][ROWS], gram[2][ROWS * ROWS], distances[2][5];
    uint64_t digest[2];
    for (int centered = 0; centered < 2; centered++)
        for (int isa = FC_ISA_REF; isa <= FC_ISA_NEON; isa++) {
            if (!fc_isa_available((fc_isa)isa)) continue;
            const int slot = isa != FC_ISA_REF;
            fc_squared_norms(&x, centered ? &center : NULL, norms[slot], (fc_isa)isa, 2);
            fc_gram(&x, centered ? &center : NULL, gram[slot], (fc_isa)isa, 2);
            fc_squared_distances(&x, pairs, 5, distances[slot], (fc_isa)isa, 2);
            fc_read(&x, 4, &digest[slot], (fc_isa)isa, 2);
            if (!slot) continue;
            compare(norms[0], norms[1], sizeof norms[0], "squared_norms", (fc_isa)isa, dtype, d);
            compare(gram[0], gram[1], sizeof gram[0], "gram", (fc_isa)isa, dtype, d);
            compare(distances[0], distances[1], sizeof distances[0], "squared_distances", (fc_isa)isa, dtype, d);
            if (d * size % 64 == 0) compare(&digest[0], &digest[1], sizeof digest[0], "read", (fc_isa)isa, dtype, d);
        }
    for (int i = 0; i < ROWS; i++) free(memory[i]);
}

int main(void) {
    static const int64_t sizes[] = {0, 1, 7, 8, 15, 16, 17, 31, 32, 33, 255, 257, 1025, 4097, 8193, 16385};
    for (int dtype = FC_F32; dtype <= FC_BF16; dtype++)
        for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
            for (int offset = 0; offset < 4; offset++)
                for (int wild = 0; wild < 2; wild++) check((fc_dtype)dtype, sizes[s], offset, offset % 2 ? 3 : 1, wild);
    printf("best ISA %d: %lld comparisons, %lld differ\n", (int)fc_isa_best(), (long long)compared,
           (long long)differed);
    return differed != 0;
}
