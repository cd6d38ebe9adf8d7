/* Compares every ISA of this machine with the portable kernels, bit for bit, on rows that end where their memory ends
 * and begin at every alignment. Built by test_harness.py with sanitizers, and for 64-bit Arm to run under an emulator.
 */
#define _DEFAULT_SOURCE /* pthread_attr_setstack */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "discrete_gaussian.h"
#include "impl.h"

#ifndef OFFSETS /* places where rows begin: fewer where all is slow */
#define OFFSETS 4
#endif
#ifndef MORE /* from one number of rows to the next: each has a network of its own, in which no thread is */
#define MORE 1
#endif
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) && !defined(NO_STACKS)
#define STACKS /* where nothing else keeps copies there: sanitizers, or vectors that no register holds */
#endif

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

/* AMX has bits of its own: both are within EPSILON / 4 and EPSILON_AMX / 4 of fedcore/reference/gram.py, so they are
 * within the sum of the two. */
enum { ROWS = 37, MIXTURES = 4 }; /* three panels of gram, the last one not full */
static void check_near(const double* a, const double* b, fc_dtype dtype, int64_t d) {
    compared++;
    for (int i = 0; i < ROWS; i++)
        for (int k = 0; k < ROWS; k++) {
            const double size = a[i * ROWS + i] + a[k * ROWS + k];
            if (fabs(a[i * ROWS + k] - b[i * ROWS + k]) <= (20 + 57) * 0x1p-24 * size) continue;
            differed++;
            printf("gram: isa amx, dtype %d, %lld columns: %g and %g\n", (int)dtype, (long long)d, a[i * ROWS + k],
                   b[i * ROWS + k]);
            return;
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

static int order_statistic(const fc_rows* x, int op, int64_t f, void* out, fc_dtype dtype, fc_isa isa, int threads) {
    if (op == 0) return fc_median(x, out, dtype, isa, threads);
    if (op == 1) return fc_trimmed_mean(x, f, out, dtype, isa, threads);
    return fc_mean_around_median(x, f, out, dtype, isa, threads);
}

/* One of median, trimmed_mean, mean_around_median. */
static void check_order(const fc_rows* x, int op, fc_dtype out, int64_t f) {
    static const char* const names[] = {"median", "trimmed_mean", "mean_around_median"};
    const int64_t d = x->starts[x->segments];
    const size_t bytes = (size_t)(d * fc_itemsize(out));
    char *expected = malloc(bytes + 1), *got = malloc(bytes + 1);
    const int status = order_statistic(x, op, f, expected, out, FC_ISA_REF, 1);
    for (int isa = FC_ISA_AUTO; isa <= FC_ISA_NEON; isa++) {
        if (!fc_isa_available((fc_isa)isa)) continue;
        const int again = order_statistic(x, op, f, got, out, (fc_isa)isa, 2);
        compare(&status, &again, sizeof status, names[op], (fc_isa)isa, x->dtype, d);
        if (status == FC_OK) compare(expected, got, bytes, names[op], (fc_isa)isa, x->dtype, d);
    }
    free(expected);
    free(got);
}

#if defined(__x86_64__)
/* Both ways of AVX-512, whichever this processor would take. */
static void check_both_ways(const void* const* rows, fc_dtype dtype, int64_t n, int64_t d) {
    if (!fc_isa_available(FC_ISA_AVX512)) return;
    fc_order_fn* const truth[] = {
        [FC_F32] = fc_order_f32_ref, [FC_F16] = fc_order_f16_ref, [FC_BF16] = fc_order_bf16_ref};
    fc_order_fn* const ways[][2] = {[FC_F32] = {fc_order_f32_floats_avx512, fc_order_f32_keys_avx512},
                                    [FC_F16] = {fc_order_f16_blends_avx512, fc_order_f16_keys_avx512},
                                    [FC_BF16] = {fc_order_bf16_blends_avx512, fc_order_bf16_keys_avx512}};
    double* results = malloc(2 * (size_t)d * sizeof *results);
    void* scratch = fc_alloc((size_t)FC_ORDER_SCRATCH(n));
    for (int statistic = FC_MEDIAN; statistic <= FC_MEAN_AROUND_MEDIAN; statistic++) {
        const int bad = !!truth[dtype](rows, n, 0, d, (fc_statistic)statistic, n / 3, scratch, results);
        for (int way = 0; way < 2; way++) {
            for (int64_t k = 0; k < d; k++) results[d + k] = NAN;
            const int found = !!ways[dtype][way](rows, n, 0, d, (fc_statistic)statistic, n / 3, scratch, results + d);
            for (int64_t k = 0; k < 2 * d; k++) results[k] += 0.0; /* -0 is put right later */
            const char* const name = way ? "keys" : "floats or blends";
            compare(&bad, &found, sizeof bad, name, FC_ISA_AVX512, dtype, d);
            if (!bad) compare(results, results + d, (size_t)d * sizeof *results, name, FC_ISA_AVX512, dtype, d);
        }
    }
    free(scratch);
    free(results);
}
#endif

/* Rows that lie in the order in which they come, or in another order of the leaves that they fall into: what merges
 * meet at their ends, which random rows hardly show. */
static void put_steps(char* memory, fc_dtype dtype, int64_t n, int wide) {
    const int64_t half = (n + 1) / 2, cuts[] = {(half + 1) / 2, half, half + (n - half + 1) / 2, n};
    for (int k = 0; k < wide; k++) {
        const uint64_t levels = draw();
        int64_t i = 0;
        for (int leaf = 0; leaf < 4; leaf++)
            for (; i < cuts[leaf]; i++) {
                const uint64_t inside = levels >> 60 & 1 ? (uint64_t)i % 256 : 0;
                const uint16_t bits = (uint16_t)((levels >> 61 & 1) << 15 | (levels >> 8 * leaf & 3) << 12 | inside);
                const uint32_t wider = (uint32_t)bits << 16;
                memcpy(memory + (i * wide + k) * fc_itemsize(dtype), dtype == FC_F32 ? (const void*)&wider : &bits,
                       (size_t)fc_itemsize(dtype));
            }
    }
}

/* Every order statistic of n pieces of one buffer. */
static void check_orders(const fc_rows* x) {
    const int64_t n = x->rows;
    check_order(x, 0, FC_F64, 0);
    check_order(x, 1, FC_F64, (n - 1) / 3);
    check_order(x, 2, FC_F64, n / 3);
    check_order(x, 2, FC_F32, n - 1);
#if defined(__x86_64__)
    check_both_ways(x->pointers, x->dtype, n, x->starts[1]);
#endif
}

/* Every leaf, merges of every depth, in few columns, and what is not finite. */
static void check_many_rows(fc_dtype dtype, int64_t n, int steps) {
    enum { WIDE = 35 };
    static const uint32_t refused[] = {0x7f800000, 0xff800000, 0x7f800001, 0xffc00000, 0xffffffff}; /* Inf, NaN */
    const int size = fc_itemsize(dtype);
    char* memory = malloc((size_t)(n * WIDE * size));
    const void** pointers = malloc((size_t)n * sizeof *pointers);
    const int64_t starts[2] = {0, WIDE};
    for (int64_t i = 0; i < n; i++) {
        pointers[i] = memory + i * WIDE * size;
        for (int k = 0; k < WIDE; k++) put(memory + (i * WIDE + k) * size, dtype, k % 2);
    }
    if (steps) put_steps(memory, dtype, n, WIDE);
    const fc_rows x = {.pointers = pointers, .starts = starts, .segments = 1, .rows = n, .dtype = dtype};
    check_orders(&x);
    for (size_t r = 0; r < sizeof refused / sizeof *refused && !steps; r++) {
        char* const at = memory + (int64_t)(draw() % (uint64_t)(n * WIDE)) * size;
        const uint16_t brain = (uint16_t)(refused[r] >> 16 | !!(refused[r] & 0xffff));
        const uint16_t half = (uint16_t)((refused[r] >> 16 & 0x8000) | 0x7c00 | (refused[r] & 0x7fffff ? 0x3ff : 0));
        char kept[4];
        memcpy(kept, at, (size_t)size);
        memcpy(at, dtype == FC_F32 ? (const void*)&refused[r] : dtype == FC_F16 ? &half : &brain, (size_t)size);
        check_orders(&x);
        memcpy(at, kept, (size_t)size);
    }
    free(pointers);
    free(memory);
}

enum { OUTPUTS = 11 }; /* two groups of outputs, of different sizes */

/* Few outputs and many, against the portable kernel of fc_weighted_sum, output by output. */
static void check_sums(const fc_rows* x, double divisor, fc_dtype out) {
    const int64_t d = x->starts[x->segments];
    const size_t bytes = (size_t)(d * fc_itemsize(out));
    float* weights = malloc((size_t)(OUTPUTS * x->rows) * sizeof *weights);
    char *expected = malloc(OUTPUTS * bytes + 1), *got = malloc(OUTPUTS * bytes + 1);
    double divisors[OUTPUTS];
    int status = FC_OK;
    for (int64_t i = 0; i < OUTPUTS * x->rows; i++) weights[i] = (float)((int)(draw() % 2001) - 1000) / 64.0f;
    for (int o = 0; o < OUTPUTS; o++) {
        divisors[o] = divisor;
        status |= fc_weighted_sum(x, weights + o * x->rows, divisor, expected + (size_t)o * bytes, out, FC_ISA_REF, 1);
    }
    for (int isa = FC_ISA_REF; isa <= FC_ISA_NEON; isa++) {
        if (!fc_isa_available((fc_isa)isa)) continue;
        const int again = fc_weighted_sums(x, weights, OUTPUTS, divisors, got, out, (fc_isa)isa, 2);
        compare(&status, &again, sizeof status, "weighted_sums status", (fc_isa)isa, x->dtype, d);
        compare(expected, got, OUTPUTS * bytes, "weighted_sums", (fc_isa)isa, x->dtype, d);
        fc_weighted_sums(x, weights, 3, divisors, got, out, (fc_isa)isa, 2);
        compare(expected, got, 3 * bytes, "weighted_sums of few", (fc_isa)isa, x->dtype, d);
    }
    free(weights);
    free(expected);
    free(got);
}

static void check_signs(const fc_rows* x, const fc_rows* center) {
    const int64_t d = x->starts[x->segments];
    int32_t *expected = malloc((size_t)d * sizeof *expected + 1), *got = malloc((size_t)d * sizeof *got + 1);
    const int status = fc_sign_counts(x, center, expected, FC_ISA_REF, 1);
    for (int isa = FC_ISA_AVX2; isa <= FC_ISA_NEON; isa++) {
        if (!fc_isa_available((fc_isa)isa)) continue;
        const int again = fc_sign_counts(x, center, got, (fc_isa)isa, 2);
        compare(&status, &again, sizeof status, "sign_counts status", (fc_isa)isa, x->dtype, d);
        compare(expected, got, (size_t)d * sizeof *got, "sign_counts", (fc_isa)isa, x->dtype, d);
    }
    free(expected);
    free(got);
}

/* Scales as clip_scales gives them, but free: 24 bits, products of at most 2^30 in size. */
static void check_clip(const fc_rows* x, double divisor, fc_dtype out) {
    const int64_t d = x->starts[x->segments];
    const size_t bytes = (size_t)(d * fc_itemsize(out));
    int32_t* integers[2];
    char* sums[2];
    int64_t squares[2], *noise = malloc((size_t)d * sizeof *noise + 1);
    double norms[ROWS] = {0}, scales[ROWS];
    for (int64_t k = 0; k < d; k++) noise[k] = (int64_t)(draw() >> 24) - (1ll << 39);
    fc_squared_norms(x, NULL, norms, FC_ISA_REF, 1);
    for (int i = 0; i < ROWS; i++)
        scales[i] = i == 4 ? 0.0 : (double)(float)(1.0 / (sqrt(norms[i]) + 0x1p-100)) * (double)(1 << (i % 28));
    for (int s = 0; s < 2; s++) {
        integers[s] = malloc((size_t)d * sizeof(int32_t) + 1);
        sums[s] = malloc(bytes + 1);
    }
    const void* row[3];
    for (int64_t k = 0; k < x->segments; k++) row[k] = x->pointers[k * x->rows + ROWS - 1];
    const fc_rows one = {row, x->starts, x->segments, 1, x->dtype, NULL};
    for (int isa = FC_ISA_REF; isa <= FC_ISA_NEON; isa++) {
        if (!fc_isa_available((fc_isa)isa)) continue;
        const int slot = isa != FC_ISA_REF;
        fc_clip_round(&one, scales[ROWS - 1], integers[slot], &squares[slot], (fc_isa)isa, 2);
        fc_clip_noise_accumulate(x, scales, 0x1p-9, d % 2 ? noise : NULL, divisor, sums[slot], out, (fc_isa)isa, 2);
        if (!slot) continue;
        compare(integers[0], integers[1], (size_t)d * sizeof(int32_t), "clip_round", (fc_isa)isa, x->dtype, d);
        compare(&squares[0], &squares[1], sizeof *squares, "clip_round squares", (fc_isa)isa, x->dtype, d);
        compare(sums[0], sums[1], bytes, "clip_noise_accumulate", (fc_isa)isa, x->dtype, d);
    }
    for (int s = 0; s < 2; s++) {
        free(integers[s]);
        free(sums[s]);
    }
    free(noise);
}

/* Rows added one by one, in one order on the portable kernels and in the other on each ISA: the same rounded bits. */
static void check_exact(const fc_rows* x) {
    enum { LEVELS = 20, MOST_ROWS = 9 };
    const int64_t d = x->starts[x->segments], chunks = d / FC_EXACT_CHUNK + 1;
    double *expected = malloc((size_t)d * sizeof *expected + 1), *got = malloc((size_t)d * sizeof *got + 1);
    for (int isa = FC_ISA_REF; isa <= FC_ISA_NEON; isa++) {
        if (!fc_isa_available((fc_isa)isa)) continue;
        double* levels[LEVELS];
        uint8_t* depth = calloc((size_t)chunks, 1);
        int status = FC_OK;
        for (int l = 0; l < LEVELS; l++) levels[l] = calloc((size_t)d + 1, sizeof **levels);
        for (int i = 0; i < MOST_ROWS; i++) {
            const int row = isa == FC_ISA_REF ? i : MOST_ROWS - 1 - i;
            const void** pointers = malloc((size_t)x->segments * sizeof *pointers);
            for (int64_t k = 0; k < x->segments; k++) pointers[k] = x->pointers[k * x->rows + row];
            const fc_rows one = {
                .pointers = pointers, .starts = x->starts, .segments = x->segments, .rows = 1, .dtype = x->dtype};
            status |= fc_exact_sum(levels, LEVELS, depth, &one, (float)(row + 1) / 3.0f, (fc_isa)isa, 2);
            free(pointers);
        }
        double* out = isa == FC_ISA_REF ? expected : got;
        status |= fc_exact_round((const double* const*)levels, depth, d, 7.0, out, FC_F64, (fc_isa)isa, 2);
        const int fine = FC_OK;
        compare(&status, &fine, sizeof status, "exact_sum status", (fc_isa)isa, x->dtype, d);
        if (isa != FC_ISA_REF) compare(expected, got, (size_t)d * sizeof *got, "exact_sum", (fc_isa)isa, x->dtype, d);
        for (int l = 0; l < LEVELS; l++) free(levels[l]);
        free(depth);
    }
    free(expected);
    free(got);
}

static void check_hadamard(int64_t block, int64_t blocks, int offset) {
    const int64_t d = block * blocks;
    const size_t bytes = (size_t)d * sizeof(float);
    char *given = malloc(bytes), *memory[2] = {malloc(bytes + 64), malloc(bytes + 64)};
    for (int64_t k = 0; k < d; k++) put(given + 4 * k, FC_F32, 0);
    for (int isa = FC_ISA_REF; isa <= FC_ISA_NEON; isa++) {
        if (!fc_isa_available((fc_isa)isa)) continue;
        const int slot = isa != FC_ISA_REF;
        float* x = (float*)(memory[slot] + 64 - 4 * offset); /* it ends near where its memory ends */
        memcpy(x, given, bytes);
        fc_hadamard(x, d, block, (fc_isa)isa, 2);
        if (slot) compare(memory[0] + 64 - 4 * offset, x, bytes, "hadamard", (fc_isa)isa, FC_F32, d);
    }
    free(given);
    for (int s = 0; s < 2; s++) free(memory[s]);
}

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
    const fc_rows x = {pointers, starts, segments, ROWS, dtype, NULL},
                  center = {center_pointers, starts, segments, 1, dtype, NULL};
    float weights[ROWS];
    int64_t pairs[10], mixed[10];
    double mix[MIXTURES * ROWS];
    for (int i = 0; i < ROWS; i++) weights[i] = i == 4 ? 0.0f : (float)((int)(draw() % 2001) - 1000) / 64.0f;
    for (int p = 0; p < 10; p++) pairs[p] = (int64_t)(draw() % ROWS);
    for (int p = 0; p < 10; p++) mixed[p] = (int64_t)(draw() % MIXTURES);
    for (int k = 0; k < MIXTURES * ROWS; k++) mix[k] = draw() % 3 ? 0.0 : (double)((int)(draw() % 2001) - 1000) / 999;
    const double divisor = wild ? NAN : offset % 2 ? -1e-3 : 17.0;
    for (int out = 0; out < 4; out++) {
        const size_t bytes = (size_t)(d * fc_itemsize((fc_dtype)out));
        char *expected = malloc(bytes + 1), *got = malloc(bytes + 1);
        const int status = fc_weighted_sum(&x, weights, divisor, expected, (fc_dtype)out, FC_ISA_REF, 1);
        for (int isa = FC_ISA_AUTO; isa <= FC_ISA_AMX; isa++) {
            if (!fc_isa_available((fc_isa)isa)) continue;
            const int again = fc_weighted_sum(&x, weights, divisor, got, (fc_dtype)out, (fc_isa)isa, 2);
            compare(&status, &again, sizeof status, "status", (fc_isa)isa, dtype, d);
            compare(expected, got, bytes, "weighted_sum", (fc_isa)isa, dtype, d);
        }
        free(expected);
        free(got);
    }
    for (int op = 0; op < 3; op++)
        for (int out = 0; out < 4; out++) /* the portable kernel takes its time: wide rows once */
            if (d < 2000 || (out == FC_F32 && offset == 3)) check_order(&x, op, (fc_dtype)out, offset);
    check_sums(&x, divisor, (fc_dtype)offset);
    check_signs(&x, NULL);
    check_signs(&x, &center);
    check_clip(&x, divisor, (fc_dtype)offset);
    check_exact(&x);
    double norms[2][ROWS], gram[2][ROWS * ROWS], distances[2][10];
    uint64_t digest[2];
    for (int centered = 0; centered < 2; centered++)
        for (int isa = FC_ISA_REF; isa <= FC_ISA_AMX; isa++) {
            if (!fc_isa_available((fc_isa)isa)) continue;
            const int slot = isa != FC_ISA_REF;
            memset(norms[slot], 0, sizeof norms[slot]);
            memset(gram[slot], 0, sizeof gram[slot]);
            memset(distances[slot], 0, sizeof distances[slot]);
            fc_squared_norms(&x, centered ? &center : NULL, norms[slot], (fc_isa)isa, 2);
            fc_gram(&x, centered ? &center : NULL, 0, gram[slot], (fc_isa)isa, 2);
            fc_squared_distances(&x, pairs, 5, NULL, 0, distances[slot], (fc_isa)isa, 2);
            fc_squared_distances(&x, mixed, 5, mix, MIXTURES, distances[slot] + 5, (fc_isa)isa, 2);
            fc_read(&x, 4, &digest[slot], (fc_isa)isa, 2);
            if (!slot) continue;
            compare(norms[0], norms[1], sizeof norms[0], "squared_norms", (fc_isa)isa, dtype, d);
            if (isa == FC_ISA_AMX) check_near(gram[0], gram[1], dtype, d);
            else compare(gram[0], gram[1], sizeof gram[0], "gram", (fc_isa)isa, dtype, d);
            compare(distances[0], distances[1], sizeof distances[0], "squared_distances", (fc_isa)isa, dtype, d);
            if (d * size % 64 == 0) compare(&digest[0], &digest[1], sizeof digest[0], "read", (fc_isa)isa, dtype, d);
        }
    for (int i = 0; i < ROWS; i++) free(memory[i]);
}

/* gram of more rows than are columns of tiles at a time, the last four half a tile, from row `first` on. */
static void check_gram_of_many(int64_t d, int64_t first) {
    enum { MANY = 68 };
    float* memory = malloc(MANY * (size_t)d * sizeof *memory);
    const void* pointers[MANY];
    const int64_t starts[] = {0, d};
    double* gram[2] = {malloc(MANY * MANY * sizeof(double)), malloc(MANY * MANY * sizeof(double))};
    for (int64_t i = 0; i < MANY * d; i++) memory[i] = (float)((int)(draw() % 2001) - 1000) / 64.0f;
    for (int i = 0; i < MANY; i++) pointers[i] = memory + i * d;
    const fc_rows x = {pointers, starts, 1, MANY, FC_F32, NULL};
    for (int isa = FC_ISA_REF; isa < FC_ISA_AMX; isa++) {
        if (!fc_isa_available((fc_isa)isa)) continue;
        const int slot = isa != FC_ISA_REF;
        memset(gram[slot], 0, MANY * MANY * sizeof(double));
        fc_gram(&x, NULL, first, gram[slot], (fc_isa)isa, 2);
        if (slot) compare(gram[0], gram[1], MANY * MANY * sizeof(double), "gram of many", (fc_isa)isa, FC_F32, d);
    }
    free(memory);
    free(gram[0]);
    free(gram[1]);
}

/* `bytes` random bytes that end where their memory ends and begin `offset` past an aligned address. */
static char* random_bytes(int64_t bytes, int offset) {
    char* memory = malloc((size_t)(bytes + offset) + 1);
    for (int64_t k = 0; k < bytes + offset; k++) memory[k] = (char)(draw() >> 24);
    return memory;
}

enum { ORIGIN = 37, MOST = 3 }; /* tensors are cut at multiples of this, where no block begins */

/* Rows whose pieces are tensors of any format, quantised ones above all, with every array in memory of its own. */
static void check_encoded(int64_t d, int offset, int segments) {
    enum { PIECES = ROWS * MOST };
    char* memory[4][PIECES] = {{0}};
    const void *pointers[PIECES], *scales[3 * PIECES] = {0};
    uint8_t formats[PIECES];
    int64_t starts[MOST + 1] = {0, d, d, d}, origins[PIECES];
    if (segments == MOST) {
        starts[1] = d / 3;
        starts[2] = d / 3 + d / 2;
    }
    for (int at = 0; at < segments * ROWS; at++) {
        static const uint8_t kinds[] = {FC_NF4, FC_INT8, FC_F32, FC_NF4, FC_INT8, FC_BF16, FC_F16};
        const int k = at / ROWS, format = formats[at] = kinds[draw() % sizeof kinds];
        origins[at] = (k + at % 3) * ORIGIN;
        const int64_t size = origins[at] + starts[k + 1] - starts[k], blocks = fc_ceil(size, FC_BLOCK);
        const int quantised = format >= FC_INT8;
        const int64_t bytes = format == FC_NF4    ? fc_ceil(size, 2)
                              : format == FC_INT8 ? size
                                                  : size * fc_itemsize(format);
        memory[0][at] = random_bytes(bytes, offset);
        if (!quantised)
            for (int64_t e = 0; e < size; e++) put(memory[0][at] + offset + e * fc_itemsize(format), format, 0);
        pointers[at] = memory[0][at] + offset;
        const int64_t lengths[3] = {format == FC_NF4 ? blocks : 4 * blocks, 4 * fc_ceil(blocks, FC_NESTED), 4};
        for (int s = 0; s < (format == FC_NF4 ? 3 : quantised); s++) {
            memory[1 + s][at] = random_bytes(lengths[s], offset);
            for (int64_t e = 0; (format == FC_INT8 || s) && e < lengths[s]; e += 4)
                put(memory[1 + s][at] + offset + e, FC_F32, 0);
            scales[s * segments * ROWS + at] = memory[1 + s][at] + offset;
        }
    }
    const fc_encoding encoding = {formats, scales, origins};
    const fc_rows x = {pointers, starts, segments, ROWS, FC_F32, &encoding};
    float weights[ROWS], sums[2][16385];
    const int64_t pairs[6] = {0, 1, 5, 36, 7, 7};
    double norms[2][ROWS], gram[2][ROWS * ROWS], distances[2][3];
    for (int i = 0; i < ROWS; i++) weights[i] = (float)((int)(draw() % 2001) - 1000) / 64.0f;
    for (int isa = FC_ISA_REF; isa <= FC_ISA_AMX; isa++) {
        if (!fc_isa_available((fc_isa)isa)) continue;
        const int slot = isa != FC_ISA_REF;
        fc_weighted_sum(&x, weights, 17.0, sums[slot], FC_F32, (fc_isa)isa, 2);
        memset(norms[slot], 0, sizeof norms[slot]);
        memset(gram[slot], 0, sizeof gram[slot]);
        memset(distances[slot], 0, sizeof distances[slot]);
        fc_squared_norms(&x, NULL, norms[slot], (fc_isa)isa, 2);
        fc_gram(&x, NULL, 0, gram[slot], (fc_isa)isa, 2);
        fc_squared_distances(&x, pairs, 3, NULL, 0, distances[slot], (fc_isa)isa, 2);
        if (!slot) continue;
        compare(sums[0], sums[1], (size_t)d * sizeof(float), "weighted_sum", (fc_isa)isa, FC_NF4, d);
        compare(norms[0], norms[1], sizeof norms[0], "squared_norms", (fc_isa)isa, FC_NF4, d);
        if (isa == FC_ISA_AMX) check_near(gram[0], gram[1], FC_NF4, d);
        else compare(gram[0], gram[1], sizeof gram[0], "gram", (fc_isa)isa, FC_NF4, d);
        compare(distances[0], distances[1], sizeof distances[0], "squared_distances", (fc_isa)isa, FC_NF4, d);
    }
    for (int p = 0; p < 4; p++)
        for (int at = 0; at < PIECES; at++) free(memory[p][at]);
}

enum { CLIENTS = 7 };
static const int64_t ranks[CLIENTS] = {3, 0, 16, 1, 200, 8, 40}; /* the last goes on in a second chain */

/* Factors of every dtype in one module, each ending where its memory ends, at any alignment. */
typedef struct {
    char* memory[2 * CLIENTS];
    const void* at[2 * CLIENTS];
    uint8_t dtypes[2 * CLIENTS];
} factor_memory;

static fc_factors make_factors(factor_memory* m, int64_t d_out, int64_t d_in, int offset) {
    for (int f = 0; f < 2 * CLIENTS; f++) {
        m->dtypes[f] = (uint8_t)(draw() % 3);
        const int64_t size = ranks[f % CLIENTS] * (f < CLIENTS ? d_out : d_in);
        const int bytes = fc_itemsize((fc_dtype)m->dtypes[f]);
        m->memory[f] = malloc((size_t)(size * bytes + offset) + 1);
        m->at[f] = m->memory[f] + 1 + offset;
        for (int64_t k = 0; k < size; k++) put(m->memory[f] + 1 + offset + k * bytes, (fc_dtype)m->dtypes[f], 0);
    }
    return (fc_factors){m->at, m->at + CLIENTS, m->dtypes, m->dtypes + CLIENTS, ranks, CLIENTS, d_out, d_in};
}

static void check_lora_gram(const fc_factors* x, const double* scales) {
    int64_t terms = 0;
    for (int i = 0; i < CLIENTS; i++) terms += ranks[i];
    const size_t bytes = (size_t)(terms * terms) * sizeof(double);
    double *blocks[4], grams[2][CLIENTS * CLIENTS] = {{0}};
    for (int m = 0; m < 4; m++) blocks[m] = malloc(bytes);
    for (int isa = FC_ISA_REF; isa <= FC_ISA_NEON; isa++) {
        if (!fc_isa_available((fc_isa)isa)) continue;
        const int slot = isa != FC_ISA_REF;
        memset(grams[slot], 0, sizeof grams[slot]);
        fc_lora_blocks(x, blocks[2 * slot], blocks[2 * slot + 1], (fc_isa)isa, 2);
        fc_lora_gram(x, scales, grams[slot], (fc_isa)isa, 2);
        if (!slot) continue;
        for (int m = 0; m < 2; m++)
            compare(blocks[m], blocks[2 + m], bytes, "lora_blocks", (fc_isa)isa, FC_F32, x->d_in);
        compare(grams[0], grams[1], sizeof grams[0], "lora_gram", (fc_isa)isa, FC_F32, x->d_in);
    }
    for (int m = 0; m < 4; m++) free(blocks[m]);
}

static void check_lora(int64_t d_out, int64_t d_in, int offset) {
    factor_memory memory;
    const fc_factors x = make_factors(&memory, d_out, d_in, offset);
    const double coefficients[CLIENTS] = {0.5, 1.0, -2.0, 1e-3, 0.0, 3.0, 1.0 / 3.0};
    for (int out = 0; out < 4; out++) {
        const size_t bytes = (size_t)(d_out * d_in * fc_itemsize((fc_dtype)out));
        char *expected = malloc(bytes + 1), *got = malloc(bytes + 1);
        char* base = malloc((size_t)(d_out * d_in * 2 + 1));
        for (int64_t k = 0; k < d_out * d_in; k++) put(base + 1 + 2 * k, FC_BF16, 0);
        for (int isa = FC_ISA_REF; isa <= FC_ISA_NEON; isa++) {
            if (!fc_isa_available((fc_isa)isa)) continue;
            char* to = isa == FC_ISA_REF ? expected : got;
            fc_lora_delta_sum(&x, out % 2 ? NULL : coefficients, out < 2 ? NULL : base + 1, FC_BF16, to, (fc_dtype)out,
                              (fc_isa)isa, 2);
            if (isa != FC_ISA_REF) compare(expected, got, bytes, "lora_delta_sum", (fc_isa)isa, FC_F32, d_in);
        }
        free(expected);
        free(got);
        free(base);
    }
    const size_t size = (size_t)(d_out * d_in) * sizeof(float);
    float* order[4];
    for (int m = 0; m < 4; m++) order[m] = malloc(size);
    for (int isa = FC_ISA_REF; isa <= FC_ISA_NEON; isa++) {
        if (!fc_isa_available((fc_isa)isa)) continue;
        float** to = order + (isa == FC_ISA_REF ? 0 : 2);
        fc_lora_delta_median(&x, NULL, to[0], FC_F32, (fc_isa)isa, 2);
        fc_lora_delta_trimmed_mean(&x, coefficients, offset, to[1], FC_F32, (fc_isa)isa, 2);
        for (int m = 0; m < 2; m++) compare(order[m], to[m], size, "lora_delta order", (fc_isa)isa, FC_F32, d_in);
    }
    for (int m = 0; m < 4; m++) free(order[m]);
    if (offset == 1) check_lora_gram(&x, coefficients);
    for (int f = 0; f < 2 * CLIENTS; f++) free(memory.memory[f]);
}

/* Every length of a stream about its groups and chunks, in memory that ends where the stream ends. */
static void check_stream(fc_stream stream, int64_t size, int offset) {
    uint8_t key[96], nonce[12];
    const int8_t signs[3] = {1, -1, 1};
    for (size_t k = 0; k < sizeof key; k++) key[k] = (uint8_t)draw();
    for (size_t k = 0; k < sizeof nonce; k++) nonce[k] = (uint8_t)draw();
    uint8_t* streams[2] = {malloc((size_t)size + 1), malloc((size_t)size + 1)};
    uint32_t* values[2];
    const int64_t words = size / 4;
    for (int m = 0; m < 2; m++) values[m] = calloc((size_t)words + 4, 4);
    int known = 0;
    for (int isa = FC_ISA_REF; isa <= FC_ISA_AMX; isa++) {
        if (!fc_stream_available(stream, (fc_isa)isa)) continue;
        const int slot = known != 0;
        const int status =
            fc_keystream(stream, key, nonce, 0xfffffeffu - 65536, streams[slot] + 1 - offset % 2, size, (fc_isa)isa, 2);
        memset(values[slot], 0, (size_t)words * 4 + 16);
        fc_keystream_add(values[slot] + offset, words, stream, key, 3, nonce, 77, signs, (fc_isa)isa, 2);
        if (!known++) continue;
        compare(&status, &(int){FC_OK}, sizeof status, "status of a stream", (fc_isa)isa, FC_F32, size);
        compare(streams[0] + 1 - offset % 2, streams[1] + 1 - offset % 2, (size_t)size, "keystream", (fc_isa)isa,
                FC_F32, size);
        compare(values[0], values[1], (size_t)words * 4 + 16, "keystream_add", (fc_isa)isa, FC_F32, size);
    }
    for (int m = 0; m < 2; m++) free(streams[m]), free(values[m]);
}

/* Kernels that go wrong as a miscompiled one would: a bit of the last block of each group, or of sums, or of one key.
 */
static int fault;
static void faulty_fill(const uint32_t* schedule, const uint32_t nonce[3], uint32_t counter, int64_t groups,
                        uint8_t* out) {
    const fc_stream_kernels* right = fc_stream_for(FC_CHACHA20, FC_ISA_AUTO);
    right->fill(schedule, nonce, counter, groups, out);
    for (int64_t g = 1; g <= groups && fault == 0; g++) out[g * right->group - 1] ^= 4;
    if (fault == 1) out[0] ^= 1;
}
static void faulty_add(const uint32_t* schedule, const uint32_t nonce[3], uint32_t counter, int64_t groups, void* to,
                       int negative) {
    uint32_t* values = to;
    const fc_stream_kernels* right = fc_stream_for(FC_CHACHA20, FC_ISA_AUTO);
    right->add[0](schedule, nonce, counter, groups, values, negative);
    if (fault == 2 && groups) values[groups * right->group / 4 - 1] ^= 8;
    if (fault == 3 && groups > 1 && negative) values[right->group / 4]++;
}

/* The loop that quantises and masks: one part after the other, of which the last number, the sign, the reduction, the
 * writes past the cache or the look for numbers that are not finite may go wrong. */
static int faulty_mask(const uint32_t* schedule, const uint32_t nonce[3], uint32_t counter, int64_t groups,
                       const void* values, double scale, double limit, uint32_t low, void* out, int negative,
                       int bypass) {
    const fc_stream_kernels* right = fc_stream_for(FC_CHACHA20, FC_ISA_AUTO);
    const int64_t count = groups * right->group / 4;
    uint32_t* to = out;
    const int bad = fc_quantise_f32_32_ref(values, scale, fault == 4 ? 2 * limit : limit, count, to);
    right->add[0](schedule, nonce, counter, groups, to, fault == 5 ? 0 : negative);
    for (int64_t k = 0; k < count; k++) to[k] &= fault == 6 ? ~0u : low;
    if (fault == 7 && groups == 3) to[count - 1] ^= 1;
    if (fault == 8 && bypass && groups) to[0] = 0;
    return fault == 9 && count && !isfinite(((const float*)values)[count - 1]) ? 0 : bad;
}

static void check_the_check(void) {
    enum { NONE = 10 };
    for (fault = 0; fault <= NONE; fault++) {
        fc_stream_kernels faulty = *fc_stream_for(FC_CHACHA20, FC_ISA_AUTO);
        faulty.fill = faulty_fill;
        faulty.add[0] = faulty_add;
        faulty.mask = faulty_mask;
        const int found = fc_stream_right(&faulty, FC_CHACHA20), right = fault == NONE;
        compare(&found, &right, sizeof found, "check of a stream", FC_ISA_AUTO, FC_F32, fault);
    }
}

#if defined(__x86_64__)
/* Every table of AES that runs here, also one that dispatch leaves for a better one. */
static void check_aes(void) {
    const fc_stream_kernels *chosen = fc_stream_for(FC_AES256CTR, FC_ISA_AVX2), *some[2] = {&fc_aes256ctr_aesni};
    if (!chosen) return;
    if (chosen != some[0]) some[1] = chosen;
    for (int k = 0; k < 2 && some[k]; k++) {
        const int found = fc_stream_right(some[k], FC_AES256CTR), right = 1;
        compare(&found, &right, sizeof found, "tables of AES", FC_ISA_AVX2, FC_F32, k);
    }
}
#endif

/* Masks, packing and shares of every ISA against the portable ones, in memory that ends where they end. */
static void check_residues(int64_t length, int bits, int offset) {
    const int size = bits > 32 ? 8 : 4;
    const size_t bytes = (size_t)((length * bits + 7) / 8);
    const int8_t signs[3] = {-1, 1, -1};
    uint8_t key[96];
    for (size_t k = 0; k < sizeof key; k++) key[k] = (uint8_t)draw();
    float* narrow = malloc((size_t)length * 4 + 1);
    double* numbers = malloc((size_t)length * 8 + 1);
    uint8_t* fused = malloc(bytes + 1);
    for (int64_t k = 0; k < length; k++) {
        put((char*)(narrow + k), FC_F32, draw() % 2 == 0);
        numbers[k] = (double)narrow[k] * 1.7;
    }
    const double limit = bits < 54 ? (double)((1ull << (bits - 1)) - 1) : 0x1p53;
    for (int stream = FC_CHACHA20; stream <= FC_AES256CTR; stream++) {
        char *masked[2], *total[2];
        uint8_t* packed[2];
        for (int m = 0; m < 2; m++) {
            masked[m] = malloc((size_t)(length * size) + 1), total[m] = calloc((size_t)length + 1, (size_t)size);
            packed[m] = malloc(bytes + 1 + 1);
        }
        int known = 0;
        for (int isa = FC_ISA_REF; isa <= FC_ISA_AMX; isa++) {
            if (!fc_stream_available((fc_stream)stream, (fc_isa)isa)) continue;
            const int slot = known != 0;
            memset(total[slot], 0, (size_t)(length * size));
            for (int turn = 0; turn < 5; turn++) { /* fp32 with no key, one and three, fp64, residues */
                const void* values = turn < 3 ? (const void*)narrow : turn == 3 ? (const void*)numbers : total[slot];
                const int64_t keys = turn < 3 ? turn * (turn + 1) / 2 : 2, counter = offset % 2 ? 72 + 5 * offset : 80;
                const fc_dtype dtype = turn < 3 ? FC_F32 : turn == 3 ? FC_F64 : size == 8 ? FC_U64 : FC_U32;
                fc_mask_add(values, dtype, length, 3.7, limit, (fc_stream)stream, key, keys, signs, bits, counter, 0,
                            masked[slot], (fc_isa)isa, 2);
                fc_pack_bits(masked[slot], bits, length, packed[slot] + offset % 2, (fc_isa)isa, 2);
                if (counter % 8 == 0) {
                    fc_mask_add(values, dtype, length, 3.7, limit, (fc_stream)stream, key, keys, signs, bits, counter,
                                1, fused, (fc_isa)isa, 2);
                    compare(packed[slot], fused, bytes, "mask_add, packed", (fc_isa)isa, FC_F32, length);
                }
                fc_unpack_add(packed[slot] + offset % 2, bits, length, total[slot], (fc_isa)isa, 2);
            }
            if (!known++) continue;
            compare(masked[0], masked[1], (size_t)(length * size), "mask_add", (fc_isa)isa, FC_F32, length);
            compare(packed[0] + offset % 2, packed[1] + offset % 2, bytes, "pack_bits", (fc_isa)isa, FC_F32, length);
            compare(total[0], total[1], (size_t)(length * size), "unpack_add", (fc_isa)isa, FC_F32, length);
        }
        for (int m = 0; m < 2; m++) free(masked[m]), free(total[m]), free(packed[m]);
    }
    free(narrow), free(numbers), free(fused);
}

static void check_shamir(int64_t size, int threshold, int count) {
    uint8_t key[32], points[255];
    for (size_t k = 0; k < sizeof key; k++) key[k] = (uint8_t)draw();
    uint8_t *secrets = malloc((size_t)size + 1), *found = malloc((size_t)size + 1), *shares[2];
    for (int64_t b = 0; b < size; b++) secrets[b] = (uint8_t)draw();
    for (int m = 0; m < 2; m++) shares[m] = malloc((size_t)(size * count) + 1);
    for (int i = 0; i < count; i++) points[i] = (uint8_t)(i + 1);
    for (int isa = FC_ISA_REF; isa <= FC_ISA_AMX; isa++) {
        if (!fc_isa_available((fc_isa)isa)) continue;
        fc_shamir_split(secrets, size, threshold, count, key, shares[isa != FC_ISA_REF], (fc_isa)isa);
        fc_shamir_combine(points, shares[0], count, size, found, (fc_isa)isa);
        compare(shares[0], shares[isa != FC_ISA_REF], (size_t)(size * count), "shamir_split", (fc_isa)isa, FC_F32,
                size);
        compare(secrets, found, (size_t)size, "shamir_combine", (fc_isa)isa, FC_F32, size);
    }
    free(secrets), free(found), free(shares[0]), free(shares[1]);
}

#if defined(STACKS)
/* Whether any eight bytes of a key or of its AES schedule are left on a stack that a call ran on. */
enum { STACK = 1 << 19, SCHEDULE = 4 * FC_SCHEDULE };
typedef struct {
    fc_isa isa;
    fc_stream stream;
    const uint8_t* key;
} secret_call;

static void* call_with_secrets(void* context) {
    static float values[20000];
    static uint32_t out[20000];
    static uint8_t shares[100 * 32];
    const secret_call* c = context;
    static const int8_t sign = 1;
    fc_mask_add(values, FC_F32, 20000, 1, 9, c->stream, c->key, 1, &sign, 26, 3, 0, out, c->isa, 1);
    fc_mask_add(out, FC_U32, 20000, 1, 9, c->stream, c->key, 1, &sign, 26, 3, 0, out, c->isa, 1);
    fc_keystream(c->stream, c->key, shares, 0, (uint8_t*)out, 70000, c->isa, 1);
    fc_shamir_split(c->key, 32, 3, 100, c->key, shares, c->isa);
    return NULL;
}

static void check_stacks(fc_stream stream) {
    uint8_t key[32];
    uint32_t schedule[FC_SCHEDULE] = {0};
    for (size_t k = 0; k < sizeof key; k++) key[k] = (uint8_t)draw();
    char* stack = fc_alloc(STACK);
    for (int isa = FC_ISA_REF; isa <= FC_ISA_AMX; isa++) {
        secret_call call = {(fc_isa)isa, stream, key};
        pthread_attr_t attributes;
        pthread_t thread;
        if (!fc_stream_available(stream, (fc_isa)isa)) continue;
        fc_stream_for(stream, (fc_isa)isa)->schedule(key, schedule);
        memset(stack, 0, STACK);
        pthread_attr_init(&attributes);
        pthread_attr_setstack(&attributes, stack, STACK);
        if (pthread_create(&thread, &attributes, call_with_secrets, &call)) abort();
        pthread_join(thread, NULL);
        pthread_attr_destroy(&attributes);
        int64_t left = 0;
        uint64_t secret, word;
        for (size_t at = 0; at + 8 <= STACK; at += 4) {
            memcpy(&word, stack + at, 8);
            for (size_t k = 0; word && k + 8 <= (stream == FC_CHACHA20 ? sizeof key : SCHEDULE); k += 8) {
                memcpy(&secret, (const char*)schedule + k, 8);
                left += word == secret;
            }
        }
        compare(&left, &(int64_t){0}, sizeof left, "secrets left on a stack", (fc_isa)isa, FC_F32, left);
    }
    free(stack);
}

typedef struct {
    fc_isa isa;
    const fc_gaussian_table* table;
    const uint8_t* key;
    int64_t out[FC_GAUSSIAN_BLOCK];
} gaussian_call;

static void* call_gaussian(void* context) {
    gaussian_call* c = context;
    fc_discrete_gaussian(c->table, FC_CHACHA20, c->key, 0, c->out, FC_GAUSSIAN_BLOCK, c->isa, 1);
    return NULL;
}

/* Neither key nor words nor records of ties (csrc/discrete_gaussian.h) stay on the stack that samples were made on. */
static void check_gaussian_stack(void) {
    enum { TIES = 6, EVERY = 300 };
    static uint32_t words[FC_GAUSSIAN_BLOCK];
    static gaussian_call call;
    uint8_t key[32];
    const uint8_t nonce[12] = {0, 0, 'd', 'g'};
    uint32_t first[TIES + 1] = {0}, records[TIES];
    uint64_t rest[2 * (TIES + 1)] = {0};
    const int64_t stride = 1;
    for (size_t k = 0; k < sizeof key; k++) key[k] = (uint8_t)draw();
    fc_keystream(FC_CHACHA20, key, nonce, 0, (uint8_t*)words, sizeof words, FC_ISA_REF, 1);
    for (int k = 0; k < TIES; k++) {
        first[k] = words[EVERY * (k + 1)] & ~1u;
        for (int j = k; j && first[j] > first[j - 1]; j--) {
            const uint32_t other = first[j];
            first[j] = first[j - 1];
            first[j - 1] = other;
        }
    }
    for (uint32_t k = 0; k < TIES; k++) {
        const uint32_t at = EVERY * (k + 1), word = words[at];
        uint32_t count = 0;
        while (first[count] > (word & ~1u)) count++;
        records[k] = 1u << 31 | count << 16 | (word & 1) << 15 | at << 4;
    }
    const fc_gaussian_table table = {first, rest, &stride, TIES + 1, 1};
    char* stack = fc_alloc(STACK);
    for (int isa = FC_ISA_REF; isa <= FC_ISA_AMX; isa++) {
        pthread_attr_t attributes;
        pthread_t thread;
        if (!fc_isa_available((fc_isa)isa)) continue;
        call.isa = (fc_isa)isa, call.table = &table, call.key = key;
        memset(stack, 0, STACK);
        pthread_attr_init(&attributes);
        pthread_attr_setstack(&attributes, stack, STACK);
        if (pthread_create(&thread, &attributes, call_gaussian, &call)) abort();
        pthread_join(thread, NULL);
        pthread_attr_destroy(&attributes);
        int64_t left = 0;
        for (size_t at = 0; at + 8 <= STACK; at += 4) {
            left += !memcmp(stack + at, key, 8) || !memcmp(stack + at, key + 24, 8);
            for (int k = 0; k < TIES; k++)
                left += !memcmp(stack + at, records + k, 4) || !memcmp(stack + at, words + 60 * k, 8);
        }
        compare(&left, &(int64_t){0}, sizeof left, "secrets of samples left on a stack", (fc_isa)isa, FC_F32, left);
    }
    free(stack);
}
#endif

/* Samples of a table of any words, some of which are drawn, in memory that ends where they end. */
static void check_gaussian(int64_t size, int64_t counter, int64_t heads, int64_t zeros) {
    enum { DRAWS = 3 };
    const int64_t entries = heads + zeros, strides[2][DRAWS] = {{1, 5, 123457}, {1, 3, 2147483647}};
    uint32_t* first = malloc((size_t)entries * 4);
    uint64_t* rest = malloc((size_t)entries * 16);
    uint8_t key[32];
    for (size_t k = 0; k < sizeof key; k++) key[k] = (uint8_t)draw();
    for (int64_t k = 0; k < heads; k++) { /* of a draw's stream, every one or two hundredth */
        const uint8_t nonce[12] = {(uint8_t)(k % DRAWS), 0, 'd', 'g'};
        uint32_t block[16];
        const uint32_t at = (uint32_t)(counter / 16 % 4294967296 + k * 11);
        fc_keystream(FC_CHACHA20, key, nonce, at, (uint8_t*)block, sizeof block, FC_ISA_REF, 1);
        first[k] = (k % 40 == 39 ? first[k - 1] : block[k % 16]) & ~1u;
        for (int64_t j = k; j && first[j] > first[j - 1]; j--) { /* sorted, largest first */
            const uint32_t other = first[j];
            first[j] = first[j - 1];
            first[j - 1] = other;
        }
    }
    for (int64_t k = 0; k < entries; k++) {
        if (k >= heads) first[k] = 0;
        rest[2 * k] = UINT64_MAX / (uint64_t)(entries + 1) * (uint64_t)(entries - k);
        rest[2 * k + 1] = (uint64_t)k;
    }
    int64_t* samples[2] = {malloc((size_t)size * 8 + 1), malloc((size_t)size * 8 + 1)};
    for (int far = 0; far < 2; far++) {
        const fc_gaussian_table table = {first, rest, strides[far], entries, DRAWS};
        for (int isa = FC_ISA_REF; isa <= FC_ISA_AMX; isa++) {
            if (!fc_isa_available((fc_isa)isa)) continue;
            fc_discrete_gaussian(&table, FC_CHACHA20, key, counter, samples[isa != FC_ISA_REF], size, (fc_isa)isa, 2);
            if (isa != FC_ISA_REF)
                compare(samples[0], samples[1], (size_t)size * 8, "discrete_gaussian", (fc_isa)isa, FC_F32, size);
        }
    }
    for (int m = 0; m < 2; m++) free(samples[m]);
    free(rest);
    free(first);
}

int main(void) {
    check_the_check();
#if defined(__x86_64__)
    check_aes();
#endif
    static const int64_t heads[] = {0, 7, 30, 31, 32, 62, 63, 64, 126};
    for (size_t e = 0; e < sizeof heads / sizeof *heads; e++) {
        check_gaussian(2100 + (int64_t)e, 0, heads[e], 1 + (int64_t)e % 3 * 20);
        check_gaussian(377, 16ll * 4294967296 - 300, heads[e], 9);
    }
    for (int64_t size = 0; size < 2100; size += size < 140 ? 1 : 61)
        for (int stream = FC_CHACHA20; stream <= FC_AES256CTR; stream++)
            check_stream((fc_stream)stream, size, (int)size % 4);
    check_stream(FC_CHACHA20, 300001, 1);
    check_stream(FC_AES256CTR, 300001, 1);
    static const int widths[] = {1, 3, 17, 26, 32, 33, 57, 64};
    for (size_t b = 0; b < sizeof widths / sizeof *widths; b++)
        for (int64_t length = 0; length < 700; length += length < 36 ? 1 : 111)
            check_residues(length, widths[b], (int)length % 5);
    check_residues(140001, 26, 1);
    for (int64_t size = 0; size < 70; size++) check_shamir(size, 1 + (int)size % 7, 7 + (int)size);
    check_shamir(33, 200, 255);
#if defined(STACKS)
    check_stacks(FC_CHACHA20);
    check_stacks(FC_AES256CTR);
    check_gaussian_stack();
#endif
    for (int64_t first = 0; first < 68; first += 22) check_gram_of_many(first ? 300 : 8200, first);
    enum { LONG = 4000 }; /* what takes most of the time, under an emulator and sanitizers, comes in fewer kinds */
    static const int64_t sizes[] = {0, 1, 7, 8, 15, 16, 17, 31, 32, 33, 255, 257, 1025, 4097, 8209};
    for (int dtype = FC_F32; dtype <= FC_BF16; dtype++)
        for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
            for (int offset = 0; offset < OFFSETS; offset++)
                for (int wild = 0; wild < 2; wild++)
                    if (sizes[s] < LONG || wild == offset % 2)
                        check((fc_dtype)dtype, sizes[s], offset, offset % 2 ? 3 : 1, wild);
    for (int dtype = FC_F32; dtype <= FC_BF16; dtype++) {
        for (int64_t n = 1; n < 130; n += MORE) check_many_rows((fc_dtype)dtype, n, 0);
        for (int64_t n = 3; n < 130; n += MORE) check_many_rows((fc_dtype)dtype, n, 1);
        static const int64_t many[] = {257, 700, 1025, 2049};
        for (size_t s = 0; s < sizeof many / sizeof *many; s++) check_many_rows((fc_dtype)dtype, many[s], 0);
    }
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
        for (int offset = 0; offset < OFFSETS; offset++)
            if (sizes[s] < LONG || offset % 2) check_encoded(sizes[s], offset, offset % 2 ? MOST : 1);
    for (int m = 0; m < 18; m++) check_hadamard(1ll << m, m < 14 ? 3 : 1, m % 16);
    static const int64_t shapes[][2] = {{1, 1}, {8, 47}, {9, 50}, {65, 97}};
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
        for (int offset = 0; offset < 3; offset++) check_lora(shapes[s][0], shapes[s][1], offset);
    printf("best ISA %d: %lld comparisons, %lld differ\n", (int)fc_isa_best(), (long long)compared,
           (long long)differed);
    return differed != 0;
}
