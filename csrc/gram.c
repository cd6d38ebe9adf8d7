/* gram over a cohort. A chunk of columns is one item of work: block by block, rows are packed into panels, products are
 * accumulated in fp32 inside the block and added to the chunk's fp64 sums; chunks are folded into the result in order,
 * so the bits depend on neither threads nor luck. Only tiles on and below the diagonal are formed. */
#include <stdlib.h>

#include "impl.h"

enum { MOST_PACKED = 8 };

typedef struct {
    const fc_rows *x, *center;
    const fc_kernels* kernels;
    double* out;
    int64_t first; /* rows before it are formed with later ones only */
    int64_t panels, padded, chunks, next;
    int threads;
    int64_t block;  /* columns accumulated in fp32 */
    int64_t packed; /* blocks packed at a time: as long a read of each row as there is room for */
    fc_turn* turn;
} job;

typedef struct {
    double* sum;       /* (padded, padded) of the current chunk */
    float* panel;      /* panels of `packed` blocks: [block][panel], then as the ISA has it */
    float* center;     /* the block's center as fp32 */
    double* scale;     /* (padded): 2^e that each row of the block was divided by */
    float* scaled;     /* differences of a panel's rows, one of which was scaled */
    char* gathered;    /* FC_GRAM_PANEL blocks of rows that cross pieces */
    char* center_raw;  /* the center where it crosses pieces */
    const char** next; /* (n): where the columns of a row begin that are packed next */
} space;

static void release(space* s) {
    free(s->sum);
    free(s->panel);
    free(s->center);
    free(s->scale);
    free(s->scaled);
    free(s->gathered);
    free(s->center_raw);
    free(s->next);
}

static int reserve(space* s, const job* j) {
    const int64_t columns = j->packed * j->block;
    const size_t panels = (size_t)(j->packed * j->panels * j->kernels->gram_panel + FC_GRAM_PAST * FC_GRAM_BLOCK * 4);
    s->sum = fc_alloc((size_t)((j->padded + FC_GRAM_PAST) * j->padded) * sizeof *s->sum);
    s->panel = fc_alloc(panels);
    s->center = fc_alloc((size_t)columns * sizeof *s->center);
    s->scale = fc_alloc((size_t)(j->packed * j->padded + FC_GRAM_PAST) * sizeof *s->scale);
    s->scaled = fc_alloc((size_t)(FC_GRAM_PANEL * j->block) * sizeof *s->scaled);
    s->gathered = fc_alloc((size_t)(FC_GRAM_PANEL * columns) * sizeof(float));
    s->center_raw = fc_alloc((size_t)columns * sizeof(float));
    s->next = fc_alloc((size_t)j->x->rows * sizeof *s->next);
    if (s->panel) memset(s->panel, 0, panels);
    return s->sum && s->panel && s->center && s->scale && s->scaled && s->gathered && s->center_raw && s->next;
}

static double load(const void* row, int64_t k, fc_dtype dtype) {
    return dtype == FC_F32 ? fc_load_f32(row, k) : dtype == FC_F16 ? fc_load_f16(row, k) : fc_load_bf16(row, k);
}

/* The differences of a row, brought to a magnitude of about 1; returns what they were divided by. Where fp32 overflows
 * they are formed in fp64; a row that is itself not finite is left as it is. */
static double rescale(float* to, const void* row, const float* center, int64_t length, fc_dtype dtype) {
    double peak = 0.0;
    for (int64_t k = 0; k < length; k++) {
        const double difference = fabs(load(row, k, dtype) - (center ? (double)center[k] : 0.0));
        peak = difference > peak || isnan(difference) ? difference : peak;
    }
    int exponent = 0;
    if (isfinite(peak)) frexp(peak, &exponent);
    for (int64_t k = 0; k < length; k++)
        to[k] = (float)ldexp(load(row, k, dtype) - (center ? (double)center[k] : 0.0), -exponent);
    return ldexp(1.0, exponent);
}

/* Pack one block of a panel. Rows whose fp32 differences are too large or too small to square are scaled first.
 * Returns 1 if there is such a row. */
