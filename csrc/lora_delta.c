/* Terms of LoRA factors: which chain holds which, and both factors packed for the tile of products. */
#include "lora_delta.h"

#include <stdlib.h>

enum {
    PACKED = 128 << 10, /* floats of packed B that stay in the second-level cache beside the panels of A */
    MOST_ROWS = 256,
    LEAST_ROWS = 64, /* fewer would pack A too often */
    SHARES = 3,      /* items a thread, at least, where there are rows enough */
};

static double coefficient_of(const fc_lora_terms* t, int64_t i) { return t->coefficients ? t->coefficients[i] : 1.0; }

int fc_lora_arrange(fc_lora_terms* t, int apart) {
    const fc_factors* x = t->x;
    int64_t terms = 0;
    for (int64_t i = 0; i < x->clients; i++) terms += x->ranks[i];
    const int64_t most = terms / FC_LORA_CHAIN + x->clients + 1;
    t->run = malloc((size_t)(most + x->clients) * sizeof *t->run);
    t->chain = malloc((size_t)most * sizeof *t->chain);
    t->client_chain = malloc((size_t)(x->clients + 1) * sizeof *t->client_chain);
    if (!t->run || !t->chain || !t->client_chain) return 0;
    int64_t runs = 0;
    for (int64_t i = 0; i < x->clients; i++) {
        t->client_chain[i] = t->chains;
        if (coefficient_of(t, i) == 0.0) continue;
        for (int64_t from = 0; from < x->ranks[i];) {
            fc_lora_chain* last = t->chain + t->chains - 1;
            if (!t->chains || last->length == FC_LORA_CHAIN || (apart && !from)) {
                last = t->chain + t->chains++;
                *last = (fc_lora_chain){t->terms, 0, runs, 0};
            }
            const int64_t count = fc_min(x->ranks[i] - from, FC_LORA_CHAIN - last->length);
            t->run[runs++] = (fc_lora_run){i, from, count, last->length};
            last->length += count;
            last->runs++;
            t->terms += count;
            t->longest = last->length > t->longest ? last->length : t->longest;
            from += count;
        }
    }
    t->client_chain[x->clients] = t->chains;
    return 1;
}

void fc_lora_release(fc_lora_terms* t) {
    free(t->run);
    free(t->chain);
    free(t->client_chain);
}

int64_t fc_lora_rows(const fc_lora_terms* t, int threads) {
    int64_t rows = MOST_ROWS;
    while (rows > LEAST_ROWS && (rows * t->terms > PACKED || t->x->d_out < rows * threads * SHARES)) rows /= 2;
    return rows;
}

void fc_lora_pack_b(const fc_lora_terms* t, int64_t row, int64_t count, int64_t rows, float* packed) {
    for (int64_t c = 0; c < t->chains; c++) {
        const fc_lora_chain* chain = t->chain + c;
        float* const of_chain = packed + chain->start * rows;
        if (count % FC_LORA_ROWS) {
            const int64_t strip = FC_LORA_ROWS * chain->length;
            memset(of_chain + count / FC_LORA_ROWS * strip, 0, (size_t)strip * sizeof *packed);
        }
        for (const fc_lora_run* run = t->run + chain->first_run; run < t->run + chain->first_run + chain->runs; run++) {
            const fc_dtype dtype = (fc_dtype)t->x->b_dtypes[run->client];
            const double by = coefficient_of(t, run->client);
            const char* from = t->x->b[run->client];
            for (int64_t r = 0; r < count; r++) {
                float values[FC_LORA_CHAIN];
                float* to = of_chain + (r / FC_LORA_ROWS * chain->length + run->at) * FC_LORA_ROWS + r % FC_LORA_ROWS;
                t->kernels->to_f32[dtype](
                    from + ((row + r) * t->x->ranks[run->client] + run->from) * fc_itemsize(dtype), run->count, values);
                for (int64_t k = 0; k < run->count; k++) to[k * FC_LORA_ROWS] = (float)(by * (double)values[k]);
            }
        }
    }
}

void fc_lora_pack_a(const fc_lora_terms* t, int64_t index, int64_t column, int64_t width, float* packed) {
    const fc_lora_chain* chain = t->chain + index;
    for (const fc_lora_run* run = t->run + chain->first_run; run < t->run + chain->first_run + chain->runs; run++) {
        const fc_dtype dtype = (fc_dtype)t->x->a_dtypes[run->client];
        const char* from = t->x->a[run->client];
        for (int64_t k = 0; k < run->count; k++) {
            const char* term = from + ((run->from + k) * t->x->d_in + column) * fc_itemsize(dtype);
            for (int64_t c = 0; c < width; c += FC_LORA_COLUMNS) {
                const int64_t here = fc_min(FC_LORA_COLUMNS, width - c);
                float* to = packed + c * chain->length + (run->at + k) * FC_LORA_COLUMNS;
                t->kernels->to_f32[dtype](term + c * fc_itemsize(dtype), here, to);
                memset(to + here, 0, (size_t)(FC_LORA_COLUMNS - here) * sizeof *to);
            }
        }
    }
}

void fc_lora_multiply(const fc_lora_terms* t, int64_t chain, const float* b, const float* a, int64_t width, double* acc,
                      int first) {
    const int64_t length = t->chain[chain].length;
    for (int64_t c = 0; c < width; c += FC_LORA_COLUMNS)
        t->kernels->lora_tile(b, a + c * length, length, acc + c, FC_LORA_TILE, first);
}
