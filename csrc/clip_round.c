/* clip_round: one row, scaled and rounded to integers a tile at a time, with the exact sum of their squares. */
#include <stdlib.h>

#include "impl.h"

typedef struct {
    const fc_rows* x;
    const fc_kernels* kernels;
    double scale;
    int32_t* out;
    int64_t next, squares;
} job;

static void work(void* context, int worker) {
    job* j = context;
    int64_t squares = 0;
    void* scratch = fc_alloc(FC_SIGN_TILE * sizeof(float));
    (void)worker;
    /* a worker without memory takes no tile: the others do them all */
    for (int64_t start; scratch && (start = FC_SIGN_TILE * fc_next(&j->next)) < fc_columns(j->x);) {
        const int64_t length = fc_min(FC_SIGN_TILE, fc_columns(j->x) - start);
        const void* row = fc_gather(j->kernels, j->x, 0, start, length, scratch);
        squares += j->kernels->clip_round[j->x->dtype](row, j->scale, length, j->out + start);
    }
    __atomic_fetch_add(&j->squares, squares, __ATOMIC_RELAXED);
    free(scratch);
}

int fc_clip_round(const fc_rows* x, double scale, int32_t* out, int64_t* squares, fc_isa isa, int threads) {
    const fc_kernels* kernels = fc_kernels_for(isa);
    if (!kernels) return FC_NO_ISA;
    const fc_mode mode = fc_enter_ieee();
    const int64_t tiles = fc_ceil(fc_columns(x), FC_SIGN_TILE);
    job j = {x, kernels, scale, out, 0, 0};
    fc_parallel((int)fc_min(threads, tiles), work, &j);
    *squares = j.squares;
    fc_leave_ieee(mode);
    return j.next < tiles ? FC_NO_MEMORY : FC_OK;
}