static int pack_panel(const job* j, const space* s, const void* const* rows, int count, const float* center,
                      int64_t length, float* panel, double* scale) {
    const uint32_t small = fc_bits(0x1p-40f), large = fc_bits(0x1p40f);
    const fc_dtype dtype = j->x->dtype;
    uint32_t peak[FC_GRAM_PANEL];
    const void* scaled[FC_GRAM_PANEL + FC_GRAM_NEXT];
    int outside = 0;
    j->kernels->gram_pack[dtype](rows, count, center, length, panel, peak);
    for (int r = 0; r < FC_GRAM_PANEL; r++) {
        scale[r] = 1.0;
        outside |= peak[r] && (peak[r] < small || peak[r] > large);
    }
    if (!outside) return 0;
    for (int r = 0; r < FC_GRAM_NEXT; r++) scaled[count + r] = s->scaled;
    for (int r = 0; r < count; r++) {
        float* to = s->scaled + r * j->block;
        scaled[r] = to;
        if (peak[r] && (peak[r] < small || peak[r] > large)) scale[r] = rescale(to, rows[r], center, length, dtype);
        else
            for (int64_t k = 0; k < length; k++) to[k] = (float)load(rows[r], k, dtype) - (center ? center[k] : 0.0f);
    }
    j->kernels->gram_pack[FC_F32](scaled, count, NULL, length, panel, peak);
    return 1;
}

static float* panel_of(const job* j, const space* s, int64_t block, int64_t panel) {
    return s->panel + (block * j->panels + panel) * (j->kernels->gram_panel / (int64_t)sizeof(float));
}

/* Where the r-th row lies that is packed after the rows of a panel: one of the next panel, or of the first at `after`.
 */
static const void* packed_next(const job* j, const space* s, int64_t panel, int64_t r, int64_t start, int64_t after) {
    const int64_t below = (panel + 1) * FC_GRAM_PANEL + r;
    if (j->x->encoding) return s->panel; /* what is decoded does not lie anywhere yet */
    if (below < j->x->rows) return fc_gather(j->kernels, j->x, below, start, 1, s->gathered);
    if (r < j->x->rows && after < fc_columns(j->x)) return fc_gather(j->kernels, j->x, r, after, 1, s->gathered);
    return s->panel; /* nothing left: memory that is near anyway */
}

/* Pack `length` <= packed blocks of columns of all rows. Sets rescaled[b] where block b holds a row that was rescaled.
 */
static void pack_blocks(const job* j, space* s, int64_t start, int64_t length, int64_t after, int* rescaled) {
    const fc_rows* x = j->x;
    const int size = fc_itemsize(x->dtype);
    const float* center = NULL;
    memset(rescaled, 0, (size_t)j->packed * sizeof *rescaled);
    if (j->center) {
        const void* raw = fc_gather(j->kernels, j->center, 0, start, length, s->center_raw);
        j->kernels->to_f32[j->center->dtype](raw, length, s->center);
        center = s->center;
    }
    for (int64_t p = 0; p < j->panels; p++) {
        const void* rows[FC_GRAM_PANEL + FC_GRAM_NEXT];
        const int count = (int)fc_min(FC_GRAM_PANEL, x->rows - p * FC_GRAM_PANEL);
        for (int r = 0; r < count; r++)
            rows[r] = fc_gather(j->kernels, x, p * FC_GRAM_PANEL + r, start, length,
                                s->gathered + r * j->packed * j->block * (int)sizeof(float));
        for (int64_t b = 0, done = 0; done < length; b++, done += j->block) {
            const int64_t columns = fc_min(j->block, length - done);
            for (int r = 0; r < FC_GRAM_NEXT; r++)
                rows[count + r] = done + columns < length ? (const char*)rows[fc_min(r, count - 1)] + columns * size
                                                          : packed_next(j, s, p, r, start, after);
            rescaled[b] |= pack_panel(j, s, rows, count, center ? center + done : NULL, columns, panel_of(j, s, b, p),
                                      s->scale + b * j->padded + p * FC_GRAM_PANEL);
            for (int r = 0; r < count; r++) rows[r] = (const char*)rows[r] + columns * size;
        }
    }
}

