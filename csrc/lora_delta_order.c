/* Order statistics of dense products of LoRA factors: a block of rows is one item of work, as in lora_delta_sum. The
 * products of FC_LORA_ROWS rows and FC_LORA_TILE columns are formed for all clients, rounded to fp32, and handed to the
 * kernels of median and trimmed_mean as rows: 3 KB a client, nothing dense. */
#include <stdlib.h>

#include "lora_delta.h"

enum { TILE = FC_LORA_ROWS * FC_LORA_TILE };

typedef struct {
    fc_lora_terms terms;
    fc_statistic statistic;
    int64_t f;
    double divisor;
    char* out;
    fc_dtype out_dtype;
    int64_t rows; /* of a block */
    int64_t next;
    int bad;
} job;

typedef struct {
    float *b, *a;       /* both packed, all chains */
    float* products;    /* (clients, TILE) */
    double *acc, *sums; /* TILE each: a client's products, the statistic */
    char* rounded;
    void* scratch;
    const void** row;
} space;

static void release(space* s) {
    free(s->b);
    free(s->a);
    free(s->products);
    free(s->acc);
    free(s->sums);
    free(s->rounded);
    free(s->scratch);
    free(s->row);
}

static int reserve(space* s, const job* j) {
    const int64_t n = j->terms.x->clients;
    s->b = fc_alloc((size_t)(j->rows * j->terms.terms) * sizeof *s->b);
    s->a = fc_alloc((size_t)(FC_LORA_TILE * j->terms.terms) * sizeof *s->a);
    s->products = fc_alloc((size_t)(n * TILE) * sizeof *s->products);
    s->acc = fc_alloc(TILE * sizeof *s->acc);
    s->sums = fc_alloc(TILE * sizeof *s->sums);
    s->rounded = fc_alloc(TILE * sizeof(double));
    s->scratch = fc_alloc((size_t)FC_ORDER_SCRATCH(n));
    s->row = fc_alloc((size_t)n * sizeof *s->row);
    return s->b && s->a && s->products && s->acc && s->sums && s->rounded && s->scratch && s->row;
}

/* The products of client i: `count` rows of `width` columns from row r of the block, side by side. */
static int form_products(const job* j, const space* s, int64_t i, int64_t r, int64_t count, int64_t width) {
    const fc_lora_terms* t = &j->terms;
    const int64_t first = t->client_chain[i], end = t->client_chain[i + 1];
    float* to = s->products + i * TILE;
    int bad = 0;
    if (first == end) memset(to, 0, (size_t)(count * width) * sizeof *to);
    for (int64_t c = first; c < end; c++)
        fc_lora_multiply(t, c, s->b + t->chain[c].start * j->rows + r * t->chain[c].length,
                         s->a + t->chain[c].start * FC_LORA_TILE, width, s->acc, c == first);
    for (int64_t o = 0; first < end && o < count; o++)
        bad |= t->kernels->finish[FC_F32][FC_F32](s->acc + o * FC_LORA_TILE, width, NAN, to + o * width, 0);
    return bad;
}

static int order_strip(const job* j, const space* s, int64_t row, int64_t r, int64_t count, int64_t column,
                       int64_t width) {
    const fc_lora_terms* t = &j->terms;
    const int size = fc_itemsize(j->out_dtype);
    int bad = 0;
    for (int64_t i = 0; i < t->x->clients; i++) bad |= form_products(j, s, i, r, count, width);
    bad |= t->kernels->order[FC_F32](s->row, t->x->clients, 0, count * width, j->statistic, j->f, s->scratch, s->sums);
    bad |= t->kernels->finish[FC_F32][j->out_dtype](s->sums, count * width, j->divisor, s->rounded, 0);
    for (int64_t o = 0; o < count; o++)
        fc_put_positive_zeros(j->out + ((row + r + o) * t->x->d_in + column) * size, s->rounded + o * width * size,
                              width, j->out_dtype, 0);
    return bad;
}

static int order_block(const job* j, const space* s, int64_t row) {
    const fc_lora_terms* t = &j->terms;
    const int64_t count = fc_min(j->rows, t->x->d_out - row);
    int bad = 0;
    fc_lora_pack_b(t, row, count, j->rows, s->b);
    for (int64_t column = 0; column < t->x->d_in; column += FC_LORA_TILE) {
        const int64_t width = fc_min(FC_LORA_TILE, t->x->d_in - column);
        for (int64_t c = 0; c < t->chains; c++)
            fc_lora_pack_a(t, c, column, width, s->a + t->chain[c].start * FC_LORA_TILE);
        for (int64_t r = 0; r < count; r += FC_LORA_ROWS)
            bad |= order_strip(j, s, row, r, fc_min(FC_LORA_ROWS, count - r), column, width);
    }
    return bad;
}

static void work(void* context, int worker) {
    job* j = context;
    space s = {0};
    int bad = 0;
    const int ready = reserve(&s, j);
    (void)worker;
    for (int64_t i = 0; ready && i < j->terms.x->clients; i++) s.row[i] = s.products + i * TILE;
    /* a worker without memory takes no block: the others do them all */
    for (int64_t row; ready && (row = j->rows * fc_next(&j->next)) < j->terms.x->d_out;) bad |= order_block(j, &s, row);
    if (bad) __atomic_store_n(&j->bad, 1, __ATOMIC_RELAXED);
    release(&s);
}

static int order(const fc_factors* x, const double* coefficients, fc_statistic statistic, int64_t f, double divisor,
                 void* out, fc_dtype out_dtype, fc_isa isa, int threads) {
    const fc_kernels* kernels = fc_kernels_for(isa);
    if (!kernels) return FC_NO_ISA;
    job j = {.terms = {.x = x, .coefficients = coefficients, .kernels = kernels},
             .statistic = statistic,
             .f = f,
             .divisor = divisor,
             .out = out,
             .out_dtype = out_dtype};
    const fc_mode mode = fc_enter_ieee();
    int status = FC_NO_MEMORY;
    if (fc_lora_arrange(&j.terms, 1)) {
        j.rows = fc_lora_rows(&j.terms, threads);
        const int64_t items = fc_ceil(x->d_out, j.rows);
        fc_parallel((int)fc_min(threads, items), work, &j);
        status = j.next < items ? FC_NO_MEMORY : j.bad ? FC_NOT_FINITE : FC_OK;
    }
    fc_lora_release(&j.terms);
    fc_leave_ieee(mode);
    return status;
}

int fc_lora_delta_median(const fc_factors* x, const double* coefficients, void* out, fc_dtype out_dtype, fc_isa isa,
                         int threads) {
    return order(x, coefficients, FC_MEDIAN, 0, NAN, out, out_dtype, isa, threads);
}

int fc_lora_delta_trimmed_mean(const fc_factors* x, const double* coefficients, int64_t f, void* out,
                               fc_dtype out_dtype, fc_isa isa, int threads) {
    return order(x, coefficients, FC_TRIMMED_MEAN, f, (double)(x->clients - 2 * f), out, out_dtype, isa, threads);
}
