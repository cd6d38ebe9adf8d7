/* exact_sum: one row added to exact sums, chunk by chunk. The row is looked at first and added then, so that one with a
 * NaN changes nothing; the second look costs a tenth, since the sums are most of the traffic. */
#include <stdlib.h>

#include "impl.h"

typedef struct {
    double* const* levels;
    uint8_t* depth;
    const fc_rows* x;
    const fc_kernels* kernels;
    double weight;
    float* scratch; /* FC_EXACT_CHUNK for each worker: nothing can fail once adding has begun */
    int64_t next;
    int bad;
} job;

static int any_infinite(const void* row, fc_dtype dtype, int64_t length) {
    const uint16_t exponent = dtype == FC_F16 ? 0x7c00 : 0x7f80;
    int bad = 0;
    if (dtype == FC_F32)
        for (int64_t k = 0; k < length; k++) bad |= (fc_bits(fc_load_f32(row, k)) & 0x7f800000) == 0x7f800000;
    else
        for (int64_t k = 0; k < length; k++) {
            uint16_t bits;
            memcpy(&bits, (const char*)row + 2 * k, 2);
            bad |= (bits & exponent) == exponent;
        }
    return bad;
}

/* Calls `visit` for each chunk that nobody else has taken. */
static void chunks(job* j, int worker, void (*visit)(job*, int64_t chunk, const void* row, int64_t length)) {
    const int64_t columns = fc_columns(j->x);
    for (int64_t chunk; (chunk = fc_next(&j->next)) * FC_EXACT_CHUNK < columns;) {
        const int64_t start = chunk * FC_EXACT_CHUNK, length = fc_min(FC_EXACT_CHUNK, columns - start);
        visit(j, chunk, fc_gather(j->kernels, j->x, 0, start, length, j->scratch + worker * (int64_t)FC_EXACT_CHUNK),
              length);
    }
}

static void look_at(job* j, int64_t chunk, const void* row, int64_t length) {
    (void)chunk;
    if (any_infinite(row, j->x->dtype, length)) __atomic_store_n(&j->bad, 1, __ATOMIC_RELAXED);
}

static void add(job* j, int64_t chunk, const void* row, int64_t length) {
    double* levels[FC_EXACT_MOST];
    const int depth = j->depth[chunk];
    for (int l = 0; l <= depth; l++) levels[l] = j->levels[l] + chunk * FC_EXACT_CHUNK;
    j->depth[chunk] = (uint8_t)(depth + j->kernels->exact_add[j->x->dtype](row, j->weight, length, levels, depth));
}

static void work_look(void* context, int worker) { chunks(context, worker, look_at); }

static void work_add(void* context, int worker) { chunks(context, worker, add); }

int fc_exact_sum(double* const* levels, int64_t count, uint8_t* depth, const fc_rows* x, float weight, fc_isa isa,
                 int threads) {
    const fc_kernels* kernels = fc_kernels_for(isa);
    if (!kernels) return FC_NO_ISA;
    const int64_t total = fc_ceil(fc_columns(x), FC_EXACT_CHUNK);
    for (int64_t c = 0; c < total; c++)
        if (depth[c] >= count || depth[c] >= FC_EXACT_MOST) return FC_NO_MEMORY;
    const int workers = (int)(threads < total ? threads : total);
    float* scratch = fc_alloc((size_t)workers * FC_EXACT_CHUNK * sizeof *scratch);
    if (!scratch) return FC_NO_MEMORY;
    const fc_mode mode = fc_enter_ieee();
    job j = {levels, depth, x, kernels, (double)weight, scratch, 0, 0};
    fc_parallel(workers, work_look, &j);
    if (!j.bad) {
        j.next = 0;
        fc_parallel(workers, work_add, &j);
    }
    fc_leave_ieee(mode);
    free(scratch);
    return j.bad ? FC_NOT_FINITE : FC_OK;
}
