/* lora_blocks and lora_gram: a chunk of rows of B or of columns of A is one item of work. Its terms are widened to fp64
 * and packed into panels, BLOCK elements at a time, for all products on and below the diagonal; the sums of a chunk are
 * folded in order, so that the bits depend on neither threads nor luck. What is held is two R x R matrices, one more a
 * thread, and the panels. */
#include <stdlib.h>

#include "impl.h"

enum { BLOCK = 256 }; /* elements that are packed at a time: a divisor of FC_LORA_CHUNK */

typedef struct {
    const fc_factors* x;
    const fc_kernels* kernels;
    double* gram[2]; /* of B, of A: (terms, terms) */
    int64_t terms, panels, padded;
    int64_t chunks[2], next;
    fc_turn* turn;
} job;

static void widen(const fc_kernels* kernels, const void* from, fc_dtype dtype, int64_t count, double* to) {
    float narrow[BLOCK];
    if (dtype == FC_F64) {
        memcpy(to, from, (size_t)count * sizeof *to);
    } else {
        kernels->to_f32[dtype](from, count, narrow);
        for (int64_t k = 0; k < count; k++) to[k] = (double)narrow[k];
    }
}

/* `count` values of terms that follow each other, at one element, to their panels. */
static void spread(const double* values, int64_t count, int64_t term, int64_t element, double* panel) {
    while (count > 0) {
        const int64_t lane = term % FC_LORA_PANEL, here = fc_min(FC_LORA_PANEL - lane, count);
        double* to = panel + (term / FC_LORA_PANEL * BLOCK + element) * FC_LORA_PANEL + lane;
        if (here == FC_LORA_PANEL) memcpy(to, values, FC_LORA_PANEL * sizeof *to);
        else
            for (int64_t v = 0; v < here; v++) to[v] = values[v];
        values += here;
        term += here;
        count -= here;
    }
}

/* Elements start to start + length of all columns of B: panel[term / 8][element][term % 8]. Rows of one client's B
 * follow each other, so that as many are widened at a time as fit. */
static void pack_b(const job* j, int64_t start, int64_t length, double* panel) {
    double values[BLOCK];
    for (int64_t i = 0, first = 0; i < j->x->clients; first += j->x->ranks[i++]) {
        const fc_dtype dtype = (fc_dtype)j->x->b_dtypes[i];
        const int64_t rank = j->x->ranks[i], size = fc_itemsize(dtype);
        const char* from = (const char*)j->x->b[i] + start * rank * size;
        for (int64_t k = 0; rank <= BLOCK / 2 && rank && k < length;) {
            const int64_t rows = fc_min(BLOCK / rank, length - k);
            widen(j->kernels, from + k * rank * size, dtype, rows * rank, values);
            for (int64_t r = 0; r < rows; r++, k++) spread(values + r * rank, rank, first, k, panel);
        }
        for (int64_t k = 0; rank > BLOCK / 2 && k < length; k++)
            for (int64_t r = 0; r < rank; r += BLOCK) {
                const int64_t count = fc_min(BLOCK, rank - r);
                widen(j->kernels, from + (k * rank + r) * size, dtype, count, values);
                spread(values, count, first + r, k, panel);
            }
    }
}

static void pack_a(const job* j, int64_t start, int64_t length, double* panel) {
    double values[BLOCK];
    int64_t term = 0;
    for (int64_t i = 0; i < j->x->clients; i++) {
        const fc_dtype dtype = (fc_dtype)j->x->a_dtypes[i];
        for (int64_t r = 0; r < j->x->ranks[i]; r++, term++) {
            double* to = panel + term / FC_LORA_PANEL * BLOCK * FC_LORA_PANEL + term % FC_LORA_PANEL;
            widen(j->kernels, (const char*)j->x->a[i] + (r * j->x->d_in + start) * fc_itemsize(dtype), dtype, length,
                  values);
            for (int64_t k = 0; k < length; k++) to[k * FC_LORA_PANEL] = values[k];
        }
    }
}

static void multiply(const job* j, const double* panel, int64_t length, double* sum, int first) {
    const int64_t panel_stride = BLOCK * FC_LORA_PANEL;
    for (int64_t c = 0; c < j->panels; c += FC_LORA_WIDE)
        for (int64_t r = c; r < j->panels; r++)
            j->kernels->lora_gram_tile(panel + r * panel_stride, panel + c * panel_stride, panel_stride,
                                       (int)fc_min(FC_LORA_WIDE, r - c + 1), length,
                                       sum + (r * j->padded + c) * FC_LORA_PANEL, j->padded, first);
}

