/* mask_add: chunks of a vector, which are quantised, masked by all keys while they are in the first-level cache, and
 * written once, packed if asked. Chunks have absolute numbers, so that all but the first begin with a group of a
 * stream. */
#include <stdlib.h>

#include "impl.h"

enum {
    CHUNK = FC_STREAM_CHUNK,
    PART = 512,           /* elements that are read or written while the cipher runs */
    AHEAD = 8192,         /* bytes after them that are asked for */
    ITEM = 16,            /* chunks that a thread takes at a time */
    STREAM_FROM = 8 << 20 /* bytes of output from which writes bypass the cache */
};

static const uint32_t nonce[3];

typedef struct {
    const char* values;
    fc_dtype dtype;
    double scale, limit;
    const fc_kernels* kernels;
    const fc_stream_kernels* stream;
    const uint32_t* schedules; /* FC_SCHEDULE words a key */
    const int8_t* signs;
    int64_t keys, length, counter, next;
    uint64_t mask;
    int wide, bits, packed, direct, bypass, bad;
    char* out;
} job;

/* Integers as they are, in words of the result's size. */
static void copy_words(const char* values, fc_dtype dtype, int64_t length, int wide, void* out) {
    if ((dtype == FC_U64) == wide) {
        memcpy(out, values, (size_t)length * (wide ? 8 : 4));
    } else if (wide) {
        for (int64_t k = 0; k < length; k++) {
            uint32_t word;
            memcpy(&word, values + 4 * k, 4);
            ((uint64_t*)out)[k] = word;
        }
    } else {
        for (int64_t k = 0; k < length; k++) {
            uint64_t word;
            memcpy(&word, values + 8 * k, 8);
            ((uint32_t*)out)[k] = (uint32_t)word;
        }
    }
}

/* Elements at to at + length - 1, quantised. */
static int read_part(const job* j, int64_t at, int64_t length, void* out) {
    const int in = j->dtype == FC_F64 || j->dtype == FC_U64 ? 8 : 4;
    const char* values = j->values + at * in;
    for (int64_t byte = 0; byte < length * in; byte += 64) /* as a number: it may lie behind the array */
        __builtin_prefetch((const void*)((uintptr_t)values + AHEAD + (uintptr_t)byte));
    if (j->dtype == FC_F32 || j->dtype == FC_F64)
        return j->kernels->quantise[j->dtype == FC_F64][j->wide](values, j->scale, j->limit, length, out);
    copy_words(values, j->dtype, length, j->wide, out);
    return 0;
}

/* Elements at to at + length - 1 in `space`, quantised and with the first key's stream: by the one loop that a stream
 * may have for it as far as whole groups go, else a part at a time, so that memory is busy while the cipher is. */
static int begin_chunk(const job* j, int64_t at, int64_t length, char* space) {
    const int size = j->wide ? 8 : 4, per = j->stream->group / 4;
    int64_t from = 0;
    int bad = 0;
    if (j->direct && (j->counter + at) % per == 0) {
        const uint32_t block = (uint32_t)((j->counter + at) * 4 / j->stream->block);
        from = length / per * per;
        bad = j->stream->mask(j->schedules, nonce, block, length / per, j->values + at * 4, j->scale, j->limit,
                              (uint32_t)j->mask, space, j->signs[0] < 0, 0);
    }
    for (; from < length; from += PART) {
        const int64_t count = fc_min(PART, length - from);
        bad |= read_part(j, at + from, count, space + from * size);
        if (j->keys)
            fc_stream_add(j->stream, j->schedules, nonce, j->counter + at + from, count, space + from * size, j->wide,
                          j->signs[0] < 0);
    }
    return bad;
}

/* Elements at to at + length - 1, through `space`, which holds them until all keys are added; with the last one, or
 * after it, they are written. */
