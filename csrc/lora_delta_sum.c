/* lora_delta_sum: a block of rows is one item of work. Its part of B, scaled, is packed once; A is packed a tile of
 * columns and a chain at a time, in the second-level cache, for all rows of the block. Sums of chains are added in
 * fp64, so what is held beside the output is a few tiles a thread. */
#include <stdlib.h>

#include "lora_delta.h"

enum { STREAM_FROM = 4 << 20 }; /* bytes of output from which writes bypass the cache */

typedef struct {
    fc_lora_terms terms;
    const char* base;
    fc_dtype base_dtype;
    char* out;
    fc_dtype out_dtype;
    int64_t rows; /* of a block */
    int stream;
    int64_t next;
    int bad;
} job;

typedef struct {
    float *b, *a;
    double* acc; /* strips of (FC_LORA_ROWS, FC_LORA_TILE): all of the block's if there are several chains, else one */
} space;

/* Adds base to `count` rows of sums, rounds them and writes them. */
static int put_strip(const job* j, double* acc, int64_t row, int64_t count, int64_t column, int64_t width) {
    const fc_kernels* kernels = j->terms.kernels;
    const double one = 1.0;
    int bad = 0;
    for (int64_t r = 0; r < count; r++) {
        const int64_t at = (row + r) * j->terms.x->d_in + column;
        if (j->base) {
            float values[FC_LORA_TILE];
            const void* rows = values;
            kernels->to_f32[j->base_dtype](j->base + at * fc_itemsize(j->base_dtype), width, values);
            kernels->accumulate[FC_F32](&rows, &one, 1, width, acc + r * FC_LORA_TILE, 0);
        }
        bad |= kernels->finish[FC_F32][j->out_dtype](acc + r * FC_LORA_TILE, width, NAN,
                                                     j->out + at * fc_itemsize(j->out_dtype), j->stream);
    }
    return bad;
}

static int sum_block(const job* j, const space* s, int64_t row) {
    const fc_lora_terms* t = &j->terms;
    const int64_t count = fc_min(j->rows, t->x->d_out - row), strip = FC_LORA_ROWS * FC_LORA_TILE;
    int bad = 0;
    fc_lora_pack_b(t, row, count, j->rows, s->b);
    for (int64_t column = 0; column < t->x->d_in; column += FC_LORA_TILE) {
        const int64_t width = fc_min(FC_LORA_TILE, t->x->d_in - column);
        for (int64_t c = 0; c < t->chains || !c; c++) {
            if (t->chains) fc_lora_pack_a(t, c, column, width, s->a);
            for (int64_t r = 0; r < count; r += FC_LORA_ROWS) {
                double* acc = s->acc + (t->chains > 1 ? r * FC_LORA_TILE : 0);
                if (t->chains)
                    fc_lora_multiply(t, c, s->b + t->chain[c].start * j->rows + r * t->chain[c].length, s->a, width,
                                     acc, c == 0);
                else memset(acc, 0, (size_t)strip * sizeof *acc); /* no terms at all */
                if (c + 1 >= t->chains)
                    bad |= put_strip(j, acc, row + r, fc_min(FC_LORA_ROWS, count - r), column, width);
            }
        }
    }
    return bad;
}

static void work(void* context, int worker) {
    job* j = context;
    const fc_lora_terms* t = &j->terms;
    const int64_t strips = t->chains > 1 ? j->rows / FC_LORA_ROWS : 1;
    space s = {fc_alloc((size_t)(j->rows * t->terms) * sizeof *s.b),
               fc_alloc((size_t)(FC_LORA_TILE * t->longest) * sizeof *s.a),
               fc_alloc((size_t)(strips * FC_LORA_ROWS * FC_LORA_TILE) * sizeof *s.acc)};
    const int ready = s.b && s.a && s.acc;
    int bad = 0;
    (void)worker;
    /* a worker without memory takes no block: the others do them all */
    for (int64_t row; ready && (row = j->rows * fc_next(&j->next)) < t->x->d_out;) bad |= sum_block(j, &s, row);
    if (bad) __atomic_store_n(&j->bad, 1, __ATOMIC_RELAXED);
    free(s.b);
    free(s.a);
    free(s.acc);
}

int fc_lora_delta_sum(const fc_factors* x, const double* coefficients, const void* base, fc_dtype base_dtype, void* out,
                      fc_dtype out_dtype, fc_isa isa, int threads) {
    const fc_kernels* kernels = fc_kernels_for(isa);
    if (!kernels) return FC_NO_ISA;
    job j = {.terms = {.x = x, .coefficients = coefficients, .kernels = kernels},
             .base = base,
             .base_dtype = base_dtype,
             .out = out,
             .out_dtype = out_dtype,
             .stream = x->d_out * x->d_in * fc_itemsize(out_dtype) >= STREAM_FROM};
    const fc_mode mode = fc_enter_ieee();
    int status = FC_NO_MEMORY;
    if (fc_lora_arrange(&j.terms, 0)) {
        j.rows = fc_lora_rows(&j.terms, threads);
        const int64_t items = fc_ceil(x->d_out, j.rows);
        fc_parallel((int)fc_min(threads, items), work, &j);
        status = j.next < items ? FC_NO_MEMORY : j.bad ? FC_NOT_FINITE : FC_OK;
    }
    fc_lora_release(&j.terms);
    fc_leave_ieee(mode);
    return status;
}
