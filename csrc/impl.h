/* What the parts of csrc share: kernel signatures, the table of an ISA, threading. Not public.
 * Above 250 lines because the table of an ISA names every kernel, so that each file of csrc needs every signature. */
#ifndef FEDCORE_IMPL_H
#define FEDCORE_IMPL_H
#include <math.h>
#include <stddef.h>
#include <string.h>

#include "fedcore.h"
#include "scalars.h"

#define INLINE static inline __attribute__((always_inline))

enum {
    FC_WS_GROUP = 10,     /* rows that one accumulate call of a weighted sum takes: streams in flight a thread */
    FC_INTEGER_GROUP = 5, /* the same where votes or clipped integers are summed */
    FC_WS_TILE = 32768,   /* columns whose fp64 sums stay in the second-level cache */
    FC_WS_STRIP = 1024,   /* and in the first-level one */
    FC_SUMS_STRIP = 24,   /* columns of a strip of fp64 elements: [row][column] */
    FC_SUMS_GROUP = 8,    /* outputs that one tile of products covers at most */
    FC_SUMS_FEW = 4,      /* outputs up to which rows are read as they lie, FC_SUMS_STREAMS at a time */
    FC_SUMS_STREAMS = 8,
    FC_SUMS_ROWS = 128,    /* rows of a strip: 24 KB, in the first-level cache for all outputs */
    FC_SIGN_TILE = 16384,  /* columns whose votes stay in the second-level cache */
    FC_NORM_BLOCK = 4096,  /* fixed by the definition: fedcore/reference/squared_norms.py */
    FC_EXACT_CHUNK = 8192, /* fixed by the definition: fedcore/expansion.py */
    FC_EXACT_MOST = 32,    /* levels: each lies 2^33 or more below the one before, up to 2^20 rows */
    FC_NORM_LANES = 32,
    FC_GRAM_BLOCK = 256, /* fixed by the definition: fedcore/reference/gram.py */
    FC_GRAM_CHAINS = 8,  /* and this: column k is of chain k % FC_GRAM_CHAINS of multiply-adds */
    FC_GRAM_RUN = FC_GRAM_BLOCK / FC_GRAM_CHAINS,
    FC_GRAM_BLOCK_AMX = 512,
    FC_GRAM_PANEL_AMX = 6 * 16 * FC_GRAM_BLOCK_AMX + 128, /* bytes of a packed panel: six digits, 16 units */
    FC_GRAM_CHUNK = 8192,
    FC_GRAM_PANEL = 16, /* rows a packed panel holds: [column][row], or as the ISA's gram_products has it */
    FC_GRAM_PAST = 2,   /* rows past the last panel that an ISA's gram_products may read and add to */
    FC_GRAM_ROWS = 8,   /* rows that one gram_tile covers, half a panel */
    FC_BLOCK = 64,      /* elements of a quantised block, blocks under one nested scale: fedcore/quantized.py */
    FC_NESTED = 256,
    FC_DECODED = 1024,   /* columns of a row decoded at a time where a kernel reads them once: a group stays in L1 */
    FC_PAIRS = 8,        /* pairs whose squared distances are summed side by side */
    FC_ORDER_LEAF = 32,  /* rows that are sorted in registers at most */
    FC_ORDER_LEAST = 16, /* and at least, where there are more */
    FC_ORDER_FEWEST = 3, /* rows from which, and up to which, medians are taken in registers alone */
    FC_ORDER_FEW = 16,
    FC_ORDER_LAST = 5,   /* levels that the last pass of a merge does at most */
    FC_GRAM_NEXT = 2,    /* rows after a panel's own whose place its packing is told */
    FC_LORA_CHAIN = 256, /* fixed by the definition: fedcore/reference/lora_delta_sum.py */
    FC_LORA_ROWS = 8,    /* a tile of products of factors */
    FC_LORA_COLUMNS = 48,
    FC_LORA_CHUNK = 1024,       /* fixed by the definition: fedcore/reference/lora_blocks.py */
    FC_LORA_PANEL = 8,          /* terms of a packed panel of fp64: [element][term] */
    FC_LORA_WIDE = 3,           /* panels that one tile of their products covers at most */
    FC_HADAMARD_NEAR = 1 << 16, /* columns that are transformed while they are in the second-level cache */
    FC_HADAMARD_ROWS = 8,       /* rows a power of two apart share a set of a cache, which has 8 ways or more */
    FC_SCHEDULE = 60,           /* words of a key's schedule at most: the round keys of AES-256 */
    FC_STREAM_GROUP = 1024,     /* bytes that a step of a stream's kernel makes at most */
    FC_STREAM_CHUNK = 16384,    /* bytes that all keys are added to in turn: they stay in the first-level cache */
    FC_STACK = 32768, /* bytes of stack that workers of streams use at most: round keys may be spilled there */
    FC_ALIGN = 64,
};

