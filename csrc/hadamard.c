/* hadamard over blocks: stages up to FC_HADAMARD_NEAR columns while a piece is in the second-level cache, then, for
 * longer blocks, a few stages a pass over memory. */
#include "impl.h"

enum {
    ROWS = 8,
    WIDTH = 1024
}; /* of a far pass: rows side by side, as a cache has ways; columns of one item of work */

typedef struct {
    float* x;
    const fc_kernels* kernels;
    int64_t length, block; /* block: of a near pass, at most FC_HADAMARD_NEAR */
    int64_t stride;        /* of a far pass */
    int rows;              /* and its rows; 0: a near pass */
    float scale;           /* 0: not the last pass */
    int64_t next;
    int bad;
} job;

static int64_t far_items(const job* j) { return j->length / (j->stride * j->rows) * (j->stride / WIDTH); }

static void work(void* context, int worker) {
    job* j = context;
    int bad = 0;
    (void)worker;
    if (!j->rows) {
        const int64_t piece = FC_HADAMARD_NEAR;
        for (int64_t at; (at = piece * fc_next(&j->next)) < j->length;)
            bad |= j->kernels->hadamard_near(j->x + at, fc_min(piece, j->length - at), j->block, j->scale);
    } else {
        const int64_t parts = j->stride / WIDTH, group = j->stride * j->rows;
        for (int64_t item; (item = fc_next(&j->next)) < far_items(j);)
            bad |= j->kernels->hadamard_far(j->x + item / parts * group + item % parts * WIDTH, j->stride, j->rows,
                                            WIDTH, j->scale);
    }
    if (bad) __atomic_store_n(&j->bad, 1, __ATOMIC_RELAXED);
}

int fc_hadamard(float* x, int64_t length, int64_t block, fc_isa isa, int threads) {
    const fc_kernels* kernels = fc_kernels_for(isa);
    if (!kernels) return FC_NO_ISA;
    const fc_mode mode = fc_enter_ieee();
    const float scale = (float)sqrt(1.0 / (double)block);
    int64_t stride = fc_min(block, FC_HADAMARD_NEAR);
    job j = {x, kernels, length, stride, 0, 0, stride == block ? scale : 0, 0, 0};
    fc_parallel((int)fc_min(threads, fc_ceil(length, FC_HADAMARD_NEAR)), work, &j);
    for (; stride < block && length; stride *= j.rows) {
        j.next = 0;
        j.stride = stride;
        j.rows = (int)fc_min(FC_HADAMARD_ROWS, block / stride);
        j.scale = stride * j.rows == block ? scale : 0;
        fc_parallel((int)fc_min(threads, far_items(&j)), work, &j);
    }
    fc_leave_ieee(mode);
    return j.bad ? FC_NOT_FINITE : FC_OK;
}
