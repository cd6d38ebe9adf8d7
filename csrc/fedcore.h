/* fedcore's public C API.
 *
 * Contracts for every function:
 *   - Row data is read only, at any alignment. Outputs must not overlap rows. NULL is never accepted unless said.
 *   - Little-endian machines. Columns and bytes are counted in int64_t.
 *   - Calls from several threads at once are independent, and a forked child may call at once. The library remembers
 *     what CPUID says and which stream kernels passed their own test, in atomics, and nothing of its callers.
 *   - `isa` forces an implementation (FC_ISA_AUTO picks the best); one the machine lacks gives FC_NO_ISA.
 *   - `threads` is at least 1 and counts the caller. Threads live for one call only; each sets its own rounding and
 *     flush mode to IEEE defaults and the caller's is restored on return.
 *   - FC_ISA_AMX asks Linux, once, to let the process use tile data. From then on sigaltstack wants some 8 KiB more;
 *     where a thread has a smaller one already, Linux refuses and the ISA is not available. No tile state outlives a
 * call.
 *   - Results depend on neither `threads` nor, where the op says so, `isa`.
 */
#ifndef FEDCORE_H
#define FEDCORE_H
#include <stdint.h>

typedef enum {
    FC_F32 = 0,
    FC_F16 = 1,
    FC_BF16 = 2,
    FC_F64 = 3,
    FC_INT8 = 4,
    FC_NF4 = 5,
    FC_U32 = 6,
    FC_U64 = 7
} fc_dtype;
typedef enum {
    FC_ISA_AUTO = 0,
    FC_ISA_REF = 1,
    FC_ISA_AVX2 = 2,
    FC_ISA_AVX512 = 3,
    FC_ISA_NEON = 4,
    FC_ISA_AMX = 5
} fc_isa;
typedef enum { FC_OK = 0, FC_NOT_FINITE = 1, FC_NO_MEMORY = 2, FC_NO_ISA = 3, FC_WRONG_STREAM = 4 } fc_status;
typedef enum { FC_CHACHA20 = 0, FC_AES256CTR = 1 } fc_stream;

/* How pieces lie that are not simply elements of their rows' dtype. Each is a tensor of which a range of elements
 * counts: column starts[k] + c of row i is element origins[k * rows + i] + c of the tensor at pointers[k * rows + i],
 * in the format formats[k * rows + i]: FC_F32, FC_F16, FC_BF16, or quantised as defined in fedcore/quantized.py:
 * FC_INT8 or FC_NF4. scales: three tables like `pointers`, one after the other, of the scale arrays: absmax (fp32) of
 * FC_INT8; absmax (uint8), nested absmax (fp32) and offset (fp32) of FC_NF4; at any alignment; entries without a use
 * are not read. */
typedef struct {
    const uint8_t* formats;
    const void* const* scales;
    const int64_t* origins;
} fc_encoding;

/* n rows, at least 1, in `segments` pieces: piece k of row i holds columns starts[k] to starts[k + 1] and begins at
 * pointers[k * rows + i]. starts has segments + 1 entries, the first 0. dtype: FC_F32, FC_F16 or FC_BF16.
 * encoding: NULL, or how the pieces lie; dtype is then FC_F32, what they are decoded to, a tile at a time, in cache:
 * every result has the bits of the same op on the decoded rows. */
typedef struct {
    const void* const* pointers;
    const int64_t* starts;
    int64_t segments;
    int64_t rows;
    fc_dtype dtype;
    const fc_encoding* encoding;
} fc_rows;

/* The LoRA factors of one module: client i's B is (d_out, ranks[i]) at b[i], its A is (ranks[i], d_in) at a[i], row by
 * row; ranks differ from client to client and may be 0. b_dtypes, a_dtypes: FC_F32, FC_F16 or FC_BF16 of each, or
 * FC_F64 where that is said. */
typedef struct {
    const void* const* b;
    const void* const* a;
    const uint8_t* b_dtypes;
    const uint8_t* a_dtypes;
    const int64_t* ranks;
    int64_t clients;
    int64_t d_out;
    int64_t d_in;
} fc_factors;

/* A discrete Gaussian as fedcore/gaussian_table.py defines it: entry k of the table is first[k] / 2 * 2^128 +
 * rest[2k] * 2^64 + rest[2k + 1]. There are 1 to 254, they fall, first words are even, the last one is 0, and at most
 * 126 are not. `draws` is 1 to 9, strides are below 2^31. */
typedef struct {
    const uint32_t* first;
    const uint64_t* rest;
    const int64_t* strides;
    int64_t entries;
    int64_t draws;
} fc_gaussian_table;