/* Integer noise lies from minus this to below it, and sums of rounded rows do too: all of it is exact in fp64. */
#define FC_CLIP_MOST (1ull << 50)

/* acc[k] (+)= sum of w[r] * rows[r][k] over `count` <= FC_WS_GROUP rows in order; `first`: start from 0.0, do not read
 * acc. An implementation may keep acc in an order of its own inside whole groups of columns; its finish knows it. */
typedef void fc_accumulate_fn(const void* const* rows, const double* w, int count, int64_t length, double* acc,
                              int first);
/* out[k] = round(acc[k] / divisor) (NaN: no division); `stream`: bypass the cache where possible. 1 if any is not
 * finite. */
typedef int fc_finish_fn(const double* acc, int64_t length, double divisor, void* out, int stream);
/* Column c of a row, as fp64, to strips[c / FC_SUMS_STRIP * stride + c % FC_SUMS_STRIP]; zeros to the end of the last
 * strip. */
typedef void fc_sums_pack_fn(const void* row, int64_t length, double* strips, int64_t stride);
/* acc[o * stride + c] (+)= sum over k < rows, in order, of w[k * FC_SUMS_GROUP + o] * strip[k * FC_SUMS_STRIP + c] for
 * `outputs` <= FC_SUMS_GROUP; `first`: start from 0.0, do not read acc. */
typedef void fc_sums_tile_fn(const double* strip, const double* w, int64_t rows, int outputs, double* acc,
                             int64_t stride, int first);
/* acc[o * stride + k] (+)= sum over r < count <= FC_SUMS_STREAMS, in order, of w[r * FC_SUMS_FEW + o] * rows[r][k] for
 * `outputs` <= FC_SUMS_FEW. */
typedef void fc_sums_few_fn(const void* const* rows, const double* w, int count, int outputs, int64_t length,
                            double* acc, int64_t stride, int first);
/* votes[k] (+)= how many of `count` <= FC_INTEGER_GROUP rows are above center[k] (NULL: zero) less how many are below;
 * `first`: start from 0. 1 if any element of a row is not finite. */
typedef int fc_signs_fn(const void* const* rows, int count, const float* center, int64_t length, int32_t* votes,
                        int first);
/* Adds weight * row[k] to levels[0][k], what that rounds off to levels[1][k], and so on; what is left after `depth`
 * levels goes into levels[depth], which is all 0. 1 if anything went there. */
typedef int fc_exact_add_fn(const void* row, double weight, int64_t length, double* const* levels, int depth);
/* Squared norm of one block (length <= FC_NORM_BLOCK) of a row, less `center` (fp32, NULL for zero). */
typedef double fc_block_norm_fn(const void* row, const float* center, int64_t length);
/* panel[fc_gram_place(k)][r] = fp32(row r, column k) - center[k] for `count` <= FC_GRAM_PANEL rows, and 0 for its other
 * rows and for columns from `length` to the next multiple of FC_GRAM_CHAINS. An ISA with gram_products packs as those
 * read it; `panel` holds zeros before. peak[r]: the largest magnitude of row r, as bits, so that Inf and NaN are above
 * every number; an ISA that scales rows itself says 1.0 for any that it can scale. rows[count] to rows[count +
 * FC_GRAM_NEXT - 1] will be packed next: to be asked for, not read. */
