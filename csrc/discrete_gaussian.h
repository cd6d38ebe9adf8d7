/* What the kernels of discrete_gaussian share: sizes, the table of an ISA, and ties: what is noted of them and what
 * comes of it, without a branch or an address that depends on them. */
#ifndef FC_DISCRETE_GAUSSIAN_H
#define FC_DISCRETE_GAUSSIAN_H

#include "impl.h"

enum {
    FC_GAUSSIAN_HEADS = 126,  /* entries that do not begin with 0, at most: fedcore/gaussian_table.py; the next too */
    FC_GAUSSIAN_DRAWS = 9,    /* of a sample at most */
    FC_GAUSSIAN_BLOCK = 2048, /* samples that share words for ties */
    FC_GAUSSIAN_TIES = 8,     /* ties that these words are for */
    FC_GAUSSIAN_CHUNK = 512,  /* samples that are made at a time: their words stay in the first-level cache */
    FC_GAUSSIAN_GROUP = 64,   /* samples whose ties are noted draw by draw */
    FC_GAUSSIAN_ARRANGED = 176,
};

/* Ties of a block: records as below, 0 where there is none yet; and how many there are, or that
 * none fits any more. */
typedef struct {
    uint32_t records[16];
    uint32_t count;
} fc_gaussian_ties;
struct fc_gaussian_kernels {
    /* Makes of the table what `draw` reads, FC_GAUSSIAN_ARRANGED words; NULL: it reads the table itself. */
    void (*arrange)(const fc_gaussian_table* table, uint32_t* arranged);
    /* out[k] = the sample of word k of each draw, words[draw * FC_GAUSSIAN_CHUNK + k], k < FC_GAUSSIAN_CHUNK, as far as
     * first words tell: sample `at` + k of a block. Ties go behind those that are there, by groups, draws and samples,
     * so that every ISA notes the same ones where there are more than fit. */
    void (*draw)(const fc_gaussian_table* table, const uint32_t* arranged, const uint32_t* words, int64_t at,
                 fc_gaussian_ties* ties, int64_t* out);
    /* out[k] += what the ties of a block add to sample k of it; tie t has words 2t and 2t + 1, the high one first. */
    void (*settle)(const fc_gaussian_table* table, const fc_gaussian_ties* ties, const uint64_t* words, int64_t* out);
};

/* A record: the draw, the sample in its block, the sign, the number of entries above the draw's word, and that there is
 * one. Ties come in the order of samples, then draws. */
enum { FC_TIE_SAMPLE = 4, FC_TIE_SIGN = 15, FC_TIE_COUNT = 16, FC_TIE_HELD = 31 };
_Static_assert((int)FC_GAUSSIAN_DRAWS <= 1 << (int)FC_TIE_SAMPLE, "a draw's bits");
_Static_assert((int)FC_GAUSSIAN_BLOCK == 1 << (FC_TIE_SIGN - FC_TIE_SAMPLE), "a sample's bits");

/* A record without sign and count. */
static inline uint32_t fc_tie_at(int64_t sample, int64_t draw) {
    return 1u << FC_TIE_HELD | (uint32_t)sample << FC_TIE_SAMPLE | (uint32_t)draw;
}

/* A search by halves for how many first words a draw's word is below, whose levels lie in registers of `lanes` words:
 * level l of n halves the counts from j * 2h to (j + 1) * 2h - 1, h = 2^(n - 1 - l), at entry j * 2h + h - 1, whose
 * first word is at j of the level. 0, which no word is below, from the first entry of 0 on. */
enum { FC_GAUSSIAN_LEVELS = 7 };
_Static_assert((int)FC_GAUSSIAN_HEADS < (1 << (int)FC_GAUSSIAN_LEVELS) - 1, "counts up to HEADS, and an entry of 0");

static inline int fc_level_at(int level, int lanes) {
    int at = 0;
    for (int l = 0; l < level; l++) at += 1 << l > lanes ? 1 << l : lanes;
    return at;
}

