/* Portable draws from a table: comparisons without a branch. */
#include "discrete_gaussian.h"

static void draw(const fc_gaussian_table* table, const uint32_t* arranged, const uint32_t* words, int64_t at,
                 fc_gaussian_ties* ties, int64_t* out) {
    (void)arranged;
    memset(out, 0, FC_GAUSSIAN_CHUNK * sizeof *out);
    for (int64_t group = 0; group < FC_GAUSSIAN_CHUNK; group += FC_GAUSSIAN_GROUP)
        for (int64_t draw = 0; draw < table->draws; draw++)
            for (int64_t i = group; i < group + FC_GAUSSIAN_GROUP; i++) {
                const uint32_t word = words[draw * FC_GAUSSIAN_CHUNK + i], v = word & ~1u, sign = word & 1;
                const uint64_t minus = 0 - (uint64_t)sign;
                uint64_t count = 0, tie = 0;
                for (int64_t k = 0; k < table->entries; k++) {
                    count += fc_below(v, table->first[k]);
                    tie |= fc_equal(v, table->first[k]);
                }
                out[i] += (int64_t)(count * (((uint64_t)table->strides[draw] ^ minus) - minus));
                fc_note(ties, fc_tie_at(at + i, draw) | sign << FC_TIE_SIGN | (uint32_t)count << FC_TIE_COUNT,
                        (uint32_t)tie);
            }
}

const fc_gaussian_kernels fc_discrete_gaussian_ref = {NULL, draw, fc_settle};