static int mask_chunk(const job* j, int64_t at, int64_t length, char* space) {
    const int size = j->wide ? 8 : 4;
    const int bad = begin_chunk(j, at, length, space);
    for (int64_t k = 1; k < j->keys; k++) {
        const int writes = k == j->keys - 1 && !j->packed;
        const int64_t step = writes ? PART : length;
        for (int64_t from = 0; from < length; from += step) {
            const int64_t count = fc_min(step, length - from);
            fc_stream_add(j->stream, j->schedules + k * FC_SCHEDULE, nonce, j->counter + at + from, count,
                          space + from * size, j->wide, j->signs[k] < 0);
            if (writes)
                j->kernels->reduce(space + from * size, j->mask, count * size, j->out + (at + from) * size, j->bypass);
        }
    }
    if (j->packed) j->kernels->pack_bits(space, j->bits, length, (uint8_t*)j->out + at * j->bits / 8);
    else if (j->keys < 2) j->kernels->reduce(space, j->mask, length * size, j->out + at * size, j->bypass);
    return bad;
}

/* Elements at to at + length - 1 by the one loop that a stream may have for fp32 and a single key: they are never
 * written but masked. */
static int mask_directly(const job* j, int64_t at, int64_t length, char* space) {
    const int per = j->stream->group / 4, skip = (int)((j->counter + at) % per);
    const int64_t head = skip ? fc_min(per - skip, length) : 0, groups = (length - head) / per,
                  tail = head + groups * per;
    const uint32_t block = (uint32_t)((j->counter + at + head) * 4 / j->stream->block);
    int bad = j->stream->mask(j->schedules, nonce, block, groups, j->values + (at + head) * 4, j->scale, j->limit,
                              (uint32_t)j->mask, j->out + (at + head) * 4, j->signs[0] < 0, j->bypass);
    if (head) bad |= mask_chunk(j, at, head, space);
    if (tail < length) bad |= mask_chunk(j, at + tail, length - tail, space);
    return bad;
}

static void work(void* context, int worker) {
    job* j = context;
    _Alignas(FC_ALIGN) char space[CHUNK];
    const int64_t chunk = CHUNK / (j->wide ? 8 : 4), skip = j->counter % chunk;
    int bad = 0;
    (void)worker;
    for (int64_t item; (item = ITEM * chunk * fc_next(&j->next)) < j->length + skip;)
        for (int64_t start = item; start < fc_min(item + ITEM * chunk, j->length + skip); start += chunk) {
            const int64_t at = start ? start - skip : 0;
            const int64_t length = fc_min(start + chunk - skip, j->length) - at;
            bad |= j->direct && j->keys == 1 && !j->packed ? mask_directly(j, at, length, space)
                                                           : mask_chunk(j, at, length, space);
        }
    if (bad) __atomic_store_n(&j->bad, 1, __ATOMIC_RELAXED);
    fc_wipe(space, sizeof space);
    fc_wipe_stack();
}

int fc_mask_add(const void* values, fc_dtype dtype, int64_t length, double scale, double limit, fc_stream stream,
                const uint8_t* key, int64_t keys, const int8_t* signs, int bits, int64_t counter, int packed, void* out,
                fc_isa isa, int threads) {
    job j = {.values = values,
             .dtype = dtype,
             .scale = scale,
             .limit = limit,
             .signs = signs,
             .keys = keys,
             .length = length,
             .counter = counter,
             .wide = bits > 32,
             .bits = bits,
             .packed = packed,
             .out = out};
    j.kernels = fc_kernels_for(isa);
    j.stream = fc_stream_for(stream, isa);
    if (!j.kernels || !j.stream) return FC_NO_ISA;
    if (!fc_stream_checked(j.stream, stream)) return FC_WRONG_STREAM;
    const size_t size = (size_t)keys * FC_SCHEDULE * sizeof(uint32_t);
    uint32_t* schedules = fc_alloc(size);
    if (!schedules) return FC_NO_MEMORY;
    for (int64_t k = 0; k < keys; k++) j.stream->schedule(key + 32 * k, schedules + k * FC_SCHEDULE);
    j.schedules = schedules;
    j.mask = ~0ull >> (64 - bits);
    if (!j.wide) j.mask |= j.mask << 32;
    j.direct = j.stream->mask && keys && dtype == FC_F32 && !j.wide;
    j.bypass = length * (j.wide ? 8 : 4) >= STREAM_FROM;
    const fc_mode mode = fc_enter_ieee();
    fc_parallel((int)fc_min(threads, fc_ceil(length, ITEM * CHUNK / 8)), work, &j);
    fc_leave_ieee(mode);
    fc_wipe(schedules, size);
    free(schedules);
    fc_wipe_stack();
    return j.bad ? FC_NOT_FINITE : FC_OK;
}