static inline int64_t fc_gram_place(int64_t k) { return k % FC_GRAM_CHAINS * FC_GRAM_RUN + k / FC_GRAM_CHAINS; }
typedef void fc_gram_pack_fn(const void* const* rows, int count, const float* center, int64_t length, float* panel,
                             uint32_t* peak);
/* Products of `rows` rows of panel a (FC_GRAM_ROWS, or half of it where the cohort ends) with at least `columns` of
 * panel b (all, or half on the diagonal): accumulated in
 * fp32 chain by chain, times row_scale[r] * column_scale[c] (row_scale NULL: all scales are 1), added to the fp64
 * matrix `sum` of row stride `stride`. */
typedef void fc_gram_tile_fn(const float* a, int rows, const float* b, int columns, int64_t length, double* sum,
                             int64_t stride, const double* row_scale, const double* column_scale);
/* sum[p] += (a[p][k] - b[p][k])^2 in fp64 for k in order, of FC_PAIRS pairs: of fp32, or, `wide`, of fp64. */
typedef void fc_pair_squares_fn(const void* const* a, const void* const* b, int wide, int64_t length, double* sum);
/* What is packed after `blocks` blocks: `bytes` of each of `rows`, handed out from `offset` in row `row` on. */
typedef struct {
    const char* const* rows;
    int64_t count, bytes, blocks, row, offset;
} fc_ahead;
static inline const char* fc_ahead_next(fc_ahead* next, int64_t size) { /* NULL: nothing is left */
    if (next->row >= next->count || !next->bytes) return NULL;
    const char* stretch = next->rows[next->row] + next->offset;
    next->offset += size;
    if (next->offset >= next->bytes) {
        next->offset = 0;
        next->row++;
    }
    return stretch;
}
/* In place of gram_tile, for an ISA that forms all products of a block in a way of its own: adds to `sum` (lower half,
 * row stride that of whole panels) at least the products of rows >= `first` with all up to themselves. scale: what the
 * rows were divided by, all 1 unless `rescaled`; may be changed. */
typedef void fc_gram_products_fn(const float* panel, int64_t rows, int64_t first, int64_t length, double* sum,
                                 double* scale, int rescaled, fc_ahead* next);
/* Products of LoRA factors: acc[o * stride + c] (+)= the fp32 sum over k < length of b[k * FC_LORA_ROWS + o] *
 * a[k * FC_LORA_COLUMNS + c], from 0.0 in the order of k with fused multiply-adds; `first`: acc is not read. */
typedef void fc_lora_tile_fn(const float* b, const float* a, int64_t length, double* acc, int64_t stride, int first);
/* sum[r * stride + c] (+)= the fp64 sum over k < length of rows[k * FC_LORA_PANEL + r] * columns[k * FC_LORA_PANEL + c]
 * for `wide` panels of columns, panel_stride apart, going on from `sum` (`first`: from 0.0, it is not read) in the
 * order of k with fused multiply-adds. */
typedef void fc_lora_gram_tile_fn(const double* rows, const double* columns, int64_t panel_stride, int wide,
                                  int64_t length, double* sum, int64_t stride, int first);
/* out[k] = scale * row[k] rounded to an integer, ties to even, at most 2^30 in size; the sum of their squares. Scale
 * and element have at most 24 significant bits each, so their product is exact. */
typedef int64_t fc_clip_round_fn(const void* row, double scale, int64_t length, int32_t* out);
/* sum[k] += the same integers of `count` <= FC_INTEGER_GROUP rows. */
typedef void fc_clip_noise_accumulate_fn(const void* const* rows, const double* scales, int count, int64_t length,
                                         int64_t* sum);
/* Stages 1, 2, 4, ... block / 2 of every block of `length` columns, then times `scale` (0: this is not the last pass).
 * 1 if it was and any product is not finite. */
