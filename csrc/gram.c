/* gram over a cohort. A chunk of columns is one item of work: block by block, rows are packed into panels, products are
 * accumulated in fp32 inside the block and added to the chunk's fp64 sums; chunks are folded into the result in order, so
 * the bits depend on neither threads nor luck. Only tiles on and below the diagonal are formed. */
#include <stdlib.h>

#include "impl.h"

typedef struct {
    const fc_rows *x, *center;
    const fc_kernels *kernels;
    double *out;
    int64_t panels, padded, chunks, next;
    fc_turn *turn;
    int failed;
} job;

typedef struct {
    double *sum;      /* (padded, padded) of the current chunk */
    float *panel;     /* panels of the current block */
    float *center;    /* the block's center as fp32 */
    double *scale;    /* (padded): 2^e that each row of the block was divided by */
    char *gathered;   /* FC_GRAM_PANEL blocks of rows that cross pieces */
    char *center_raw; /* the center where it crosses pieces */
} space;

static void release(space *s) {
    free(s->sum);
    free(s->panel);
    free(s->center);
    free(s->scale);
    free(s->gathered);
    free(s->center_raw);
}

static int reserve(space *s, int64_t padded) {
    s->sum = fc_alloc((size_t)(padded * padded) * sizeof *s->sum);
    s->panel = fc_alloc((size_t)(padded * FC_GRAM_BLOCK) * sizeof *s->panel);
    s->center = fc_alloc(FC_GRAM_BLOCK * sizeof *s->center);
    s->scale = fc_alloc((size_t)padded * sizeof *s->scale);
    s->gathered = fc_alloc(FC_GRAM_PANEL * FC_GRAM_BLOCK * sizeof(float));
    s->center_raw = fc_alloc(FC_GRAM_BLOCK * sizeof(float));
    return s->sum && s->panel && s->center && s->scale && s->gathered && s->center_raw;
}

/* One row of a panel whose fp32 differences are too large or too small to square: its magnitude is brought to about 1.
 * Where fp32 overflowed, the differences are formed again in fp64; a row that is itself not finite is left as it is. */
static double rescale(float *panel, const void *row, const float *center, int64_t length, fc_dtype dtype) {
    double peak = 0.0;
    for (int64_t k = 0; k < length; k++) {
        const double value = dtype == FC_F32 ? fc_load_f32(row, k) : dtype == FC_F16 ? fc_load_f16(row, k) : fc_load_bf16(row, k);
        const double difference = fabs(value - (center ? (double)center[k] : 0.0));
        if (!isfinite(difference)) return 1.0;
        peak = difference > peak ? difference : peak;
    }
    int exponent;
    frexp(peak, &exponent);
    for (int64_t k = 0; k < length; k++) {
        const double value = dtype == FC_F32 ? fc_load_f32(row, k) : dtype == FC_F16 ? fc_load_f16(row, k) : fc_load_bf16(row, k);
        panel[k * FC_GRAM_PANEL] = (float)ldexp(value - (center ? (double)center[k] : 0.0), -exponent);
    }
    return ldexp(1.0, exponent);
}

/* Pack all rows of one block. Returns 1 if any row was rescaled. */
static int pack_block(const job *j, space *s, int64_t start, int64_t length) {
    const fc_rows *x = j->x;
    const uint32_t small = fc_bits(0x1p-40f), large = fc_bits(0x1p40f);
    const float *center = NULL;
    int rescaled = 0;
    if (j->center) {
        const void *raw = fc_gather(j->center, 0, start, length, s->center_raw);
        j->kernels->to_f32[j->center->dtype](raw, length, s->center);
        center = s->center;
    }
    for (int64_t p = 0; p < j->panels; p++) {
        const void *rows[FC_GRAM_PANEL];
        uint32_t peak[FC_GRAM_PANEL];
        const int count = (int)fc_min(FC_GRAM_PANEL, x->rows - p * FC_GRAM_PANEL);
        float *panel = s->panel + p * FC_GRAM_PANEL * FC_GRAM_BLOCK;
        for (int r = 0; r < count; r++)
            rows[r] = fc_gather(x, p * FC_GRAM_PANEL + r, start, length, s->gathered + r * FC_GRAM_BLOCK * (int)sizeof(float));
        j->kernels->gram_pack[x->dtype](rows, count, center, length, panel);
        j->kernels->gram_peak(panel, length, peak);
        for (int r = 0; r < FC_GRAM_PANEL; r++) {
            double *scale = s->scale + p * FC_GRAM_PANEL + r;
            *scale = 1.0;
            if (peak[r] && (peak[r] < small || peak[r] > large)) {
                *scale = rescale(panel + r, rows[r], center, length, x->dtype);
                rescaled = 1;
            }
        }
    }
    return rescaled;
}

