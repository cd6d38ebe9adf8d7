/* exact_round: exact sums, chunk by chunk, rounded to fp64 once; then divided and rounded as weighted_sum does. */
#include <stdlib.h>

#include "impl.h"

enum { STREAM_FROM = 4 << 20 }; /* bytes of output from which writes bypass the cache */

typedef struct {
    const double* const* levels;
    const uint8_t* depth;
    const fc_kernels* kernels;
    int64_t columns;
    double divisor;
    char* out;
    fc_dtype out_dtype;
    int64_t next;
    int bad;
} job;

static double two_sum(double a, double b, double* error) {
    const double sum = a + b, part = sum - a;
    *error = (a - (sum - part)) + (b - part);
    return sum;
}

/* The sum of `count` numbers rounded once: they are brought to a form without overlaps (Shewchuk 1997, "Adaptive
 * precision floating-point arithmetic and fast robust geometric predicates", figure 6), whose largest parts then
 * decide; a tie between two fp64 numbers is decided by the sign of what lies below. */
static double round_sum(const double* const* levels, int count, int64_t k) {
    double part[FC_EXACT_MOST + 1], error;
    int parts = 0;
    for (int l = 0; l < count; l++) {
        double carry = levels[l][k];
        int kept = 0;
        for (int p = 0; p < parts; p++) {
            carry = two_sum(carry, part[p], &error);
            if (error != 0.0) part[kept++] = error;
        }
        part[kept++] = carry;
        parts = kept;
    }
    double sum = part[--parts];
    error = 0.0;
    while (parts && error == 0.0) sum = two_sum(sum, part[--parts], &error);
    if (parts && error != 0.0 && (error < 0.0) == (part[parts - 1] < 0.0)) {
        const double step = 2.0 * error, next = sum + step;
        if (next - sum == step) sum = next;
    }
    return sum;
}

static void round_chunk(const job* j, int64_t chunk, double* acc, int* bad) {
    const double* levels[FC_EXACT_MOST + 1];
    const int depth = j->depth[chunk], size = fc_itemsize(j->out_dtype);
    const int64_t start = chunk * FC_EXACT_CHUNK, length = fc_min(FC_EXACT_CHUNK, j->columns - start);
    for (int l = 0; l < depth; l++) levels[l] = j->levels[l] + start;
    if (depth > 2)
        for (int64_t k = 0; k < length; k++) acc[k] = round_sum(levels, depth, k);
    else if (depth == 2) /* one rounding already */
        for (int64_t k = 0; k < length; k++) acc[k] = levels[0][k] + levels[1][k];
    else if (depth == 1) memcpy(acc, levels[0], (size_t)length * sizeof *acc);
    else memset(acc, 0, (size_t)length * sizeof *acc);
    *bad |= j->kernels->finish[FC_F32][j->out_dtype](acc, length, j->divisor, j->out + start * size,
                                                     j->columns * size >= STREAM_FROM);
}

static void work(void* context, int worker) {
    job* j = context;
    int bad = 0;
    double* acc = fc_alloc(FC_EXACT_CHUNK * sizeof *acc);
    (void)worker;
    /* a worker without memory takes no chunk: the others do them all */
    for (int64_t chunk; acc && (chunk = fc_next(&j->next)) * FC_EXACT_CHUNK < j->columns;)
        round_chunk(j, chunk, acc, &bad);
    if (bad) __atomic_store_n(&j->bad, 1, __ATOMIC_RELAXED);
    free(acc);
}

int fc_exact_round(const double* const* levels, const uint8_t* depth, int64_t columns, double divisor, void* out,
                   fc_dtype out_dtype, fc_isa isa, int threads) {
    const fc_kernels* kernels = fc_kernels_for(isa);
    if (!kernels) return FC_NO_ISA;
    const fc_mode mode = fc_enter_ieee();
    const int64_t chunks = fc_ceil(columns, FC_EXACT_CHUNK);
    job j = {levels, depth, kernels, columns, divisor, out, out_dtype, 0, 0};
    fc_parallel((int)fc_min(threads, chunks), work, &j);
    fc_leave_ieee(mode);
    return j.next < chunks ? FC_NO_MEMORY : j.bad ? FC_NOT_FINITE : FC_OK;
}
