/* Portable draws from a table: comparisons without a branch. */
#include "impl.h"

enum { TOP = 63 };

/* a < b without a comparison that a compiler could turn into a branch (Warren, Hacker's Delight, 2-12). */
static uint64_t below(uint64_t a, uint64_t b) { return ((~a & b) | (~(a ^ b) & (a - b))) >> TOP; }
static uint64_t equal(uint64_t a, uint64_t b) { return 1 ^ ((a - b) | (b - a)) >> TOP; }

void fc_discrete_gaussian_ref(const fc_gaussian_table* table, const uint64_t* arranged, const uint64_t* words,
                              int64_t* out) {
    (void)arranged;
    for (int i = 0; i < FC_GAUSSIAN_CHUNK; i++) {
        const uint64_t w = words[table->draws * FC_GAUSSIAN_CHUNK + i], low = w << FC_GAUSSIAN_DRAWS;
        uint64_t sum = 0, tied = 0, times = 0, count = 0; /* of the last draw that ties: its word, its stride */
        for (int64_t draw = 0; draw < table->draws; draw++) {
            const uint64_t v = words[draw * FC_GAUSSIAN_CHUNK + i], minus = 0 - (w << draw >> TOP);
            const uint64_t by = ((uint64_t)table->strides[draw] ^ minus) - minus;
            uint64_t smaller = 0, tie = 0;
            for (int64_t k = 0; k < table->entries; k++) {
                smaller += below(v, table->first[k]);
                tie |= equal(v, table->first[k]);
            }
            sum += smaller * by;
            tied ^= (tied ^ v) & (0 - tie);
            times ^= (times ^ by) & (0 - tie);
        }
        for (int64_t k = 0; k < table->entries; k++)
            count += equal(tied, table->first[k]) & below(low, table->second[k]);
        out[i] = (int64_t)(sum + count * times);
    }
}
