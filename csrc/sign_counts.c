/* sign_counts over a cohort: tiles of columns whose votes stay in the second-level cache, a few rows at a time. */
#include <stdlib.h>

#include "impl.h"

typedef struct {
    const fc_rows* x;
    const fc_rows* center;
    const fc_kernels* kernels;
    int32_t* out;
    int64_t next;
    int bad;
} job;

/* The centre as fp32, in `to`, or NULL for zero. */
static const float* center_of(const job* j, int64_t start, int64_t length, float* to, float* scratch, int* bad) {
    if (!j->center) return NULL;
    j->kernels->to_f32[j->center->dtype](fc_gather(j->kernels, j->center, 0, start, length, scratch), length, to);
    int infinite = 0;
    for (int64_t k = 0; k < length; k++) infinite |= (fc_bits(to[k]) & 0x7f800000) == 0x7f800000;
    *bad |= infinite;
    return to;
}

static void count_tile(const job* j, int64_t start, float* memory, int* bad) {
    const fc_rows* x = j->x;
    const int64_t length = fc_min(FC_SIGN_TILE, fc_columns(x) - start);
    const float* center = center_of(j, start, length, memory, memory + FC_SIGN_TILE, bad);
    if (!x->rows) memset(j->out + start, 0, (size_t)length * sizeof *j->out);
    for (int64_t first = 0; first < x->rows; first += FC_INTEGER_GROUP) {
        const void* rows[FC_INTEGER_GROUP];
        const int count = (int)fc_min(FC_INTEGER_GROUP, x->rows - first);
        for (int r = 0; r < count; r++)
            rows[r] = fc_gather(j->kernels, x, first + r, start, length, memory + (1 + r) * FC_SIGN_TILE);
        *bad |= j->kernels->signs[x->dtype](rows, count, center, length, j->out + start, first == 0);
    }
}

static void work(void* context, int worker) {
    job* j = context;
    int bad = 0;
    float* memory = fc_alloc((1 + FC_INTEGER_GROUP) * FC_SIGN_TILE * sizeof *memory);
    (void)worker;
    /* a worker without memory takes no tile: the others do them all */
    for (int64_t start; memory && (start = FC_SIGN_TILE * fc_next(&j->next)) < fc_columns(j->x);)
        count_tile(j, start, memory, &bad);
    if (bad) __atomic_store_n(&j->bad, 1, __ATOMIC_RELAXED);
    free(memory);
}

int fc_sign_counts(const fc_rows* x, const fc_rows* center, int32_t* out, fc_isa isa, int threads) {
    const fc_kernels* kernels = fc_kernels_for(isa);
    if (!kernels) return FC_NO_ISA;
    const fc_mode mode = fc_enter_ieee();
    const int64_t tiles = fc_ceil(fc_columns(x), FC_SIGN_TILE);
    job j = {x, center, kernels, out, 0, 0};
    fc_parallel((int)fc_min(threads, tiles), work, &j);
    fc_leave_ieee(mode);
    return j.next < tiles ? FC_NO_MEMORY : j.bad ? FC_NOT_FINITE : FC_OK;
}
