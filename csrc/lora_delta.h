/* What the ops on dense products of LoRA factors share: the terms of all clients as chains, and their packing. */
#ifndef FEDCORE_LORA_DELTA_H
#define FEDCORE_LORA_DELTA_H
#include "impl.h"

enum { FC_LORA_TILE = 2 * FC_LORA_COLUMNS }; /* columns that are worked on at a time: whole groups of any rounding */

/* `count` rank-one terms of one client, the first its `from`-th, at place `at` of a chain. */
typedef struct {
    int64_t client, from, count, at;
} fc_lora_run;

/* Terms that one fp32 sum takes, in order: FC_LORA_CHAIN at most. */
typedef struct {
    int64_t start, length; /* of all terms */
    int64_t first_run, runs;
} fc_lora_chain;

typedef struct {
    const fc_factors* x;
    const double* coefficients; /* NULL: 1 for all */
    const fc_kernels* kernels;
    fc_lora_run* run;
    fc_lora_chain* chain;
    int64_t chains, terms, longest;
    int64_t* client_chain; /* chains before each client's first, where every client has chains of its own */
} fc_lora_terms;

/* Arranges the terms of all clients whose coefficient is not 0, in order: chains that go from one client to the next,
 * or, `apart`, chains of each client alone. 0 without memory. */
int fc_lora_arrange(fc_lora_terms* t, int apart);
void fc_lora_release(fc_lora_terms* t);

/* Rows to work on at a time, and how many floats they take packed. */
int64_t fc_lora_rows(const fc_lora_terms* t, int threads);
/* Rows row to row + count of coefficient * B in fp32, rounded once from fp64: [chain][strip of FC_LORA_ROWS][term][row
 * of the strip], zeros below the last. `rows` is fc_lora_rows. */
void fc_lora_pack_b(const fc_lora_terms* t, int64_t row, int64_t count, int64_t rows, float* packed);
/* Columns column to column + width <= FC_LORA_TILE of A for one chain: [panel of FC_LORA_COLUMNS][term][column of the
 * panel], zeros after the last. */
void fc_lora_pack_a(const fc_lora_terms* t, int64_t chain, int64_t column, int64_t width, float* packed);
/* acc (FC_LORA_ROWS, FC_LORA_TILE) (+)= the products of one chain. */
void fc_lora_multiply(const fc_lora_terms* t, int64_t chain, const float* b, const float* a, int64_t width, double* acc,
                      int first);
#endif