typedef int fc_hadamard_near_fn(float* x, int64_t length, int64_t block, float scale);
/* Stages 1, 2, ... rows / 2 across `rows` (2, 4 or FC_HADAMARD_ROWS) rows of `width` columns, `stride` apart; as above.
 * width: a multiple of 16. */
typedef int fc_hadamard_far_fn(float* x, int64_t stride, int rows, int64_t width, float scale);
typedef void fc_to_f32_fn(const void* row, int64_t length, float* out);
typedef uint64_t fc_read_fn(const void* const* rows, int count, int64_t bytes);
/* out[k] = element first + k, k < length, of a quantised tensor whose scale arrays are `scales`. */
typedef void fc_decode_fn(const void* payload, const void* const* scales, int64_t first, int64_t length, float* out);

/* q of clamp(x * scale, -limit, limit), ties to even, for x fp32 or fp64, to int32 or int64; 1 if any x is not finite.
 */
typedef int fc_quantise_fn(const void* values, double scale, double limit, int64_t length, void* out);
/* out = in & mask, 8 bytes of mask after another; `stream`: bypass the cache where possible. */
typedef void fc_reduce_fn(const void* in, uint64_t mask, int64_t bytes, void* out, int stream);
/* `count` residues of `bits` bits, uint32 up to 32 and uint64 above, to and from packed bytes, as defined in
 * fedcore/reference/pack_bits.py. */
typedef void fc_pack_bits_fn(const void* residues, int bits, int64_t count, uint8_t* out);
typedef void fc_unpack_add_fn(const uint8_t* packed, int bits, int64_t count, void* total);
/* In GF(2^8): out[b] = the sum over c < rows of table[c] * x[c * stride + b], b < bytes; Horner's rule at `point`, the
 * last row first. The point and the weights are public; no branch or address depends on x. */
typedef void fc_gf_sum_fn(const uint8_t* weights, const uint8_t* x, int64_t rows, int64_t stride, int64_t bytes,
                          uint8_t* out);
typedef void fc_gf_horner_fn(uint8_t point, const uint8_t* x, int64_t rows, int64_t stride, int64_t bytes,
                             uint8_t* out);

typedef enum { FC_MEDIAN, FC_TRIMMED_MEAN, FC_MEAN_AROUND_MEDIAN } fc_statistic;
/* Bytes that an order kernel works in: two keys a row, each in a vector of any ISA; five and a sample for selection. */
#define FC_ORDER_SCRATCH(rows) ((5 * (rows) + 2000) * FC_ALIGN)
/* Of columns offset to offset + length of n rows, acc[k] = the median, or the sum that is still to be divided.
 * 1 if any element is not finite. */
typedef int fc_order_fn(const void* const* rows, int64_t n, int64_t offset, int64_t length, fc_statistic statistic,
                        int64_t f, void* scratch, double* acc);

/* order.c: a zero is +0, also one that was rounded to: the last step of an order statistic, on the way out; `stream`:
 * bypass the cache where possible. */
void fc_put_positive_zeros(char* out, const char* from, int64_t length, fc_dtype dtype, int stream);

typedef void fc_stream_add_fn(const uint32_t* schedule, const uint32_t nonce[3], uint32_t counter, int64_t groups,
                              void* values, int negative);
#define FC_CHACHA20_CONSTANTS {0x61707865, 0x3320646e, 0x79622d32, 0x6b206574}
/* One keystream on one ISA, in groups of blocks. The counter of a block that is not wanted may wrap: its bytes are
 * thrown away. */
