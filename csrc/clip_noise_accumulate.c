/* clip_noise_accumulate over a cohort: tiles of columns whose integer sums stay in the second-level cache, a few rows
 * at a time; noise is added and the sum turned into numbers while the tile is there. */
#include <stdlib.h>

#include "impl.h"

enum { STREAM_FROM = 4 << 20 }; /* bytes of output from which writes bypass the cache */

typedef struct {
    const fc_rows* x;
    const fc_kernels* kernels;
    const int64_t* counted; /* rows of scale other than 0, in order */
    const double* scales;   /* their scales */
    int64_t count;
    const int64_t* noise;
    double grid, divisor;
    char* out;
    fc_dtype out_dtype;
    int64_t next;
    int bad;
} job;

/* out = (sum + noise) * grid, exact: both lie from -2^50 to 2^50. 1 if a noise does not. In place. */
static int dequantise(const int64_t* sum, const int64_t* noise, int64_t length, double grid, double* out) {
    uint64_t above = 0;
    for (int64_t k = 0; k < length; k++) {
        /* added to the bits of 1.5 * 2^52, an integer below 2^51 in size is one more than that number */
        const uint64_t drawn = noise ? (uint64_t)noise[k] : 0, bits = 0x4338000000000000 + (uint64_t)sum[k] + drawn;
        double shifted;
        memcpy(&shifted, &bits, 8);
        above |= (drawn + FC_CLIP_MOST) / (2 * FC_CLIP_MOST);
        out[k] = (shifted - 0x1.8p52) * grid;
    }
    return above != 0;
}

static void sum_tile(const job* j, int64_t start, char* memory, int* bad) {
    const fc_rows* x = j->x;
    const int64_t length = fc_min(FC_SIGN_TILE, fc_columns(x) - start);
    int64_t* sum = (int64_t*)memory;
    float* scratch = (float*)(sum + FC_SIGN_TILE);
    memset(sum, 0, (size_t)length * sizeof *sum);
    for (int64_t first = 0; first < j->count; first += FC_INTEGER_GROUP) {
        const void* rows[FC_INTEGER_GROUP];
        const int count = (int)fc_min(FC_INTEGER_GROUP, j->count - first);
        for (int r = 0; r < count; r++)
            rows[r] = fc_gather(j->kernels, x, j->counted[first + r], start, length, scratch + r * FC_SIGN_TILE);
        j->kernels->clip_noise_accumulate[x->dtype](rows, j->scales + first, count, length, sum);
    }
    double* values = (double*)memory;
    *bad |= dequantise(sum, j->noise ? j->noise + start : NULL, length, j->grid, values);
    const int size = fc_itemsize(j->out_dtype), stream = fc_columns(x) * size >= STREAM_FROM;
    *bad |= j->kernels->finish[FC_F32][j->out_dtype](values, length, j->divisor, j->out + start * size, stream);
}

static void work(void* context, int worker) {
    job* j = context;
    int bad = 0;
    char* memory = fc_alloc(FC_SIGN_TILE * (sizeof(int64_t) + FC_INTEGER_GROUP * sizeof(float)));
    (void)worker;
    /* a worker without memory takes no tile: the others do them all */
    for (int64_t start; memory && (start = FC_SIGN_TILE * fc_next(&j->next)) < fc_columns(j->x);)
        sum_tile(j, start, memory, &bad);
    if (bad) __atomic_store_n(&j->bad, 1, __ATOMIC_RELAXED);
    free(memory);
}

int fc_clip_noise_accumulate(const fc_rows* x, const double* scales, double grid, const int64_t* noise, double divisor,
                             void* out, fc_dtype out_dtype, fc_isa isa, int threads) {
    const fc_kernels* kernels = fc_kernels_for(isa);
    if (!kernels) return FC_NO_ISA;
    const fc_mode mode = fc_enter_ieee();
    const int64_t tiles = fc_ceil(fc_columns(x), FC_SIGN_TILE);
    int64_t* counted = malloc((size_t)(x->rows + 1) * sizeof *counted);
    double* kept = malloc((size_t)(x->rows + 1) * sizeof *kept);
    int status = FC_NO_MEMORY;
    if (counted && kept) {
        job j = {x, kernels, counted, kept, 0, noise, grid, divisor, out, out_dtype, 0, 0};
        for (int64_t i = 0; i < x->rows; i++)
            if (scales[i] != 0.0) {
                counted[j.count] = i;
                kept[j.count++] = scales[i];
            }
        fc_parallel((int)fc_min(threads, tiles), work, &j);
        status = j.next < tiles ? FC_NO_MEMORY : j.bad ? FC_NOT_FINITE : FC_OK;
    }
    free(counted);
    free(kept);
    fc_leave_ieee(mode);
    return status;
}
