/* discrete_gaussian: chunks of samples with absolute numbers, so that a chunk's words are whole blocks of its streams.
 */
#include <stdlib.h>

#include "impl.h"

enum { CHUNK = FC_GAUSSIAN_CHUNK };

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
    _Alignas(FC_ALIGN) uint64_t words[(FC_GAUSSIAN_DRAWS + 1) * CHUNK];
    _Alignas(FC_ALIGN) uint64_t arranged[FC_GAUSSIAN_ARRANGED];
    int64_t samples[CHUNK];
} space;

/* The nonce of fedcore/gaussian_table.py for the words of a draw, or those that all draws share; `high`: the block's
 * number without 32 bits. */
static void nonce_of(int64_t draw, int shared, int64_t high, uint32_t nonce[3]) {
    const uint64_t upper = (uint64_t)high;
    const uint8_t bytes[4] = {(uint8_t)draw, (uint8_t)shared, 'd', 'g'};
    memcpy(nonce, bytes, 4);
    memcpy(nonce + 1, &upper, 8);
}

/* Samples number * CHUNK to number * CHUNK + CHUNK - 1: never across a change of nonce, since a chunk's blocks divide
 * 2^32. */
static void make_chunk(const job* j, int64_t number, space* s) {
    const int64_t block = number * (8 * CHUNK / j->stream->block), draws = j->table->draws;
    for (int64_t i = 0; i <= draws; i++) { /* the words that all draws share come last */
        uint32_t nonce[3];
        nonce_of(i % draws, i == draws, block >> 32, nonce);
        fc_stream_fill(j->stream, j->schedule, nonce, (uint32_t)block, 8 * CHUNK, (uint8_t*)(s->words + i * CHUNK));
    }
    j->kernels->gaussian(j->table, s->arranged, s->words, s->samples);
}

static void work(void* context, int worker) {
    job* j = context;
    space s;
    (void)worker;
    if (j->kernels->gaussian_arrange) j->kernels->gaussian_arrange(j->table, s.arranged);
    const int64_t first = j->counter / CHUNK;
    for (int64_t start; (start = CHUNK * fc_next(&j->next)) < j->size + j->counter % CHUNK;) {
        const int64_t from = start ? 0 : j->counter % CHUNK; /* of the chunk's samples */
        const int64_t at = start + from - j->counter % CHUNK, length = fc_min(CHUNK - from, j->size - at);
        make_chunk(j, first + start / CHUNK, &s);
        memcpy(j->out + at, s.samples + from, (size_t)length * sizeof *j->out);
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
    fc_parallel((int)fc_min(threads, fc_ceil(size, CHUNK)), work, &j);
    fc_wipe(j.schedule, sizeof j.schedule);
    fc_wipe_stack();
    return FC_OK;
}
