/* discrete_gaussian: blocks of samples with absolute numbers, so that a block's words are whole blocks of its streams.
 */
#include <stdlib.h>

#include "discrete_gaussian.h"

enum { CHUNK = FC_GAUSSIAN_CHUNK, BLOCK = FC_GAUSSIAN_BLOCK };

typedef struct {
    const fc_gaussian_table* table;
    const fc_stream_kernels* stream;
    const fc_kernels* kernels;
    uint32_t schedule[FC_SCHEDULE];
    int64_t counter, size, next;
    int64_t* out;
} job;

/* What a thread works in. */
typedef struct {
    _Alignas(FC_ALIGN) uint32_t words[FC_GAUSSIAN_DRAWS * CHUNK];
    _Alignas(FC_ALIGN) uint32_t arranged[FC_GAUSSIAN_ARRANGED];
    uint64_t rest[2 * FC_GAUSSIAN_TIES];
    fc_gaussian_ties ties;
    int64_t samples[BLOCK];
} space;

/* Item `number` of `bytes` of a draw's stream, or of the one for ties, with the nonce of fedcore/gaussian_table.py:
 * never across a change of it, since an item is whole blocks of the cipher whose number divides 2^32. */
static void fill(const job* j, int64_t draw, int tie, int64_t number, int64_t bytes, void* out) {
    const int64_t block = number * (bytes / j->stream->block);
    const uint64_t upper = (uint64_t)(block >> 32);
    const uint8_t start[4] = {(uint8_t)draw, (uint8_t)tie, 'd', 'g'};
    uint32_t nonce[3];
    memcpy(nonce, start, 4);
    memcpy(nonce + 1, &upper, 8);
    fc_stream_fill(j->stream, j->schedule, nonce, (uint32_t)block, bytes, out);
}

/* Ties in their order: each goes where as many are before it. In a frame of its own, which the end of `work`
 * wipes. */
__attribute__((noinline)) static void order_ties(fc_gaussian_ties* ties) {
    uint32_t ordered[FC_GAUSSIAN_TIES] = {0};
    uint64_t keys[FC_GAUSSIAN_TIES];
    for (uint32_t t = 0; t < FC_GAUSSIAN_TIES; t++) {
        const uint32_t record = ties->records[t], none = (record >> FC_TIE_HELD ^ 1) << FC_TIE_SIGN;
        keys[t] = (record & ((1u << FC_TIE_SIGN) - 1)) | none | (t & (0 - (none >> FC_TIE_SIGN)));
    }
    for (int t = 0; t < FC_GAUSSIAN_TIES; t++) {
        uint64_t rank = 0;
        for (int u = 0; u < FC_GAUSSIAN_TIES; u++) rank += fc_below(keys[u], keys[t]);
        for (uint64_t u = 0; u < FC_GAUSSIAN_TIES; u++)
            ordered[u] |= ties->records[t] & (0 - (uint32_t)fc_equal(rank, u));
    }
    memcpy(ties->records, ordered, sizeof ordered);
}

/* Samples number * BLOCK to number * BLOCK + BLOCK - 1. */
static void make_block(const job* j, int64_t number, space* s, int64_t* out) {
    memset(&s->ties, 0, sizeof s->ties);
    for (int64_t at = 0; at < BLOCK; at += CHUNK) {
        for (int64_t draw = 0; draw < j->table->draws; draw++)
            fill(j, draw, 0, (number * BLOCK + at) / CHUNK, 4 * CHUNK, s->words + draw * CHUNK);
        j->kernels->gaussian->draw(j->table, s->arranged, s->words, at, &s->ties, out + at);
    }
    order_ties(&s->ties);
    fill(j, 0, 1, number, sizeof s->rest, s->rest);
    j->kernels->gaussian->settle(j->table, &s->ties, s->rest, out);
}

static void work(void* context, int worker) {
    job* j = context;
    space s;
    (void)worker;
    if (j->kernels->gaussian->arrange) j->kernels->gaussian->arrange(j->table, s.arranged);
    const int64_t first = j->counter / BLOCK, skipped = j->counter % BLOCK;
    for (int64_t start; (start = BLOCK * fc_next(&j->next)) < j->size + skipped;) {
        const int64_t from = start ? 0 : skipped; /* of the block's samples */
        const int64_t at = start + from - skipped, length = fc_min(BLOCK - from, j->size - at);
        make_block(j, first + start / BLOCK, &s, length == BLOCK ? j->out + at : s.samples);
        if (length < BLOCK) memcpy(j->out + at, s.samples + from, (size_t)length * sizeof *j->out);
    }
    fc_wipe(&s, sizeof s);
    fc_wipe_stack();
}

int fc_discrete_gaussian(const fc_gaussian_table* table, fc_stream stream, const uint8_t* key, int64_t counter,
                         int64_t* out, int64_t size, fc_isa isa, int threads) {
    const fc_kernels* kernels = fc_kernels_for(isa);
    job j = {.table = table,
             .kernels = kernels,
             .stream = fc_stream_for(stream, isa),
             .counter = counter,
             .size = size,
             .out = out};
    if (!kernels || !j.stream) return FC_NO_ISA;
    if (!fc_stream_checked(j.stream, stream)) return FC_WRONG_STREAM;
    if (!size) return FC_OK;
    j.stream->schedule(key, j.schedule);
    fc_parallel((int)fc_min(threads, fc_ceil(counter % BLOCK + size, BLOCK)), work, &j);
    fc_wipe(j.schedule, sizeof j.schedule);
    fc_wipe_stack();
    return FC_OK;
}
