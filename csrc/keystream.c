/* Keystreams over any length: whole groups of blocks by the kernels of an ISA, what is left through a buffer; and the
 * check of every stream against published answers before its first use. */
#include <math.h>
#include <stdlib.h>

#include "impl.h"

enum { ITEM = 16 * FC_STREAM_CHUNK }; /* bytes that a thread takes at a time */

/* A plain memset of memory that dies is dropped by compilers. */
void fc_wipe(void* memory, size_t bytes) {
    memset(memory, 0, bytes);
    __asm__ volatile("" : : "r"(memory) : "memory");
}

__attribute__((noinline)) void fc_wipe_stack(void) {
    char frames[FC_STACK];
    fc_wipe(frames, sizeof frames);
}

void fc_nonce_words(const uint8_t nonce[12], uint32_t words[3]) { memcpy(words, nonce, 12); }

void fc_stream_fill(const fc_stream_kernels* stream, const uint32_t* schedule, const uint32_t nonce[3],
                    uint32_t counter, int64_t bytes, uint8_t* out) {
    const int64_t groups = bytes / stream->group, whole = groups * stream->group;
    stream->fill(schedule, nonce, counter, groups, out);
    if (whole == bytes) return;
    uint8_t last[FC_STREAM_GROUP];
    stream->fill(schedule, nonce, counter + (uint32_t)(whole / stream->block), 1, last);
    memcpy(out + whole, last, (size_t)(bytes - whole));
    fc_wipe(last, sizeof last);
}

/* values[k] += or -= word k of `bytes` that begin at `words`. */
static void add_words(void* values, const uint8_t* words, int64_t length, int wide, int negative) {
    for (int64_t k = 0; k < length; k++)
        if (wide) {
            uint64_t word;
            memcpy(&word, words + 8 * k, 8);
            ((uint64_t*)values)[k] += negative ? 0u - word : word;
        } else {
            uint32_t word;
            memcpy(&word, words + 4 * k, 4);
            ((uint32_t*)values)[k] += negative ? 0u - word : word;
        }
}

void fc_stream_add(const fc_stream_kernels* stream, const uint32_t* schedule, const uint32_t nonce[3], int64_t first,
                   int64_t length, void* values, int wide, int negative) {
    const int size = wide ? 8 : 4;
    uint8_t edge[FC_STREAM_GROUP];
    uint32_t counter = (uint32_t)(first * size / stream->block);
    char* to = values;
    const int skip = (int)(first * size % stream->block);
    if (skip && length) { /* the group that begins with the block that `first` lies in */
        const int64_t words = fc_min(length, (stream->group - skip) / size);
        stream->fill(schedule, nonce, counter, 1, edge);
        add_words(to, edge + skip, words, wide, negative);
        counter += (uint32_t)(stream->group / stream->block);
        to += words * size, length -= words;
    }
    const int64_t groups = length * size / stream->group, rest = length - groups * (stream->group / size);
    stream->add[wide](schedule, nonce, counter, groups, to, negative);
    if (rest) {
        stream->fill(schedule, nonce, counter + (uint32_t)(groups * (stream->group / stream->block)), 1, edge);
        add_words(to + groups * stream->group, edge, rest, wide, negative);
    }
    if (skip || rest) fc_wipe(edge, sizeof edge);
}

/* RFC 8439 section 2.3.2, and the output blocks of NIST SP 800-38A F.5.5. */
static const uint8_t chacha_key[32] = {0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15,
                                       16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31};
static const uint8_t chacha_nonce[12] = {0, 0, 0, 9, 0, 0, 0, 0x4a};
static const uint8_t chacha_answer[64] = {0x10, 0xf1, 0xe7, 0xe4, 0xd1, 0x3b, 0x59, 0x15, 0x50, 0x0f, 0xdd, 0x1f, 0xa3,
                                          0x20, 0x71, 0xc4, 0xc7, 0xd1, 0xf4, 0xc7, 0x33, 0xc0, 0x68, 0x03, 0x04, 0x22,
                                          0xaa, 0x9a, 0xc3, 0xd4, 0x6c, 0x4e, 0xd2, 0x82, 0x64, 0x46, 0x07, 0x9f, 0xaa,
                                          0x09, 0x14, 0xc2, 0xd7, 0x05, 0xd9, 0x8b, 0x02, 0xa2, 0xb5, 0x12, 0x9c, 0xd1,
                                          0xde, 0x16, 0x4e, 0xb9, 0xcb, 0xd0, 0x83, 0xe8, 0xa2, 0x50, 0x3c, 0x4e};
