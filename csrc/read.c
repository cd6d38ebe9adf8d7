/* The roof: every byte of every row, read once, by the same tiles and threads as weighted_sum, with nothing done to it.
 */
#include "impl.h"

enum { BYTES = 65536, MOST = 16 };

typedef struct {
    const fc_rows* x;
    const fc_kernels* kernels;
    int streams;
    int64_t next;
    uint64_t seen;
} job;

static void work(void* context, int worker) {
    job* j = context;
    const fc_rows* x = j->x;
    const int size = fc_itemsize(x->dtype);
    uint64_t seen = 0;
    (void)worker;
    for (int64_t tile; (tile = fc_next(&j->next)) * BYTES < fc_columns(x) * size;) {
        const int64_t low = tile * (BYTES / size), high = fc_min(low + BYTES / size, fc_columns(x));
        for (int64_t k = 0; k < x->segments; k++) {
            const int64_t start = low > x->starts[k] ? low : x->starts[k], end = fc_min(high, x->starts[k + 1]);
            for (int64_t first = 0; start < end && first < x->rows; first += j->streams) {
                const void* rows[MOST];
                const int count = (int)fc_min(j->streams, x->rows - first);
                for (int r = 0; r < count; r++)
                    rows[r] = (const char*)x->pointers[k * x->rows + first + r] + (start - x->starts[k]) * size;
                seen |= j->kernels->read(rows, count, (end - start) * size);
            }
        }
    }
    __atomic_fetch_or(&j->seen, seen, __ATOMIC_RELAXED);
}

int fc_read(const fc_rows* x, int streams, uint64_t* digest, fc_isa isa, int threads) {
    const fc_kernels* kernels = fc_kernels_for(isa);
    if (!kernels) return FC_NO_ISA;
    job j = {x, kernels, streams < 1 ? 1 : streams > MOST ? MOST : streams, 0, 0};
    fc_parallel((int)fc_min(threads, fc_ceil(fc_columns(x) * fc_itemsize(x->dtype), BYTES)), work, &j);
    *digest = j.seen;
    return FC_OK;
}
