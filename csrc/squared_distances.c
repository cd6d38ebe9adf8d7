/* squared_distances: each pair's sum runs strictly in column order, so pairs, not columns, go side by side. */
#include <stdlib.h>

#include "impl.h"

enum { TILE = 1024, TOGETHER = 4 }; /* columns brought to fp32 at a time; pairs whose sums are in flight together */

typedef struct {
    const fc_rows* x;
    const fc_kernels* kernels;
    const int64_t* pairs;
    int64_t count;
    double* out;
    int64_t next;
} job;

static const float* columns(const job* j, int64_t row, int64_t start, int64_t length, float* to, void* scratch) {
    j->kernels->to_f32[j->x->dtype](fc_gather(j->x, row, start, length, scratch), length, to);
    return to;
}

static void distances(const job* j, int64_t first, float* buffer) {
    const int64_t d = fc_columns(j->x);
    double sum[TOGETHER] = {0};
    const float *a[TOGETHER], *b[TOGETHER];
    for (int64_t start = 0; start < d; start += TILE) {
        const int64_t length = fc_min(TILE, d - start);
        for (int p = 0; p < TOGETHER; p++) {
            const int64_t pair = fc_min(first + p, j->count - 1); /* a short group repeats the last pair */
            a[p] = columns(j, j->pairs[2 * pair], start, length, buffer + 2 * p * TILE, buffer + 2 * TOGETHER * TILE);
            b[p] = columns(j, j->pairs[2 * pair + 1], start, length, buffer + (2 * p + 1) * TILE,
                           buffer + 2 * TOGETHER * TILE);
        }
        for (int64_t k = 0; k < length; k++)
            for (int p = 0; p < TOGETHER; p++) {
                const double difference = (double)a[p][k] - (double)b[p][k];
                sum[p] += difference * difference;
            }
    }
    for (int p = 0; p < TOGETHER && first + p < j->count; p++) j->out[first + p] = sum[p];
}

static void work(void* context, int worker) {
    job* j = context;
    float* buffer = fc_alloc((2 * TOGETHER + 1) * TILE * sizeof *buffer);
    (void)worker;
    /* a worker without memory takes nothing: the others do it all */
    for (int64_t group; buffer && (group = fc_next(&j->next)) * TOGETHER < j->count;)
        distances(j, group * TOGETHER, buffer);
    free(buffer);
}

int fc_squared_distances(const fc_rows* x, const int64_t* pairs, int64_t count, double* out, fc_isa isa, int threads) {
    const fc_kernels* kernels = fc_kernels_for(isa);
    if (!kernels) return FC_NO_ISA;
    job j = {x, kernels, pairs, count, out, 0};
    fc_parallel((int)fc_min(threads, fc_ceil(count, TOGETHER)), work, &j);
    return j.next * TOGETHER < count ? FC_NO_MEMORY : FC_OK;
}