static const uint8_t aes_key[32] = {0x60, 0x3d, 0xeb, 0x10, 0x15, 0xca, 0x71, 0xbe, 0x2b, 0x73, 0xae,
                                    0xf0, 0x85, 0x7d, 0x77, 0x81, 0x1f, 0x35, 0x2c, 0x07, 0x3b, 0x61,
                                    0x08, 0xd7, 0x2d, 0x98, 0x10, 0xa3, 0x09, 0x14, 0xdf, 0xf4};
static const uint8_t aes_nonce[12] = {0xf0, 0xf1, 0xf2, 0xf3, 0xf4, 0xf5, 0xf6, 0xf7, 0xf8, 0xf9, 0xfa, 0xfb};
static const uint8_t aes_answer[64] = {0x0b, 0xdf, 0x7d, 0xf1, 0x59, 0x17, 0x16, 0x33, 0x5e, 0x9a, 0x8b, 0x15, 0xc8,
                                       0x60, 0xc5, 0x02, 0x5a, 0x6e, 0x69, 0x9d, 0x53, 0x61, 0x19, 0x06, 0x54, 0x33,
                                       0x86, 0x3c, 0x8f, 0x65, 0x7b, 0x94, 0x1b, 0xc1, 0x2c, 0x9c, 0x01, 0x61, 0x0d,
                                       0x5d, 0x0d, 0x8b, 0xd6, 0xa3, 0x37, 0x8e, 0xca, 0x62, 0x29, 0x56, 0xe1, 0xc8,
                                       0x69, 0x35, 0x36, 0xb1, 0xbe, 0xe9, 0x9c, 0x73, 0xa3, 0x15, 0x76, 0xb6};

/* Whether the stream's first `bytes`, taken from themselves, leave zeros, and nothing else changes. */
static int adds_right(const fc_stream_kernels* stream, const uint32_t* schedule, const uint32_t nonce[3],
                      uint32_t first, int bytes, int most, int wide, const uint8_t* wanted) {
    uint64_t added[(3 * FC_STREAM_GROUP + 128) / 8];
    const int size = wide ? 8 : 4;
    memcpy(added, wanted, (size_t)most);
    for (int turn = 0; turn < 3; turn++)
        fc_stream_add(stream, schedule, nonce, (int64_t)first * stream->block / size, bytes / size, added, wide,
                      turn != 1);
    for (int k = 0; k < bytes; k++)
        if (((const uint8_t*)added)[k]) return 0;
    return !memcmp((const uint8_t*)added + bytes, wanted + bytes, (size_t)(most - bytes));
}

/* Whether the one loop that a stream may have for fp32 writes what the portable parts make, over up to three groups of
 * numbers that are rounded, tied and clamped, and tells each that is not finite. */
static int masks_right(const fc_stream_kernels* stream, const uint32_t* schedule, const uint32_t nonce[3],
                       uint32_t first, const uint8_t* wanted) {
    enum { MOST = 3 * FC_STREAM_GROUP / 4 };
    const double scale = 0.5, limit = 1500;
    const int per = stream->group / 4;
    _Alignas(FC_ALIGN) uint32_t got[MOST + 1];
    uint32_t whole[MOST];
    float values[MOST];
    for (uint32_t k = 0; k < MOST; k++) values[k] = ((float)(k * 2654435761u >> 16) - 32768.0f) / 8;
    fc_quantise_f32_32_ref(values, scale, limit, MOST, whole);
    for (int turn = 0; turn < 4 * 8; turn++) {
        const int groups = turn / 8, negative = turn & 1, bypass = turn >> 1 & 1;
        const uint32_t low = turn & 4 ? 0x1ffff : ~0u;
        memset(got, 0xa5, sizeof got);
        if (stream->mask(schedule, nonce, first, groups, values, scale, limit, low, got, negative, bypass)) return 0;
        for (int k = 0; k < groups * per; k++) {
            uint32_t word;
            memcpy(&word, wanted + 4 * k, 4);
            if (got[k] != ((whole[k] + (negative ? 0u - word : word)) & low)) return 0;
        }
        if (got[groups * per] != 0xa5a5a5a5u) return 0;
    }
    for (int k = 0; k < 3 * per; k++) {
        const float finite = values[k];
        values[k] = k & 1 ? NAN : -INFINITY;
        if (!stream->mask(schedule, nonce, first, 3, values, scale, limit, ~0u, got, 0, 0)) return 0;
        values[k] = finite;
    }
    return 1;
}

/* The published blocks; then every length up to three groups and a bit, filled and added, against the stream made a
 * block at a time, each as the first of its group: lanes, groups and tails that go wrong do not agree with that. Last
 * the loop that quantises too. */
