/* fedcore's public C API.
 *
 * Contracts for every function:
 *   - Row data is read only, at any alignment. Outputs must not overlap rows. NULL is never accepted unless said.
 *   - Little-endian machines. Columns and bytes are counted in int64_t.
 *   - No global state: calls from several threads at once are independent, and a forked child may call at once.
 *   - `isa` forces an implementation (FC_ISA_AUTO picks the best); one the machine lacks gives FC_NO_ISA.
 *   - `threads` is at least 1 and counts the caller. Threads live for one call only; each sets its own rounding and
 *     flush mode to IEEE defaults and the caller's is restored on return.
 *   - Results depend on neither `threads` nor, where the op says so, `isa`.
 */
#ifndef FEDCORE_H
#define FEDCORE_H
#include <stdint.h>

typedef enum { FC_F32 = 0, FC_F16 = 1, FC_BF16 = 2, FC_F64 = 3 } fc_dtype;
typedef enum { FC_ISA_AUTO = 0, FC_ISA_REF = 1, FC_ISA_AVX2 = 2, FC_ISA_AVX512 = 3, FC_ISA_NEON = 4 } fc_isa;
typedef enum { FC_OK = 0, FC_NOT_FINITE = 1, FC_NO_MEMORY = 2, FC_NO_ISA = 3 } fc_status;

/* n rows in `segments` pieces: piece k of row i holds columns starts[k] to starts[k + 1] and begins at
 * pointers[k * rows + i]. starts has segments + 1 entries, the first 0. dtype: FC_F32, FC_F16 or FC_BF16. */
typedef struct {
    const void* const* pointers;
    const int64_t* starts;
    int64_t segments;
    int64_t rows;
    fc_dtype dtype;
} fc_rows;

/* 1 if this machine runs `isa`. */
int fc_isa_available(fc_isa isa);
/* What FC_ISA_AUTO means here. */
fc_isa fc_isa_best(void);

/* out[k] = round((sum over i in row order of (double)weights[i] * (double)x[i][k]) / divisor): fp64 from 0.0, one
 * rounding to out_dtype; rows of weight 0 are not read; divisor NaN means none. out: `columns` elements, contiguous.
 * FC_NOT_FINITE if any output is Inf or NaN. Same bits on every ISA. */
int fc_weighted_sum(const fc_rows* x, const float* weights, double divisor, void* out, fc_dtype out_dtype, fc_isa isa,
                    int threads);

/* out[i] = sum over k of (x[i][k] - center[k])^2 in fp64, in the lane order of fedcore/reference/squared_norms.py.
 * center: one row with the same starts, of any row dtype, or NULL for zero. Same bits on every ISA. */
int fc_squared_norms(const fc_rows* x, const fc_rows* center, double* out, fc_isa isa, int threads);

/* out[i * rows + j] = sum over k of (x[i][k] - center[k]) (x[j][k] - center[k]); blocks and error bound as in
 * fedcore/reference/gram.py. out[i * rows + i] is not finite where row i (or the center) is not. Same bits on every
 * ISA. */
int fc_gram(const fc_rows* x, const fc_rows* center, double* out, fc_isa isa, int threads);

/* out[p] = sum over k, in order, of (x[i][k] - x[j][k])^2 in fp64 for (i, j) = pairs[2p], pairs[2p + 1]. */
int fc_squared_distances(const fc_rows* x, const int64_t* pairs, int64_t count, double* out, fc_isa isa, int threads);

/* Read every byte of every row and nothing else, `streams` rows at a time: the roof that benchmarks compare with.
 * *digest receives the OR of all words, so that no read can be dropped. */
int fc_read(const fc_rows* x, int streams, uint64_t* digest, fc_isa isa, int threads);

#endif