static void multiply_block(const job *j, const space *s, int64_t length, int rescaled) {
    const int64_t panel_stride = FC_GRAM_PANEL * FC_GRAM_BLOCK;
    for (int64_t i = 0; i < j->x->rows; i += FC_GRAM_ROWS) {
        const float *a = s->panel + i / FC_GRAM_PANEL * panel_stride + i % FC_GRAM_PANEL;
        const int64_t panels = i / FC_GRAM_PANEL + 1; /* those that hold columns up to the diagonal */
        for (int64_t p = 0; p < panels;) {
            const int64_t left = panels - p;
            /* a remainder of one panel alone would leave too few sums in flight */
            const int wide = (int)(left == 4 ? 2 : fc_min(FC_GRAM_WIDE, left));
            j->kernels->gram_tile(a, s->panel + p * panel_stride, panel_stride, wide, length,
                                  s->sum + i * j->padded + p * FC_GRAM_PANEL, j->padded, rescaled ? s->scale + i : NULL,
                                  rescaled ? s->scale + p * FC_GRAM_PANEL : NULL);
            p += wide;
        }
    }
}

static void work(void *context, int worker) {
    job *j = context;
    space s = {0};
    (void)worker;
    const int ready = reserve(&s, j->padded);
    if (!ready) __atomic_store_n(&j->failed, 1, __ATOMIC_RELAXED);
    const int64_t columns = fc_columns(j->x), n = j->x->rows;
    for (int64_t chunk; ready && (chunk = fc_next(&j->next)) < j->chunks;) {
        const int64_t end = fc_min((chunk + 1) * FC_GRAM_CHUNK, columns);
        memset(s.sum, 0, (size_t)(j->padded * j->padded) * sizeof *s.sum);
        for (int64_t start = chunk * FC_GRAM_CHUNK; start < end; start += FC_GRAM_BLOCK) {
            const int64_t length = fc_min(FC_GRAM_BLOCK, end - start);
            const int rescaled = pack_block(j, &s, start, length);
            multiply_block(j, &s, length, rescaled);
        }
        fc_turn_wait(j->turn, chunk);
        for (int64_t i = 0; i < n; i++)
            for (int64_t c = 0; c <= i; c++) j->out[i * n + c] += s.sum[i * j->padded + c];
        fc_turn_done(j->turn);
    }
    release(&s);
}

int fc_gram(const fc_rows *x, const fc_rows *center, double *out, fc_isa isa, int threads) {
    const fc_kernels *kernels = fc_kernels_for(isa);
    if (!kernels) return FC_NO_ISA;
    const int64_t n = x->rows, panels = fc_ceil(n, FC_GRAM_PANEL), chunks = fc_ceil(fc_columns(x), FC_GRAM_CHUNK);
    memset(out, 0, (size_t)(n * n) * sizeof *out);
    job j = {x, center, kernels, out, panels, panels * FC_GRAM_PANEL, chunks, 0, fc_turn_new(), 0};
    if (!j.turn) return FC_NO_MEMORY;
    fc_parallel((int)fc_min(threads, chunks), work, &j);
    /* a worker without memory takes no chunk; the others do them all, unless there is none */
    const int finished = j.next >= chunks || !chunks;
    fc_turn_free(j.turn);
    if (!finished) return FC_NO_MEMORY;
    for (int64_t i = 0; i < n; i++)
        for (int64_t c = i + 1; c < n; c++) out[i * n + c] = out[c * n + i];
    return FC_OK;
}