int fc_stream_right(const fc_stream_kernels* stream, fc_stream kind) {
    const int chacha = kind == FC_CHACHA20;
    const uint32_t first = chacha ? 1 : 0xfcfdfeffu; /* 256 blocks on it, the counter's low bytes have carried */
    uint32_t schedule[FC_SCHEDULE], nonce[3];
    uint8_t wanted[3 * FC_STREAM_GROUP + 128], got[3 * FC_STREAM_GROUP + 128];
    const int most = 3 * stream->group + 2 * stream->block;
    stream->schedule(chacha ? chacha_key : aes_key, schedule);
    fc_nonce_words(chacha ? chacha_nonce : aes_nonce, nonce);
    for (int at = 0; at < most; at += stream->block)
        fc_stream_fill(stream, schedule, nonce, first + (uint32_t)(at / stream->block), stream->block, wanted + at);
    if (memcmp(wanted, chacha ? chacha_answer : aes_answer, 64)) return 0;
    for (int bytes = 0; bytes <= most; bytes++) {
        memset(got, 0, sizeof got);
        fc_stream_fill(stream, schedule, nonce, first, bytes, got);
        if (memcmp(got, wanted, (size_t)bytes)) return 0;
        for (int k = bytes; k < most; k++)
            if (got[k]) return 0;
        if (bytes % 4) continue;
        for (int wide = 0; wide <= (bytes % 8 == 0); wide++)
            if (!adds_right(stream, schedule, nonce, first, bytes, most, wide, wanted)) return 0;
    }
    if (!stream->mask) return 1;
    const fc_mode mode = fc_enter_ieee();
    const int right = masks_right(stream, schedule, nonce, first, wanted);
    fc_leave_ieee(mode);
    return right;
}

typedef struct {
    const fc_stream_kernels* stream;
    const uint32_t* schedules; /* FC_SCHEDULE words a key */
    const int8_t* signs;
    int64_t keys, bytes, next;
    uint32_t nonce[3];
    uint32_t counter;
    uint8_t* out;     /* to fill; or */
    uint32_t* values; /* to add to */
} job;

static void run_chunk(const job* j, int64_t start, int64_t bytes) {
    const uint32_t counter = j->counter + (uint32_t)(start / j->stream->block);
    if (j->out) fc_stream_fill(j->stream, j->schedules, j->nonce, counter, bytes, j->out + start);
    for (int64_t k = 0; j->values && k < j->keys; k++)
        fc_stream_add(j->stream, j->schedules + k * FC_SCHEDULE, j->nonce, (int64_t)counter * (j->stream->block / 4),
                      bytes / 4, j->values + start / 4, 0, j->signs[k] < 0);
}

static void work(void* context, int worker) {
    job* j = context;
    (void)worker;
    for (int64_t item; (item = ITEM * fc_next(&j->next)) < j->bytes;)
        for (int64_t start = item; start < fc_min(item + ITEM, j->bytes); start += FC_STREAM_CHUNK)
            run_chunk(j, start, fc_min(FC_STREAM_CHUNK, j->bytes - start));
    fc_wipe_stack();
}

static int run(job* j, fc_stream kind, const uint8_t* keys, const uint8_t nonce[12], fc_isa isa, int threads) {
    j->stream = fc_stream_for(kind, isa);
    if (!j->stream) return FC_NO_ISA;
    if (!fc_stream_checked(j->stream, kind)) return FC_WRONG_STREAM;
    const size_t size = (size_t)j->keys * FC_SCHEDULE * sizeof(uint32_t);
    uint32_t* schedules = fc_alloc(size);
    if (!schedules) return FC_NO_MEMORY;
    for (int64_t k = 0; k < j->keys; k++) j->stream->schedule(keys + 32 * k, schedules + k * FC_SCHEDULE);
    j->schedules = schedules;
    fc_nonce_words(nonce, j->nonce);
    fc_parallel((int)fc_min(threads, fc_ceil(j->bytes, ITEM)), work, j);
    fc_wipe(schedules, size);
    free(schedules);
    fc_wipe_stack();
    return FC_OK;
}

int fc_keystream(fc_stream stream, const uint8_t* key, const uint8_t* nonce, uint32_t counter, uint8_t* out,
                 int64_t size, fc_isa isa, int threads) {
    job j = {.keys = 1, .bytes = size, .counter = counter, .out = out};
    return run(&j, stream, key, nonce, isa, threads);
}

int fc_keystream_add(uint32_t* values, int64_t length, fc_stream stream, const uint8_t* keys, int64_t count,
                     const uint8_t* nonce, uint32_t counter, const int8_t* signs, fc_isa isa, int threads) {
    job j = {.keys = count, .bytes = 4 * length, .counter = counter, .values = values, .signs = signs};
    return run(&j, stream, keys, nonce, isa, threads);
}