typedef struct {
    int block, group; /* bytes; a group divides FC_STREAM_CHUNK */
    void (*schedule)(const uint8_t key[32], uint32_t* schedule);
    /* The stream's bytes from block `counter` on. */
    void (*fill)(const uint32_t* schedule, const uint32_t nonce[3], uint32_t counter, int64_t groups, uint8_t* out);
    /* Its words added to `values`, or subtracted: [0] uint32 modulo 2^32, [1] uint64 modulo 2^64. */
    fc_stream_add_fn* add[2];
    /* NULL, or what quantise, add[0] and reduce make of fp32 `values`, in one loop; 1 if any is not finite. */
    int (*mask)(const uint32_t* schedule, const uint32_t nonce[3], uint32_t counter, int64_t groups, const void* values,
                double scale, double limit, uint32_t mask, void* out, int negative, int stream);
} fc_stream_kernels;
void fc_chacha20_schedule(const uint8_t key[32], uint32_t* schedule);
void fc_aes256_schedule(const uint8_t key[32], uint32_t* schedule);
typedef struct fc_gaussian_kernels fc_gaussian_kernels; /* discrete_gaussian.h */
extern const fc_stream_kernels fc_chacha20_ref;
extern const fc_gaussian_kernels fc_discrete_gaussian_ref;
#if defined(__x86_64__)
extern const fc_stream_kernels fc_chacha20_avx2, fc_chacha20_avx512;
extern const fc_stream_kernels fc_aes256ctr_aesni, fc_aes256ctr_vaes256, fc_aes256ctr_vaes;
extern const fc_gaussian_kernels fc_discrete_gaussian_avx2, fc_discrete_gaussian_avx512;
#elif defined(__aarch64__)
extern const fc_stream_kernels fc_chacha20_neon;
extern const fc_gaussian_kernels fc_discrete_gaussian_neon;
#endif
/* keystream.c. Any number of bytes of a stream; whether its kernels give the published answers, and the same bytes at
 * every length. */
void fc_stream_fill(const fc_stream_kernels* stream, const uint32_t* schedule, const uint32_t nonce[3],
                    uint32_t counter, int64_t bytes, uint8_t* out);
/* values[k] += or -= word first + k of the stream, k < length; `wide`: of 64-bit words, else of 32-bit ones. */
void fc_stream_add(const fc_stream_kernels* stream, const uint32_t* schedule, const uint32_t nonce[3], int64_t first,
                   int64_t length, void* values, int wide, int negative);
int fc_stream_right(const fc_stream_kernels* stream, fc_stream kind);
void fc_nonce_words(const uint8_t nonce[12], uint32_t words[3]);
void fc_wipe(void* memory, size_t bytes); /* zeros that no compiler drops: keys and noise do not stay in memory */
void fc_wipe_stack(void); /* what functions that were called before and have returned left below the caller */

typedef struct {
    fc_accumulate_fn* accumulate[3];
    fc_finish_fn* finish[3][4]; /* by row dtype, whose layout acc has, and output dtype */
    fc_sums_pack_fn* sums_pack[3];
    fc_sums_tile_fn* sums_tile;
    fc_sums_few_fn* sums_few[3];
    fc_signs_fn* signs[3];
    fc_exact_add_fn* exact_add[3];
    fc_block_norm_fn* block_norm[3];
    fc_gram_pack_fn* gram_pack[3];
    fc_gram_tile_fn* gram_tile;
    fc_pair_squares_fn* pair_squares;
    fc_gram_products_fn* gram_products; /* NULL: tile by tile */
    int gram_block;                     /* columns whose products are accumulated in fp32 */
    int gram_panel;                     /* bytes of a packed panel of a block */
    int gram_packed;                    /* bytes packed at a time, as the second-level cache has room for */
    fc_lora_tile_fn* lora_tile;
    fc_lora_gram_tile_fn* lora_gram_tile;
    fc_clip_round_fn* clip_round[3];
    fc_clip_noise_accumulate_fn* clip_noise_accumulate[3];
    fc_hadamard_near_fn* hadamard_near;
    fc_hadamard_far_fn* hadamard_far;
    const fc_stream_kernels* chacha20;
    const fc_gaussian_kernels* gaussian;
    fc_quantise_fn* quantise[2][2]; /* of fp32, fp64; to 32, 64 bits */
    fc_reduce_fn* reduce;
    fc_pack_bits_fn* pack_bits;
    fc_unpack_add_fn* unpack_add;
    fc_gf_sum_fn* gf_sum;
    fc_gf_horner_fn* gf_horner;
    fc_to_f32_fn* to_f32[3];
    fc_read_fn* read;
    fc_decode_fn* decode[2]; /* FC_INT8, FC_NF4 */
    fc_order_fn* order[3];
} fc_kernels;

