/* weighted_sum over a cohort: tiles of columns, their fp64 sums in the second-level cache, a few rows at a time. */
#include <stdlib.h>

#include "impl.h"

enum { STREAM_FROM = 4 << 20 }; /* bytes of output from which writes bypass the cache */

typedef struct {
    const fc_rows* x;
    const fc_kernels* kernels;
    const int64_t* counted; /* rows of weight other than 0, in order */
    const double* w;        /* their weights */
    int64_t count;
    const int64_t* tiles; /* tiles before each segment */
    double divisor;
    char* out;
    fc_dtype out_dtype;
    int64_t next;
    int bad;
} job;

/* `length` columns from column `start`, which lie in one segment. */
static void sum_strip(const job* j, int64_t start, int64_t length, double* acc, float* decoded, int* bad) {
    const fc_rows* x = j->x;
    const int out = fc_itemsize(j->out_dtype);
    const int64_t step = x->encoding ? FC_DECODED : FC_WS_TILE;
    if (!j->count) memset(acc, 0, (size_t)length * sizeof *acc);
    for (int64_t first = 0; first < j->count; first += FC_WS_GROUP) {
        const void* rows[FC_WS_GROUP];
        const int rows_now = (int)fc_min(FC_WS_GROUP, j->count - first);
        for (int64_t at = 0; at < length; at += step) {
            const int64_t columns = fc_min(step, length - at);
            for (int r = 0; r < rows_now; r++)
                rows[r] =
                    fc_gather(j->kernels, x, j->counted[first + r], start + at, columns, decoded + r * FC_DECODED);
            j->kernels->accumulate[x->dtype](rows, j->w + first, rows_now, columns, acc + at, first == 0);
        }
    }
    const int stream = fc_columns(x) * out >= STREAM_FROM;
    *bad |= j->kernels->finish[x->dtype][j->out_dtype](acc, length, j->divisor, j->out + start * out, stream);
}

static void sum_tile(const job* j, int64_t tile, double* acc, float* decoded, int* bad) {
    const fc_rows* x = j->x;
    const int64_t low = fc_last_start(j->tiles, x->segments, tile);
    const int64_t start = x->starts[low] + (tile - j->tiles[low]) * FC_WS_TILE;
    const int64_t end = fc_min(start + FC_WS_TILE, x->starts[low + 1]);
    /* one group is every row of a strip: its sums need not leave the first-level cache before they are rounded */
    const int64_t strip = j->count <= FC_WS_GROUP ? FC_WS_STRIP : FC_WS_TILE;
    for (int64_t at = start; at < end; at += strip) sum_strip(j, at, fc_min(strip, end - at), acc, decoded, bad);
}

static void work(void* context, int worker) {
    job* j = context;
    int bad = 0;
    double* acc = fc_alloc(FC_WS_TILE * sizeof *acc + FC_WS_GROUP * FC_DECODED * sizeof(float));
    (void)worker;
    /* a worker without memory takes no tile: the others do them all */
    for (int64_t tile; acc && (tile = fc_next(&j->next)) < j->tiles[j->x->segments];)
        sum_tile(j, tile, acc, (float*)(acc + FC_WS_TILE), &bad);
    if (bad) __atomic_store_n(&j->bad, 1, __ATOMIC_RELAXED);
    free(acc);
}

int fc_weighted_sum(const fc_rows* x, const float* weights, double divisor, void* out, fc_dtype out_dtype, fc_isa isa,
                    int threads) {
    const fc_kernels* kernels = fc_kernels_for(isa);
    if (!kernels) return FC_NO_ISA;
    const fc_mode mode = fc_enter_ieee();
    int64_t* counted = malloc((size_t)(x->rows + 1) * sizeof *counted);
    int64_t* tiles = malloc((size_t)(x->segments + 1) * sizeof *tiles);
    double* w = malloc((size_t)(x->rows + 1) * sizeof *w);
    int status = FC_NO_MEMORY;
    if (counted && tiles && w) {
        job j = {x, kernels, counted, w, 0, tiles, divisor, out, out_dtype, 0, 0};
        for (int64_t i = 0; i < x->rows; i++)
            if (weights[i] != 0.0f) {
                counted[j.count] = i;
                w[j.count++] = (double)weights[i];
            }
        tiles[0] = 0;
        for (int64_t k = 0; k < x->segments; k++)
            tiles[k + 1] = tiles[k] + fc_ceil(x->starts[k + 1] - x->starts[k], FC_WS_TILE);
        fc_parallel((int)fc_min(threads, tiles[x->segments]), work, &j);
        status = j.next < tiles[x->segments] ? FC_NO_MEMORY : j.bad ? FC_NOT_FINITE : FC_OK;
    }
    free(counted);
    free(tiles);
    free(w);
    fc_leave_ieee(mode);
    return status;
}