static void work(void* context, int worker) {
    job* j = context;
    double* panel = fc_alloc((size_t)(j->panels * FC_LORA_PANEL * BLOCK) * sizeof *panel);
    double* sum = fc_alloc((size_t)(j->padded * j->padded) * sizeof *sum);
    (void)worker;
    /* a worker without memory takes no chunk: the others do them all */
    for (int64_t item; panel && sum && (item = fc_next(&j->next)) < j->chunks[0] + j->chunks[1];) {
        const int side = item >= j->chunks[0];
        const int64_t begin = (item - (side ? j->chunks[0] : 0)) * FC_LORA_CHUNK;
        const int64_t end = fc_min(begin + FC_LORA_CHUNK, side ? j->x->d_in : j->x->d_out);
        if (j->terms % FC_LORA_PANEL) /* terms after the last one */
            memset(panel + (j->panels - 1) * FC_LORA_PANEL * BLOCK, 0, FC_LORA_PANEL * BLOCK * sizeof *panel);
        for (int64_t start = begin; start < end; start += BLOCK) {
            const int64_t length = fc_min(BLOCK, end - start);
            (side ? pack_a : pack_b)(j, start, length, panel);
            multiply(j, panel, length, sum, start == begin);
        }
        fc_turn_wait(j->turn, item);
        for (int64_t p = 0; p < j->terms; p++)
            for (int64_t q = 0; q <= p; q++) j->gram[side][p * j->terms + q] += sum[p * j->padded + q];
        fc_turn_done(j->turn);
    }
    free(panel);
    free(sum);
}

static int64_t terms_of(const fc_factors* x) {
    int64_t terms = 0;
    for (int64_t i = 0; i < x->clients; i++) terms += x->ranks[i];
    return terms;
}

/* The lower halves. */
static int blocks(const fc_factors* x, double* gram_b, double* gram_a, const fc_kernels* kernels, int threads) {
    const int64_t terms = terms_of(x), panels = fc_ceil(terms, FC_LORA_PANEL);
    job j = {x,
             kernels,
             {gram_b, gram_a},
             terms,
             panels,
             panels * FC_LORA_PANEL,
             {fc_ceil(x->d_out, FC_LORA_CHUNK), fc_ceil(x->d_in, FC_LORA_CHUNK)},
             0,
             fc_turn_new()};
    const int64_t items = j.chunks[0] + j.chunks[1];
    if (!j.turn) return FC_NO_MEMORY;
    memset(gram_b, 0, (size_t)(terms * terms) * sizeof *gram_b);
    memset(gram_a, 0, (size_t)(terms * terms) * sizeof *gram_a);
    if (terms) fc_parallel((int)fc_min(threads, items), work, &j);
    fc_turn_free(j.turn);
    return terms && j.next < items ? FC_NO_MEMORY : FC_OK;
}

static void mirror(double* matrix, int64_t n) {
    for (int64_t p = 0; p < n; p++)
        for (int64_t q = 0; q < p; q++) matrix[q * n + p] = matrix[p * n + q];
}

int fc_lora_blocks(const fc_factors* x, double* gram_b, double* gram_a, fc_isa isa, int threads) {
    const fc_kernels* kernels = fc_kernels_for(isa);
    if (!kernels) return FC_NO_ISA;
    const fc_mode mode = fc_enter_ieee();
    const int status = blocks(x, gram_b, gram_a, kernels, threads);
    mirror(gram_b, terms_of(x));
    mirror(gram_a, terms_of(x));
    fc_leave_ieee(mode);
    return status;
}

/* The inner product of two clients' updates without their scales, i >= k: a product and an addition a pair of terms,
 * row by row. `first`: the clients' first terms. Above the diagonal of a client's own block its mirror is read. */
static double contract(const fc_factors* x, const double* gram_b, const double* gram_a, int64_t terms, int64_t i,
                       int64_t k, const int64_t first[2]) {
    double total = 0.0;
    for (int64_t p = first[0]; p < first[0] + x->ranks[i]; p++)
        for (int64_t q = first[1]; q < first[1] + x->ranks[k]; q++) {
            const int64_t at = p >= q ? p * terms + q : q * terms + p;
            total += gram_b[at] * gram_a[at];
        }
    return total;
}

int fc_lora_gram(const fc_factors* x, const double* scales, double* out, fc_isa isa, int threads) {
    const fc_kernels* kernels = fc_kernels_for(isa);
    if (!kernels) return FC_NO_ISA;
    const int64_t terms = terms_of(x), n = x->clients;
    double *gram_b = fc_alloc((size_t)(terms * terms) * sizeof *gram_b),
           *gram_a = fc_alloc((size_t)(terms * terms) * sizeof *gram_a);
    const fc_mode mode = fc_enter_ieee();
    const int status = gram_b && gram_a ? blocks(x, gram_b, gram_a, kernels, threads) : FC_NO_MEMORY;
    int64_t first[2] = {0, 0};
    for (int64_t i = 0; status == FC_OK && i < n; first[0] += x->ranks[i++]) {
        first[1] = 0;
        for (int64_t k = 0; k <= i; first[1] += x->ranks[k++]) {
            out[i * n + k] += scales[i] * scales[k] * contract(x, gram_b, gram_a, terms, i, k, first);
            out[k * n + i] = out[i * n + k];
        }
    }
    fc_leave_ieee(mode);
    free(gram_b);
    free(gram_a);
    return status;
}