/* 1 if this machine runs `isa`. */
int fc_isa_available(fc_isa isa);
/* What FC_ISA_AUTO means here. */
fc_isa fc_isa_best(void);

/* out[k] = round((sum over i in row order of (double)weights[i] * (double)x[i][k]) / divisor): fp64 from 0.0, one
 * rounding to out_dtype; rows of weight 0 are not read; divisor NaN means none. out: `columns` elements, contiguous.
 * FC_NOT_FINITE if any output is Inf or NaN. Same bits on every ISA. */
int fc_weighted_sum(const fc_rows* x, const float* weights, double divisor, void* out, fc_dtype out_dtype, fc_isa isa,
                    int threads);

/* Several weighted sums from one read: out[a * columns + k] is what fc_weighted_sum gives with the weights
 * weights[a * rows + i] and the divisor divisors[a] (NULL: none), a < count. Rows whose weights are all 0 are not read.
 * FC_NOT_FINITE if any output is Inf or NaN. Same bits on every ISA. */
int fc_weighted_sums(const fc_rows* x, const float* weights, int64_t count, const double* divisors, void* out,
                     fc_dtype out_dtype, fc_isa isa, int threads);

/* The three statistics below add to what `out` holds: start it at 0.0, or go on from the columns before. Tiles of
 * columns whose widths are multiples of 8192 (the last may be any) then give the bits of one pass. After FC_NO_MEMORY
 * `out` holds nothing of use.
 *
 * out[i] += sum over k of (x[i][k] - center[k])^2 in fp64, in the lane order of fedcore/reference/squared_norms.py.
 * center: one row with the same starts, of any row dtype, or NULL for zero. Same bits on every ISA. */
int fc_squared_norms(const fc_rows* x, const fc_rows* center, double* out, fc_isa isa, int threads);

/* out[i * rows + j] += sum over k of (x[i][k] - center[k]) (x[j][k] - center[k]) where i or j is at least `first` (0:
 * the whole matrix; else the rows that have come since rows 0 to first - 1 were done). Only j <= i is read, and
 * out[j][i] becomes out[i][j]. Blocks and error bound as in fedcore/reference/gram.py. out[i * rows + i] is not finite
 * where row i (or the center) is not. An entry's bits depend on its two rows and the center alone. They are the same on
 * every ISA but FC_ISA_AMX, which has bits of its own, inside the same bound. */
int fc_gram(const fc_rows* x, const fc_rows* center, int64_t first, double* out, fc_isa isa, int threads);

/* out[p] += sum over k, in order, of (y[i][k] - y[j][k])^2 in fp64 for (i, j) = pairs[2p], pairs[2p + 1], where y are
 * the rows, or, with mix (mixtures, rows), the mixtures y[m] = sum of mix[m][i] x[i] in fp64 from 0.0, rows in order.
 */
int fc_squared_distances(const fc_rows* x, const int64_t* pairs, int64_t count, const double* mix, int64_t mixtures,
                         double* out, fc_isa isa, int threads);

/* Order statistics of each column: its n values in the order of fedcore/reference/order.py, sums in fp64, one rounding
 * to out_dtype, a zero as +0. out: `columns` elements, contiguous. FC_NOT_FINITE if any element or output is Inf or
 * NaN. Same bits on every ISA. Median: the middle value, or half the sum of the middle two. */
int fc_median(const fc_rows* x, void* out, fc_dtype out_dtype, fc_isa isa, int threads);
/* Mean of what is left without the f least and the f greatest; 0 <= 2f < rows. */
int fc_trimmed_mean(const fc_rows* x, int64_t f, void* out, fc_dtype out_dtype, fc_isa isa, int threads);
/* Mean of the rows - f values closest to the median, ties to the smaller; 0 <= f < rows. */
int fc_mean_around_median(const fc_rows* x, int64_t f, void* out, fc_dtype out_dtype, fc_isa isa, int threads);

/* out[k] = how many rows have x[i][k] > center[k], less how many have x[i][k] < center[k]; exact. center: one row with
 * as many columns, of any row dtype, or NULL for zero. FC_NOT_FINITE if any element of rows or center is Inf or NaN. */
int fc_sign_counts(const fc_rows* x, const fc_rows* center, int32_t* out, fc_isa isa, int threads);

/* out[k] = scale * x[0][k] rounded to an integer, ties to even; x has one row. scale has at most 24 significant bits
 * and keeps every product at most 2^30 in size (fedcore/reference/clip_round.py). *squares: the exact sum of squares of
 * out. A row with Inf or NaN must not be given. Same on every ISA. */
