/* Portable draws from a table: the carry of a 128-bit comparison, without a branch. */
#include "impl.h"

/* a < b without a comparison that a compiler could turn into a branch (Warren, Hacker's Delight, 2-12). */
static uint64_t below(uint64_t a, uint64_t b) { return ((~a & b) | (~(a ^ b) & (a - b))) >> 63; }

void fc_discrete_gaussian_ref(const fc_gaussian_table* table, const uint64_t* v, const uint64_t* w, int64_t stride,
                              int64_t* sum) {
    for (int i = 0; i < FC_GAUSSIAN_CHUNK; i++) {
        const uint64_t low = w[i] << 1, minus = 0 - (w[i] >> 63);
        uint64_t count = 0;
        for (int64_t k = 0; k < table->entries; k++)
            count += below(v[i], table->first[k] + below(low, table->second[k]));
        sum[i] += stride * (int64_t)((count ^ minus) - minus);
    }
}