/* Public, as the table is. */
static inline int fc_levels_of(const fc_gaussian_table* table) {
    int64_t heads = 0;
    while (table->first[heads]) heads++;
    return heads < 31 ? 5 : heads < 63 ? 6 : FC_GAUSSIAN_LEVELS;
}

static inline void fc_arrange(const fc_gaussian_table* table, int lanes, uint32_t* arranged) {
    const int levels = fc_levels_of(table);
    memset(arranged, 0, FC_GAUSSIAN_ARRANGED * sizeof *arranged);
    for (int level = 0; level < levels; level++)
        for (int64_t j = 0, half = 1 << (levels - 1 - level); j < 1 << level; j++) {
            const int64_t k = j * 2 * half + half - 1;
            if (k < table->entries) arranged[fc_level_at(level, lanes) + j] = table->first[k];
        }
}

/* a < b and a == b without comparisons that a compiler could turn into branches (Warren, Hacker's Delight, 2-12). */
static inline uint64_t fc_below(uint64_t a, uint64_t b) { return ((~a & b) | (~(a ^ b) & (a - b))) >> 63; }
static inline uint64_t fc_equal(uint64_t a, uint64_t b) { return 1 ^ ((a - b) | (b - a)) >> 63; }

/* `record` where `tie` is 1, behind those that are there. */
static inline void fc_note(fc_gaussian_ties* ties, uint32_t record, uint32_t tie) {
    const uint32_t held = ties->count;
    for (uint32_t t = 0; t < FC_GAUSSIAN_TIES; t++) {
        const uint32_t other = ((held - t) | (t - held)) >> 31; /* as fc_equal */
        ties->records[t] |= record & (0 - (tie & ~other));
    }
    ties->count += tie;
}

/* What a record says: its sample in the block, and what an entry above its draw counts for. */
static inline void fc_tie_of(const fc_gaussian_table* table, uint32_t record, uint64_t* sample, uint64_t* by) {
    const uint64_t draw = record & ((1u << FC_TIE_SAMPLE) - 1), minus = 0 - (uint64_t)(record >> FC_TIE_SIGN & 1);
    uint64_t stride = 0;
    for (int64_t i = 0; i < table->draws; i++)
        stride |= (0 - fc_equal(draw, (uint64_t)i)) & (uint64_t)table->strides[i];
    *sample = record >> FC_TIE_SAMPLE & (FC_GAUSSIAN_BLOCK - 1);
    *by = ((stride ^ minus) - minus) & (0 - (uint64_t)(record >> FC_TIE_HELD));
}

static inline void fc_settle(const fc_gaussian_table* table, const fc_gaussian_ties* ties, const uint64_t* words,
                             int64_t* out) {
    uint64_t sample[FC_GAUSSIAN_TIES], by[FC_GAUSSIAN_TIES], more[FC_GAUSSIAN_TIES] = {0};
    for (int t = 0; t < FC_GAUSSIAN_TIES; t++) fc_tie_of(table, ties->records[t], sample + t, by + t);
    for (int64_t k = 0, same = 0; k < table->entries; k++) {
        const uint64_t high = table->rest[2 * k], low = table->rest[2 * k + 1];
        if (table->first[k] != table->first[same]) same = k; /* the first entry of this first word */
        for (int t = 0; t < FC_GAUSSIAN_TIES; t++) {
            const uint64_t count = ties->records[t] >> FC_TIE_COUNT & 127, h = words[2 * t], l = words[2 * t + 1];
            more[t] += fc_equal(count, (uint64_t)same) & (fc_below(h, high) | (fc_equal(h, high) & fc_below(l, low)));
        }
    }
    for (uint64_t i = 0; i < FC_GAUSSIAN_BLOCK; i++)
        for (int t = 0; t < FC_GAUSSIAN_TIES; t++) out[i] += (int64_t)((0 - fc_equal(i, sample[t])) & more[t] * by[t]);
}

#endif