int fc_clip_round(const fc_rows* x, double scale, int32_t* out, int64_t* squares, fc_isa isa, int threads);
/* out[k] = round((sum over i of what fc_clip_round gives of row i with scales[i], + noise[k]) * grid / divisor): exact
 * before the division, one rounding to out_dtype. Rows of scale 0 are not read. noise: NULL for none. grid: a power of
 * two; divisor NaN means none. No partial sum may exceed 2^50 in size. FC_NOT_FINITE if a noise is not from -2^50
 * to 2^50 - 1 or an output is Inf or NaN. Same on every ISA. */
int fc_clip_noise_accumulate(const fc_rows* x, const double* scales, double grid, const int64_t* noise, double divisor,
                             void* out, fc_dtype out_dtype, fc_isa isa, int threads);

/* In place: the orthonormal fast Walsh-Hadamard transform of each `block` elements of x, stage by stage in fp32, as
 * defined in fedcore/reference/hadamard.py. block: a power of two that divides length. FC_NOT_FINITE if any output is
 * Inf or NaN. Same bits on every ISA. */
int fc_hadamard(float* x, int64_t length, int64_t block, fc_isa isa, int threads);

/* Exact sums. Column k has the value levels[0][k] + ... + levels[count - 1][k], never rounded (fedcore/expansion.py).
 * depth[c]: the levels that chunk c of FC_EXACT_CHUNK columns uses; the others are all 0 there and are not touched.
 *
 * Adds weight * x[0][k] to each; x has one row. All depth[c] must be below `count` on entry (else FC_NO_MEMORY); they
 * grow by at most 1. FC_NOT_FINITE if an element is Inf or NaN: nothing has been added then. Same values on every
 * ISA. */
int fc_exact_sum(double* const* levels, int64_t count, uint8_t* depth, const fc_rows* x, float weight, fc_isa isa,
                 int threads);
/* out[k] = round(RN64(exact value of column k) / divisor), as the last steps of fc_weighted_sum; the value alone
 * decides the bits, not the levels that hold it. FC_NOT_FINITE if any output is Inf or NaN. */
int fc_exact_round(const double* const* levels, const uint8_t* depth, int64_t columns, double divisor, void* out,
                   fc_dtype out_dtype, fc_isa isa, int threads);

/* out = round(sum over i of coefficients[i] * B_i A_i, + base), (d_out, d_in) row by row, as defined in
 * fedcore/reference/lora_delta_sum.py: clients of coefficient 0 are not read; coefficients NULL: 1 for
 * all. base: (d_out, d_in) of base_dtype
 * (FC_F32, FC_F16, FC_BF16), or NULL for none; `out` may be `base` where the dtypes are equal. FC_NOT_FINITE if any
 * output is Inf or NaN. Same bits on every ISA. */
int fc_lora_delta_sum(const fc_factors* x, const double* coefficients, const void* base, fc_dtype base_dtype, void* out,
                      fc_dtype out_dtype, fc_isa isa, int threads);

/* All inner products of the terms of all clients, R = sum of ranks of them in client order: gram_b[p * R + q] = columns
 * p and q of the stacked B, gram_a[p * R + q] = rows p and q of the stacked A; symmetric, fp64, as defined in
 * fedcore/reference/lora_blocks.py. Factors may be FC_F64 here. Same bits on every ISA. */
int fc_lora_blocks(const fc_factors* x, double* gram_b, double* gram_a, fc_isa isa, int threads);
/* out[i * clients + j] += <scales[i] B_i A_i, scales[j] B_j A_j>, symmetric, from the same blocks: out may hold the sum
 * over other modules. Row i's diagonal entry is not finite where a factor of client i is not. */
int fc_lora_gram(const fc_factors* x, const double* scales, double* out, fc_isa isa, int threads);

/* Order statistics of the clients' dense products: out[p][q], (d_out, d_in) row by row, is what fc_median or
 * fc_trimmed_mean gives of the n rows that fc_lora_delta_sum gives in FC_F32 for each client alone with its coefficient
 * (NULL: 1). A client of coefficient 0 or rank 0 counts as zeros. 0 <= 2f < clients. FC_NOT_FINITE if any product or
 * output is Inf or NaN. Same bits on every ISA. */
int fc_lora_delta_median(const fc_factors* x, const double* coefficients, void* out, fc_dtype out_dtype, fc_isa isa,
                         int threads);
int fc_lora_delta_trimmed_mean(const fc_factors* x, const double* coefficients, int64_t f, void* out,
                               fc_dtype out_dtype, fc_isa isa, int threads);

