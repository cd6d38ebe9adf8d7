/* weighted_sums over a cohort: a matrix product in fp64 whose sums keep the order of the rows.
 *
 * Many outputs are bound by arithmetic: tiles of columns are widened once into strips; each strip meets all outputs
 * while it is in the first-level cache, FC_SUMS_ROWS rows at a time, and the sums of a tile wait in the second-level
 * cache for the next rows or for their rounding. Few outputs are bound by memory: rows are read as they lie, in long
 * stretches, FC_SUMS_STREAMS at a time. */
#include <stdlib.h>

#include "impl.h"

enum {
    FEW = 8,               /* outputs up to which rows are read as they lie */
    STREAM_FROM = 4 << 20, /* bytes of output from which writes bypass the cache */
    TILE_STEP = 96,        /* columns of a tile are a multiple: whole strips, and whole lines of any output */
    TILE_MOST = 2 * TILE_STEP,
    TILE_SUMS = 64 << 10, /* fp64 sums of a tile at most, where that leaves TILE_STEP columns */
    RUN = 8,              /* tiles that a worker takes in a row: the next one is asked for while one is computed */
    SPREAD = 8,           /* columns between the sums of two outputs: they would fall on the same few cache sets */
};

typedef struct {
    const fc_rows* x;
    const fc_kernels* kernels;
    const int64_t* counted; /* rows with a weight other than 0, in order */
    int64_t rows;
    const double* w; /* [chunk of rows][group of outputs][row][width] */
    int64_t outputs;
    const double* divisors;
    char* out;
    fc_dtype out_dtype;
    int few;
    int64_t chunk, width; /* rows of a chunk, outputs of a group at most */
    int64_t tile;         /* columns */
    int64_t next;
    int bad;
} job;

static int64_t groups(const job* j) { return fc_ceil(j->outputs, j->width); }
/* The first output of a group: groups are of equal size, or one apart. */
static int64_t group_start(const job* j, int64_t g) { return g * j->outputs / groups(j); }
static int64_t stride(const job* j) { return j->tile + SPREAD; }

/* What comes after the rows and columns at hand: asked for in small parts while products are computed. */
typedef struct {
    int64_t first, rows; /* of `counted` */
    int64_t start;       /* column */
    int64_t asked;       /* rows so far */
} following;

static void ask(const job* j, following* next, int64_t until) {
    const int64_t bytes = j->x->encoding ? 0 : j->tile * fc_itemsize(j->x->dtype); /* decoded rows lie elsewhere */
    for (; next->asked < until; next->asked++) {
        const char* row = fc_gather(j->kernels, j->x, j->counted[next->first + next->asked], next->start, 0, NULL);
        for (int64_t b = 0; b < bytes; b += FC_ALIGN) __builtin_prefetch(row + b, 0, 2);
    }
}

/* Rows first to first + rows of a tile, as they lie. */
static void add_few(const job* j, int64_t first, int64_t rows, int64_t start, int64_t length, double* acc,
                    char* scratch) {
    const double* w = j->w + first * groups(j) * j->width;
    const void* at[FC_SUMS_STREAMS];
    for (int64_t r = 0; r < rows; r++)
        at[r] = fc_gather(j->kernels, j->x, j->counted[first + r], start, length,
                          scratch + r * j->tile * (int64_t)sizeof(float));
    for (int64_t g = 0; g < groups(j); g++) {
        const int64_t o = group_start(j, g);
        j->kernels->sums_few[j->x->dtype](at, w + g * rows * j->width, (int)rows, (int)(group_start(j, g + 1) - o),
                                          length, acc + o * stride(j), stride(j), first == 0);
    }
}

/* Rows first to first + rows of a tile by way of strips: [strip][FC_SUMS_ROWS][FC_SUMS_STRIP]. */
static void add_many(const job* j, int64_t first, int64_t rows, int64_t start, int64_t length, double* acc,
                     char* scratch, double* strips, following* next) {
    const double* w = j->w + first * groups(j) * j->width;
    const int64_t calls = fc_ceil(length, FC_SUMS_STRIP) * groups(j);
    int64_t done = 0;
    for (int64_t r = 0; r < rows; r++)
        j->kernels->sums_pack[j->x->dtype](fc_gather(j->kernels, j->x, j->counted[first + r], start, length, scratch),
                                           length, strips + r * FC_SUMS_STRIP, FC_SUMS_ROWS * FC_SUMS_STRIP);
    for (int64_t c = 0; c < length; c += FC_SUMS_STRIP)
        for (int64_t g = 0; g < groups(j); g++) {
            const int64_t o = group_start(j, g);
            ask(j, next, ++done * next->rows / calls);
            j->kernels->sums_tile(strips + c * FC_SUMS_ROWS, w + g * rows * j->width, rows,
                                  (int)(group_start(j, g + 1) - o), acc + o * stride(j) + c, stride(j), first == 0);
        }
}

