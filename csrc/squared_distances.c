/* squared_distances: each pair's sum runs strictly in column order, so pairs, not columns, go side by side. A thread
 * takes a share of the pairs through all columns, a tile at a time, so that a point in many pairs, a row or a mixture
 * of rows, is brought once: in fp64, or, rows of few pairs each, in fp32, where they lie if they can be. */
#include <stdlib.h>

#include "impl.h"

/* Columns of each point at a time, in strips of weighted_sums, whose packing widens rows: as many as stay in the
 * second-level cache for all points. Their number is odd, so that points do not lie whole pages apart, where they would
 * share its sets. */
enum { LEAST_STRIPS = 21, MOST_STRIPS = 169, MOST_TILE = MOST_STRIPS * FC_SUMS_STRIP, CACHED = 1 << 19, FEW = 3 };

typedef struct {
    const fc_rows* x;
    const fc_kernels* kernels;
    const int64_t* pairs; /* of points */
    int64_t count;
    const double* mix; /* (points, rows), or NULL: the points are the rows */
    int64_t points;
    double* out;
    int64_t groups, shares, next; /* groups of FC_PAIRS pairs */
    int failed;                   /* a share found no memory */
} job;

typedef struct {
    const void** point;  /* by point: its columns of this tile; NULL for one that the share does not use */
    int wide;            /* whether they are in fp64 */
    int64_t* used;       /* the points that it uses */
    unsigned char* held; /* by row: whether one of them is it, or holds it */
    double* tiles;       /* a tile for each used point */
    int64_t tile;        /* its columns */
    void* scratch;       /* a tile of elements that cross pieces */
    double* row;         /* a tile of a row that is mixed */
} space;

static void release(space* s) {
    free(s->point);
    free(s->used);
    free(s->held);
    free(s->tiles);
    free(s->scratch);
    free(s->row);
}

/* The points of pairs first to end, in the order of their first use; 0 when memory is short. */
static int64_t reserve(const job* j, space* s, int64_t first, int64_t end) {
    s->point = calloc((size_t)j->points, sizeof *s->point);
    s->used = malloc((size_t)fc_min(j->points, 2 * (end - first)) * sizeof *s->used);
    s->held = calloc((size_t)j->x->rows, 1);
    s->scratch = fc_alloc(MOST_TILE * sizeof(float));
    s->row = fc_alloc(MOST_TILE * sizeof(double));
    if (!s->point || !s->used || !s->held || !s->scratch || !s->row) return 0;
    int64_t count = 0;
    for (int64_t k = 2 * first; k < 2 * end; k++)
        if (!s->point[j->pairs[k]]) {
            s->used[count++] = j->pairs[k];
            s->point[j->pairs[k]] = s->scratch;
        }
    const int64_t strips = fc_min(MOST_STRIPS, CACHED / (count * FC_SUMS_STRIP * (int64_t)sizeof(double)));
    s->tile = FC_SUMS_STRIP * (strips < LEAST_STRIPS ? LEAST_STRIPS : strips | 1);
    s->wide = j->mix || end - first >= FEW * count;
    s->tiles = fc_alloc((size_t)(count * s->tile) * sizeof(double));
    if (!s->tiles) return 0;
    for (int64_t u = 0; u < count; u++) {
        s->point[s->used[u]] = s->tiles + u * s->tile;
        if (!j->mix) continue;
        for (int64_t i = 0; i < j->x->rows; i++) s->held[i] |= j->mix[s->used[u] * j->x->rows + i] != 0.0;
    }
    return count;
}

/* Columns of a row in fp64. */
static void widen(const job* j, const space* s, int64_t i, int64_t start, int64_t length, double* out) {
    const void* found = fc_gather(j->kernels, j->x, i, start, length, s->scratch);
    j->kernels->sums_pack[j->x->dtype](found, length, out, FC_SUMS_STRIP);
}

static void bring_rows(const job* j, const space* s, int64_t used, int64_t start, int64_t length) {
    for (int64_t u = 0; u < used; u++) {
        const int64_t i = s->used[u];
        void* tile = s->tiles + u * s->tile;
        if (s->wide) {
            widen(j, s, i, start, length, tile);
            continue;
        }
        const void* found = fc_gather(j->kernels, j->x, i, start, length, s->scratch);
        const int in_place = j->x->dtype == FC_F32 && found != s->scratch && (uintptr_t)found % sizeof(float) == 0;
        if (!in_place) j->kernels->to_f32[j->x->dtype](found, length, tile);
        s->point[i] = in_place ? found : tile;
    }
}

/* Each mixture from 0.0 with rows in order: a row is read once for all of them. */
static void bring_mixtures(const job* j, const space* s, int64_t used, int64_t start, int64_t length) {
    const int64_t rows = j->x->rows;
    for (int64_t u = 0; u < used; u++) memset(s->tiles + u * s->tile, 0, (size_t)length * sizeof(double));
    for (int64_t i = 0; i < rows; i++) {
        if (!s->held[i]) continue;
        widen(j, s, i, start, length, s->row);
        for (int64_t u = 0; u < used; u++) {
            const double share = j->mix[s->used[u] * rows + i];
            double* tile = s->tiles + u * s->tile;
            if (share != 0.0)
                for (int64_t k = 0; k < length; k++) tile[k] += share * s->row[k];
        }
    }
}

/* 1 if the share was done, 0 when memory is short. */
static int do_share(const job* j, int64_t share) {
    const int64_t first = share * j->groups / j->shares * FC_PAIRS;
    const int64_t end = fc_min((share + 1) * j->groups / j->shares * FC_PAIRS, j->count);
    space s = {0};
    const int64_t used = reserve(j, &s, first, end), d = fc_columns(j->x);
    for (int64_t start = 0; used && start < d; start += s.tile) {
        const int64_t length = fc_min(s.tile, d - start);
        (j->mix ? bring_mixtures : bring_rows)(j, &s, used, start, length);
        for (int64_t group = first; group < end; group += FC_PAIRS) {
            const void *a[FC_PAIRS], *b[FC_PAIRS];
            double sum[FC_PAIRS];
            for (int p = 0; p < FC_PAIRS; p++) { /* a short group repeats its last pair */
                const int64_t pair = fc_min(group + p, end - 1);
                a[p] = s.point[j->pairs[2 * pair]];
                b[p] = s.point[j->pairs[2 * pair + 1]];
                sum[p] = j->out[pair];
            }
            j->kernels->pair_squares(a, b, s.wide, length, sum);
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

int fc_squared_distances(const fc_rows* x, const int64_t* pairs, int64_t count, const double* mix, int64_t mixtures,
                         double* out, fc_isa isa, int threads) {
    const fc_kernels* kernels = fc_kernels_for(isa);
    if (!kernels) return FC_NO_ISA;
    const int64_t groups = fc_ceil(count, FC_PAIRS), shares = fc_min(threads, groups);
    job j = {x, kernels, pairs, count, mix, mix ? mixtures : x->rows, out, groups, shares, 0, 0};
    fc_parallel((int)(shares ? shares : 1), work, &j);
    return j.failed ? FC_NO_MEMORY : FC_OK;
}