/* The portable kernels: every other ISA uses them for what is left over. */
fc_accumulate_fn fc_weighted_sum_f32_ref, fc_weighted_sum_f16_ref, fc_weighted_sum_bf16_ref;
fc_finish_fn fc_weighted_sum_to_f32_ref, fc_weighted_sum_to_f16_ref, fc_weighted_sum_to_bf16_ref,
    fc_weighted_sum_to_f64_ref;
fc_sums_pack_fn fc_weighted_sums_pack_f32_ref, fc_weighted_sums_pack_f16_ref, fc_weighted_sums_pack_bf16_ref;
fc_sums_tile_fn fc_weighted_sums_tile_ref;
fc_sums_few_fn fc_weighted_sums_few_f32_ref, fc_weighted_sums_few_f16_ref, fc_weighted_sums_few_bf16_ref;
fc_signs_fn fc_sign_counts_f32_ref, fc_sign_counts_f16_ref, fc_sign_counts_bf16_ref;
fc_exact_add_fn fc_exact_sum_f32_ref, fc_exact_sum_f16_ref, fc_exact_sum_bf16_ref;
fc_block_norm_fn fc_squared_norms_f32_ref, fc_squared_norms_f16_ref, fc_squared_norms_bf16_ref;
fc_gram_pack_fn fc_gram_pack_f32_ref, fc_gram_pack_f16_ref, fc_gram_pack_bf16_ref;
fc_gram_tile_fn fc_gram_tile_ref;
fc_pair_squares_fn fc_pair_squares_ref;
fc_lora_tile_fn fc_lora_tile_ref;
fc_lora_gram_tile_fn fc_lora_gram_tile_ref;
fc_clip_round_fn fc_clip_round_f32_ref, fc_clip_round_f16_ref, fc_clip_round_bf16_ref;
fc_clip_noise_accumulate_fn fc_clip_noise_accumulate_f32_ref, fc_clip_noise_accumulate_f16_ref,
    fc_clip_noise_accumulate_bf16_ref;
fc_hadamard_near_fn fc_hadamard_near_ref;
fc_hadamard_far_fn fc_hadamard_far_ref;
fc_to_f32_fn fc_to_f32_f32_ref, fc_to_f32_f16_ref, fc_to_f32_bf16_ref;
fc_quantise_fn fc_quantise_f32_32_ref, fc_quantise_f32_64_ref, fc_quantise_f64_32_ref, fc_quantise_f64_64_ref;
fc_reduce_fn fc_reduce_ref;
fc_pack_bits_fn fc_pack_bits_ref;
fc_unpack_add_fn fc_unpack_add_ref;
fc_gf_sum_fn fc_gf_sum_ref;
fc_gf_horner_fn fc_gf_horner_ref;
fc_read_fn fc_read_ref;
fc_decode_fn fc_decode_int8_ref, fc_decode_nf4_ref;

extern const float fc_dynamic_code[256];
#define FC_NF4_CODE         \
    {-1.0f,                 \
     -0.6961928009986877f,  \
     -0.5250730514526367f,  \
     -0.39491748809814453f, \
     -0.28444138169288635f, \
     -0.18477343022823334f, \
     -0.09105003625154495f, \
     0.0f,                  \
     0.07958029955625534f,  \
     0.16093020141124725f,  \
     0.24611230194568634f,  \
     0.33791524171829224f,  \
     0.44070982933044434f,  \
     0.5626170039176941f,   \
     0.7229568362236023f,   \
     1.0f}
fc_order_fn fc_order_f32_ref, fc_order_f16_ref, fc_order_bf16_ref;
/* The two ways of AVX-512, which takes the one that is fast on the processor. */
fc_order_fn fc_order_f32_floats_avx512, fc_order_f16_blends_avx512, fc_order_bf16_blends_avx512;
fc_order_fn fc_order_f32_keys_avx512, fc_order_f16_keys_avx512, fc_order_bf16_keys_avx512;
enum {
    FC_ORDER_SELECT = 400,
    FC_ORDER_SELECT_16 = 2000
}; /* rows from which medians are taken by selection, 16-bit ones */

