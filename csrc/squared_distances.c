/* squared_distances: each pair's sum runs strictly in column order, so pairs, not columns, go side by side. A thread
 * takes a share of the pairs through all columns, a tile at a time, so that a row in many pairs is brought once. */
#include <stdlib.h>

#include "impl.h"

enum { TILE = 2048 }; /* columns of each row at a time */

typedef struct {
    const fc_rows* x;
    const fc_kernels* kernels;
    const int64_t* pairs;
    int64_t count;
    double* out;
    int64_t groups, shares, next; /* groups of FC_PAIRS pairs */
    int failed;                   /* a share found no memory */
} job;

typedef struct {
    const float** row; /* by row: its columns of this tile in fp32; NULL for a row that the share does not use */
    int64_t* used;     /* the rows that it uses */
    float* wide;       /* a tile for each used row, for rows that are not fp32 where they lie */
    void* scratch;     /* a tile of elements that cross pieces */
} space;

static void release(space* s) {
    free(s->row);
    free(s->used);
    free(s->wide);
    free(s->scratch);
}

/* The rows of pairs first to end, in the order of their first use; 0 when memory is short. */
static int64_t reserve(const job* j, space* s, int64_t first, int64_t end) {
    s->row = calloc((size_t)j->x->rows, sizeof *s->row);
    s->used = malloc((size_t)fc_min(j->x->rows, 2 * (end - first)) * sizeof *s->used);
    s->scratch = fc_alloc(TILE * sizeof(float));
    if (!s->row || !s->used || !s->scratch) return 0;
    int64_t count = 0;
    for (int64_t k = 2 * first; k < 2 * end; k++)
        if (!s->row[j->pairs[k]]) {
            s->used[count++] = j->pairs[k];
            s->row[j->pairs[k]] = s->scratch;
        }
    s->wide = fc_alloc((size_t)count * TILE * sizeof(float));
    return s->wide ? count : 0;
}

static void bring(const job* j, space* s, int64_t used, int64_t start, int64_t length) {
    for (int64_t u = 0; u < used; u++) {
        const void* found = fc_gather(j->kernels, j->x, s->used[u], start, length, s->scratch);
        const int in_place = j->x->dtype == FC_F32 && found != s->scratch && (uintptr_t)found % sizeof(float) == 0;
        if (!in_place) j->kernels->to_f32[j->x->dtype](found, length, s->wide + u * TILE);
        s->row[s->used[u]] = in_place ? found : s->wide + u * TILE;
    }
}

/* 1 if the share was done, 0 when memory is short. */
static int do_share(const job* j, int64_t share) {
    const int64_t first = share * j->groups / j->shares * FC_PAIRS;
    const int64_t end = fc_min((share + 1) * j->groups / j->shares * FC_PAIRS, j->count);
    space s = {0};
    const int64_t used = reserve(j, &s, first, end), d = fc_columns(j->x);
    for (int64_t start = 0; used && start < d; start += TILE) {
        const int64_t length = fc_min(TILE, d - start);
        bring(j, &s, used, start, length);
        for (int64_t group = first; group < end; group += FC_PAIRS) {
            const float *a[FC_PAIRS], *b[FC_PAIRS];
            double sum[FC_PAIRS];
            for (int p = 0; p < FC_PAIRS; p++) { /* a short group repeats its last pair */
                const int64_t pair = fc_min(group + p, end - 1);
                a[p] = s.row[j->pairs[2 * pair]];
                b[p] = s.row[j->pairs[2 * pair + 1]];
                sum[p] = j->out[pair];
            }
            j->kernels->pair_squares(a, b, length, sum);
            for (int64_t p = 0; p < fc_min(FC_PAIRS, end - group); p++) j->out[group + p] = sum[p];
        }
    }
    release(&s);
    return used != 0;
}

static void work(void* context, int worker) {
    job* j = context;
    (void)worker;
    for (int64_t share; (share = fc_next(&j->next)) < j->shares;)
        if (!do_share(j, share)) __atomic_store_n(&j->failed, 1, __ATOMIC_RELAXED);
}

int fc_squared_distances(const fc_rows* x, const int64_t* pairs, int64_t count, double* out, fc_isa isa, int threads) {
    const fc_kernels* kernels = fc_kernels_for(isa);
    if (!kernels) return FC_NO_ISA;
    const int64_t groups = fc_ceil(count, FC_PAIRS), shares = fc_min(threads, groups);
    job j = {x, kernels, pairs, count, out, groups, shares, 0, 0};
    fc_parallel((int)(shares ? shares : 1), work, &j);
    return j.failed ? FC_NO_MEMORY : FC_OK;
}
