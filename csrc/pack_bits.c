/* pack_bits and unpack_add: tiles of residues, each of whole bytes. */
#include "impl.h"

enum { TILE = 1 << 16 }; /* residues: a multiple of 8 */

typedef struct {
    const fc_kernels* kernels;
    const char* residues;
    char* total;
    const uint8_t* packed;
    uint8_t* out;
    int64_t count, next;
    int bits;
} job;

static void work(void* context, int worker) {
    job* j = context;
    const int size = j->bits > 32 ? 8 : 4;
    (void)worker;
    for (int64_t start; (start = TILE * fc_next(&j->next)) < j->count;) {
        const int64_t count = fc_min(TILE, j->count - start), byte = start / 8 * j->bits;
        if (j->out) j->kernels->pack_bits(j->residues + start * size, j->bits, count, j->out + byte);
        else j->kernels->unpack_add(j->packed + byte, j->bits, count, j->total + start * size);
    }
}

static int run(job* j, fc_isa isa, int threads) {
    j->kernels = fc_kernels_for(isa);
    if (!j->kernels) return FC_NO_ISA;
    fc_parallel((int)fc_min(threads, fc_ceil(j->count, TILE)), work, j);
    return FC_OK;
}

int fc_pack_bits(const void* residues, int bits, int64_t count, uint8_t* out, fc_isa isa, int threads) {
    job j = {.residues = residues, .out = out, .bits = bits, .count = count};
    return run(&j, isa, threads);
}

int fc_unpack_add(const uint8_t* packed, int bits, int64_t count, void* total, fc_isa isa, int threads) {
    job j = {.packed = packed, .total = total, .bits = bits, .count = count};
    return run(&j, isa, threads);
}