extern const fc_kernels fc_kernels_ref;
#if defined(__x86_64__)
extern const fc_kernels fc_kernels_avx2, fc_kernels_avx512;
#if defined(FC_AMX)
extern const fc_kernels fc_kernels_amx;
#endif
#elif defined(__aarch64__)
extern const fc_kernels fc_kernels_neon;
#endif

/* A caller may have set flush-to-zero or another rounding; results must not depend on it. Every public function that
 * computes sets the IEEE defaults on entry and restores the caller's mode on return; so does every thread. */
#if defined(__x86_64__)
typedef unsigned fc_mode;
#elif defined(__aarch64__)
typedef uint64_t fc_mode;
#else
typedef int fc_mode;
#endif
fc_mode fc_enter_ieee(void);
void fc_leave_ieee(fc_mode mode);

/* dispatch.c: the only home of threads. */
const fc_kernels* fc_kernels_for(fc_isa isa); /* NULL: this machine lacks it */
/* NULL: this machine, or `isa`, lacks the instructions of the stream. */
const fc_stream_kernels* fc_stream_for(fc_stream stream, fc_isa isa);
int fc_stream_checked(const fc_stream_kernels* kernels, fc_stream stream); /* fc_stream_right, once a process */
typedef void fc_worker_fn(void* context, int worker);
/* Run fn on `threads` threads, the caller among them as worker 0; fewer if the system grants no more, so fn must share
 * its work through fc_next. */
void fc_parallel(int threads, fc_worker_fn* fn, void* context);
int64_t fc_next(int64_t* counter); /* atomic: the next item of work */
typedef struct fc_turn fc_turn;    /* lets items through one by one, in order */
fc_turn* fc_turn_new(void);
void fc_turn_wait(fc_turn* turn, int64_t item);
void fc_turn_done(fc_turn* turn);
void fc_turn_free(fc_turn* turn);
void* fc_alloc(size_t bytes); /* FC_ALIGN-aligned; free with free() */

static inline int64_t fc_columns(const fc_rows* x) { return x->starts[x->segments]; }
static inline int64_t fc_min(int64_t a, int64_t b) { return a < b ? a : b; }

/* The last of `count` ascending starts, of which the first is at most `at`, that is at most `at`. */
static inline int64_t fc_last_start(const int64_t* starts, int64_t count, int64_t at) {
    int64_t low = 0, high = count - 1;
    while (low < high) {
        const int64_t middle = (low + high + 1) / 2;
        if (starts[middle] <= at) low = middle;
        else high = middle - 1;
    }
    return low;
}

/* Where the window of n - f sorted elements first reaches the lower middle: see
 * fedcore/reference/mean_around_median.py. */
static inline int64_t fc_window_start(int64_t n, int64_t f) {
    const int64_t start = (n - 1) / 2 + 1 - (n - f);
    return start < 0 ? 0 : start;
}
static inline int64_t fc_ceil(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int fc_itemsize(fc_dtype dtype) { return dtype == FC_F64 ? 8 : dtype == FC_F32 ? 4 : 2; }

/* Columns start to start + length of row i as elements of x->dtype: where they lie, or, when they cross pieces or are
 * encoded, a copy in `scratch`, which has room for them. */
const void* fc_gather(const fc_kernels* kernels, const fc_rows* x, int64_t i, int64_t start, int64_t length,
                      void* scratch);

/* The factor of one block of a quantised tensor. */
static inline float fc_int8_scale(const void* const* scales, int64_t block) {
    return fc_load_f32(scales[0], block) / 127.0f;
}
static inline float fc_nf4_scale(const void* const* scales, int64_t block) {
    const float inner = fc_dynamic_code[((const uint8_t*)scales[0])[block]];
    return inner * fc_load_f32(scales[1], block / FC_NESTED) + fc_load_f32(scales[2], 0);
}
#endif