/* Keystreams: ChaCha20 (RFC 8439) in blocks of 64 bytes, AES-256-CTR (NIST SP 800-38A, the counter block is the nonce
 * and then the block counter, big-endian) in blocks of 16. key: 32 bytes, nonce: 12. `counter` numbers the first block;
 * it must not pass 2^32 within the stream. FC_AES256CTR needs AES-NI, and so one of the x86 ISAs beyond FC_ISA_REF;
 * with VAES it is taken where `isa` is AVX-512. FC_WRONG_STREAM, with nothing written, if the kernels do not give the
 * published answers on this machine: they are checked before their first use in a process.
 *
 * 1 if `isa` has kernels for the stream on this machine. */
int fc_stream_available(fc_stream stream, fc_isa isa);
/* out[k] = byte k of the stream from block `counter` on, k < size. */
int fc_keystream(fc_stream stream, const uint8_t* key, const uint8_t* nonce, uint32_t counter, uint8_t* out,
                 int64_t size, fc_isa isa, int threads);
/* values[k] += the sum over i < count of signs[i] * word k of the stream of key i (keys + 32 * i), modulo 2^32, for
 * k < length; words are little-endian, signs are 1 or -1. All keys have one nonce and counter. */
int fc_keystream_add(uint32_t* values, int64_t length, fc_stream stream, const uint8_t* keys, int64_t count,
                     const uint8_t* nonce, uint32_t counter, const int8_t* signs, fc_isa isa, int threads);

/* out[k] = sample counter + k, k < size, as defined in fedcore/reference/discrete_gaussian.py, with `stream` in place
 * of ChaCha20; counter + size is at most 2^63. Constant time: what runs and what is read depends on the table and on
 * size and counter alone. FC_WRONG_STREAM as for keystreams. Same samples on every ISA. */
int fc_discrete_gaussian(const fc_gaussian_table* table, fc_stream stream, const uint8_t* key, int64_t counter,
                         int64_t* out, int64_t size, fc_isa isa, int threads);

/* Masks of secure aggregation, as defined in fedcore/reference/mask_add.py: out[k] = q(values[k]) + the sum over j <
 * keys of signs[j] * word counter + k of the stream of key j (key + 32 * j), nonce 0, modulo 2^bits, k < length. dtype
 * of values: FC_F32 and FC_F64, which are quantised by scale and limit, a whole number; FC_U32 and FC_U64 as they are.
 * out and the streams' words are uint32 up to 32 bits, uint64 above; `out` may be `values` where they are of one size.
 * counter + length words are within 2^32 blocks. FC_NOT_FINITE, with out of no use, if a value is Inf or NaN.
 * `packed`: out gets what fc_pack_bits makes of the residues; counter is then a multiple of 8, and values lie
 * elsewhere. FC_WRONG_STREAM as for keystreams. Same on every ISA. Schedules, keystream and stack are wiped. */
int fc_mask_add(const void* values, fc_dtype dtype, int64_t length, double scale, double limit, fc_stream stream,
                const uint8_t* key, int64_t keys, const int8_t* signs, int bits, int64_t counter, int packed, void* out,
                fc_isa isa, int threads);

/* Residues of `bits` bits (uint32 up to 32, uint64 above) one after the other: (count * bits + 7) / 8 bytes, as defined
 * in fedcore/reference/pack_bits.py; and total[k] += them modulo 2^bits. Same on every ISA. */
int fc_pack_bits(const void* residues, int bits, int64_t count, uint8_t* out, fc_isa isa, int threads);
int fc_unpack_add(const uint8_t* packed, int bits, int64_t count, void* total, fc_isa isa, int threads);

/* Shamir's shares over GF(2^8), as defined in fedcore/reference/shamir_split.py: out[(x - 1) * size + b] is share x of
 * secrets[b], b < size, 1 <= x <= shares <= 255; 1 <= threshold <= shares. Coefficients are the ChaCha20 of `key`,
 * nonce 0. Constant time in secrets and key; all else that the key makes is wiped. */
int fc_shamir_split(const uint8_t* secrets, int64_t size, int threshold, int shares, const uint8_t* key, uint8_t* out,
                    fc_isa isa);
/* The secrets of shares: shares[i * size + b] is for points[i], i < count <= 255; points are different, none is 0.
 * Constant time in shares. Same on every ISA. */
int fc_shamir_combine(const uint8_t* points, const uint8_t* shares, int count, int64_t size, uint8_t* out, fc_isa isa);

/* Read every byte of every row and nothing else, `streams` rows at a time: the roof that benchmarks compare with.
 * x->encoding must be NULL.
 * *digest receives the OR of all words, so that no read can be dropped. */
int fc_read(const fc_rows* x, int streams, uint64_t* digest, fc_isa isa, int threads);

#endif