static void multiply_block(const job* j, const space* s, int64_t block, int64_t length, int rescaled, fc_ahead* next) {
    const int64_t panel_stride = FC_GRAM_PANEL * FC_GRAM_BLOCK;
    const float* panel = panel_of(j, s, block, 0);
    double* scale = s->scale + block * j->padded;
    if (j->kernels->gram_products) {
        j->kernels->gram_products(panel, j->x->rows, j->first, length, s->sum, scale, rescaled, next);
        return;
    }
    for (int64_t i = j->first / FC_GRAM_ROWS * FC_GRAM_ROWS; i < j->x->rows; i += FC_GRAM_ROWS) {
        const float* a = panel + i / FC_GRAM_PANEL * panel_stride + i % FC_GRAM_PANEL;
        const int rows = j->x->rows - i <= FC_GRAM_ROWS / 2 ? FC_GRAM_ROWS / 2 : FC_GRAM_ROWS;
        for (int64_t p = 0; p <= i / FC_GRAM_PANEL; p++) {
            const int columns = (int)fc_min(FC_GRAM_PANEL, i + FC_GRAM_ROWS - p * FC_GRAM_PANEL);
            j->kernels->gram_tile(a, rows, panel + p * panel_stride, columns, length,
                                  s->sum + i * j->padded + p * FC_GRAM_PANEL, j->padded, rescaled ? scale + i : NULL,
                                  scale + p * FC_GRAM_PANEL);
        }
    }
}

static void work(void* context, int worker) {
    job* j = context;
    space s = {0};
    (void)worker;
    int rescaled[MOST_PACKED];
    const int ready = reserve(&s, j);
    const int64_t columns = fc_columns(j->x), n = j->x->rows;
    for (int64_t chunk; ready && (chunk = fc_next(&j->next)) < j->chunks;) {
        const int64_t end = fc_min((chunk + 1) * FC_GRAM_CHUNK, columns);
        memset(s.sum, 0, (size_t)(j->padded * j->padded) * sizeof *s.sum);
        for (int64_t start = chunk * FC_GRAM_CHUNK; start < end; start += j->packed * j->block) {
            const int64_t length = fc_min(j->packed * j->block, end - start);
            /* where this thread goes on: inside the chunk, or, by the likeliest order, in the chunk after the others'
             */
            const int64_t after = start + length < end ? start + length : end + (j->threads - 1) * FC_GRAM_CHUNK;
            const int64_t coming = fc_min(j->packed * j->block, columns - after);
            /* what is decoded is not read at its columns' place in a row, so that there is nothing to ask for */
            const int asks = j->kernels->gram_products && !j->x->encoding;
            const int64_t ahead = coming > 0 && asks ? coming * fc_itemsize(j->x->dtype) : 0;
            for (int64_t r = 0; ahead && r < n; r++) s.next[r] = fc_gather(j->kernels, j->x, r, after, 1, s.gathered);
            fc_ahead next = {s.next, n, ahead, fc_ceil(length, j->block), 0, 0};
            pack_blocks(j, &s, start, length, after, rescaled);
            for (int64_t b = 0; b * j->block < length; b++)
                multiply_block(j, &s, b, fc_min(j->block, length - b * j->block), rescaled[b], &next);
        }
        fc_turn_wait(j->turn, chunk);
        for (int64_t i = j->first; i < n; i++)
            for (int64_t c = 0; c <= i; c++) j->out[i * n + c] += s.sum[i * j->padded + c];
        fc_turn_done(j->turn);
    }
    release(&s);
}

int fc_gram(const fc_rows* x, const fc_rows* center, int64_t first, double* out, fc_isa isa, int threads) {
    const fc_kernels* kernels = fc_kernels_for(isa);
    if (!kernels) return FC_NO_ISA;
    const int64_t n = x->rows, panels = fc_ceil(n, FC_GRAM_PANEL), chunks = fc_ceil(fc_columns(x), FC_GRAM_CHUNK);
    const int64_t block = kernels->gram_block, block_bytes = panels * kernels->gram_panel;
    const int64_t room = kernels->gram_packed / block_bytes, packed = room < 1 ? 1 : fc_min(room, MOST_PACKED);
    job j = {x,
             center,
             kernels,
             out,
             first,
             panels,
             panels * FC_GRAM_PANEL,
             chunks,
             0,
             (int)fc_min(threads, chunks),
             block,
             packed,
             fc_turn_new()};
    if (!j.turn) return FC_NO_MEMORY;
    const fc_mode mode = fc_enter_ieee();
    fc_parallel(j.threads, work, &j);
    fc_leave_ieee(mode);
    /* a worker without memory takes no chunk; the others do them all, unless there is none */
    const int finished = j.next >= chunks || !chunks;
    fc_turn_free(j.turn);
    if (!finished) return FC_NO_MEMORY;
    for (int64_t i = first; i < n; i++)
        for (int64_t c = 0; c < i; c++) out[c * n + i] = out[i * n + c];
    return FC_OK;
}