static void sum_tile(const job* j, int64_t start, double* memory, int* bad) {
    const int64_t columns = fc_columns(j->x), length = fc_min(j->tile, columns - start);
    double* acc = memory + (j->few ? 0 : FC_SUMS_ROWS * j->tile);
    char* scratch = (char*)(acc + j->outputs * stride(j));
    if (!j->rows) memset(acc, 0, (size_t)(j->outputs * stride(j)) * sizeof *acc);
    for (int64_t first = 0; first < j->rows; first += j->chunk) {
        const int64_t rows = fc_min(j->chunk, j->rows - first);
        following next = {first + rows, fc_min(j->chunk, j->rows - first - rows), start, 0};
        if (!next.rows && start + length < columns) next = (following){0, fc_min(j->chunk, j->rows), start + length, 0};
        if (j->few) add_few(j, first, rows, start, length, acc, scratch);
        else add_many(j, first, rows, start, length, acc, scratch, memory, &next);
    }
    const int size = fc_itemsize(j->out_dtype), stream = j->outputs * columns * size >= STREAM_FROM;
    for (int64_t o = 0; o < j->outputs; o++) /* the sums lie in order, as those of fp32 rows do */
        *bad |= j->kernels->finish[FC_F32][j->out_dtype](acc + o * stride(j), length,
                                                         j->divisors ? j->divisors[o] : (double)NAN,
                                                         j->out + (o * columns + start) * size, stream);
}

static void work(void* context, int worker) {
    job* j = context;
    int bad = 0;
    const int64_t columns = fc_columns(j->x), run = (j->few ? 1 : RUN) * j->tile;
    const int64_t scratch = (j->few ? FC_SUMS_STREAMS : 1) * j->tile, strips = j->few ? 0 : FC_SUMS_ROWS * j->tile;
    double* memory = fc_alloc((size_t)(strips + j->outputs * stride(j) + scratch) * sizeof *memory);
    (void)worker;
    /* a worker without memory takes no run: the others do them all */
    for (int64_t start; memory && (start = run * fc_next(&j->next)) < columns;)
        for (const int64_t stop = fc_min(start + run, columns); start < stop; start += j->tile)
            sum_tile(j, start, memory, &bad);
    if (bad) __atomic_store_n(&j->bad, 1, __ATOMIC_RELAXED);
    free(memory);
}

/* counted and w of the rows that have a weight other than 0. */
static void arrange(job* j, const float* weights, int64_t* counted, double* w) {
    const int64_t rows = j->x->rows;
    for (int64_t i = 0; i < rows; i++) {
        int used = 0;
        for (int64_t o = 0; o < j->outputs; o++) used |= weights[o * rows + i] != 0.0f;
        if (used) counted[j->rows++] = i;
    }
    for (int64_t first = 0; first < j->rows; first += j->chunk)
        for (int64_t g = 0; g < groups(j); g++)
            for (int64_t r = first; r < fc_min(first + j->chunk, j->rows); r++, w += j->width)
                for (int64_t o = group_start(j, g); o < group_start(j, g + 1); o++)
                    w[o - group_start(j, g)] = (double)weights[o * rows + counted[r]];
}

int fc_weighted_sums(const fc_rows* x, const float* weights, int64_t count, const double* divisors, void* out,
                     fc_dtype out_dtype, fc_isa isa, int threads) {
    const fc_kernels* kernels = fc_kernels_for(isa);
    if (!kernels) return FC_NO_ISA;
    if (!count) return FC_OK;
    const fc_mode mode = fc_enter_ieee();
    const int few = count <= FEW;
    const int64_t width = few ? FC_SUMS_FEW : FC_SUMS_GROUP, most = few ? FC_WS_TILE : TILE_MOST;
    int64_t* counted = malloc((size_t)(x->rows + 1) * sizeof *counted);
    double* w = fc_alloc((size_t)(x->rows * fc_ceil(count, width) * width) * sizeof *w);
    int status = FC_NO_MEMORY;
    if (counted && w) {
        const int64_t chunk = few ? FC_SUMS_STREAMS : FC_SUMS_ROWS;
        const int64_t tile = fc_min(most / TILE_STEP, TILE_SUMS / count / TILE_STEP) * TILE_STEP;
        job j = {x, kernels, counted, 0, w, count, divisors, out, out_dtype, few, chunk, width, tile, 0, 0};
        if (!tile) j.tile = TILE_STEP;
        arrange(&j, weights, counted, w);
        const int64_t runs = fc_ceil(fc_columns(x), (few ? 1 : RUN) * j.tile);
        fc_parallel((int)fc_min(threads, runs), work, &j);
        status = j.next < runs ? FC_NO_MEMORY : j.bad ? FC_NOT_FINITE : FC_OK;
    }
    free(counted);
    free(w);
    fc_leave_ieee(mode);
    return status;
}
