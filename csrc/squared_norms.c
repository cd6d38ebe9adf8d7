/* squared_norms over a cohort: norms of blocks by absolute column, a few rows side by side, folded in block order. */
#include <stdlib.h>

#include "impl.h"

enum { SIDE_BY_SIDE = 4, RUN = 64 }; /* rows in flight a thread; blocks that one item of work covers */

typedef struct {
    const fc_rows *x, *center;
    const fc_kernels* kernels;
    double* norms; /* [row][block] */
    int64_t blocks, runs, items, next;
} job;

static void norm_run(job* j, int64_t item, char* scratch, float* center) {
    const fc_rows* x = j->x;
    const int64_t first_row = item / j->runs * SIDE_BY_SIDE, first_block = item % j->runs * RUN;
    const int64_t end_row = fc_min(first_row + SIDE_BY_SIDE, x->rows), end_block = fc_min(first_block + RUN, j->blocks);
    for (int64_t b = first_block; b < end_block; b++) {
        const int64_t start = b * FC_NORM_BLOCK, length = fc_min(FC_NORM_BLOCK, fc_columns(x) - start);
        if (j->center)
            j->kernels->to_f32[j->center->dtype](fc_gather(j->kernels, j->center, 0, start, length, scratch), length,
                                                 center);
        for (int64_t i = first_row; i < end_row; i++)
            j->norms[i * j->blocks + b] = j->kernels->block_norm[x->dtype](
                fc_gather(j->kernels, x, i, start, length, scratch), j->center ? center : NULL, length);
    }
}

static void work(void* context, int worker) {
    job* j = context;
    char* scratch = fc_alloc(2 * FC_NORM_BLOCK * sizeof(float));
    (void)worker;
    /* a worker without memory takes nothing: the others do it all */
    for (int64_t item; scratch && (item = fc_next(&j->next)) < j->items;)
        norm_run(j, item, scratch, (float*)scratch + FC_NORM_BLOCK);
    free(scratch);
}

int fc_squared_norms(const fc_rows* x, const fc_rows* center, double* out, fc_isa isa, int threads) {
    const fc_kernels* kernels = fc_kernels_for(isa);
    if (!kernels) return FC_NO_ISA;
    const int64_t blocks = fc_ceil(fc_columns(x), FC_NORM_BLOCK), runs = fc_ceil(blocks, RUN);
    double* norms = malloc((size_t)(x->rows * blocks + 1) * sizeof *norms);
    if (!norms) return FC_NO_MEMORY;
    const fc_mode mode = fc_enter_ieee();
    job j = {x, center, kernels, norms, blocks, runs, fc_ceil(x->rows, SIDE_BY_SIDE) * runs, 0};
    fc_parallel((int)fc_min(threads, j.items), work, &j);
    for (int64_t i = 0; i < x->rows; i++)
        for (int64_t b = 0; b < blocks; b++) out[i] += norms[i * blocks + b];
    free(norms);
    fc_leave_ieee(mode);
    return j.next < j.items ? FC_NO_MEMORY : FC_OK;
}
