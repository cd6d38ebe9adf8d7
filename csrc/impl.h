/* What the parts of csrc share: kernel signatures, the table of an ISA, scalar conversions, threading. Not public. */
#ifndef FEDCORE_IMPL_H
#define FEDCORE_IMPL_H
#include <math.h>
#include <stddef.h>
#include <string.h>

#include "fedcore.h"

enum {
    FC_WS_GROUP = 5,      /* rows that one accumulate call takes: streams in flight a thread */
    FC_WS_TILE = 16384,   /* columns whose fp64 sums stay in the second-level cache */
    FC_NORM_BLOCK = 4096, /* fixed by the definition: fedcore/reference/squared_norms.py */
    FC_NORM_LANES = 32,
    FC_GRAM_BLOCK = 256, /* fixed by the definition: fedcore/reference/gram.py */
    FC_GRAM_CHUNK = 8192,
    FC_GRAM_PANEL = 16, /* rows a packed panel holds: [column][row] */
    FC_GRAM_ROWS = 8,   /* rows that one tile of products covers, half a panel */
    FC_GRAM_WIDE = 3,   /* panels that one tile covers at most */
    FC_GRAM_AHEAD = 64 * FC_GRAM_BLOCK / 4,
    FC_ALIGN = 64,
};

/* acc[k] (+)= sum of w[r] * rows[r][k] over `count` <= FC_WS_GROUP rows in order; `first`: start from 0.0, do not read
 * acc. An implementation may keep acc in an order of its own inside whole groups of columns; its finish knows it. */
typedef void fc_accumulate_fn(const void* const* rows, const double* w, int count, int64_t length, double* acc,
                              int first);
/* out[k] = round(acc[k] / divisor) (NaN: no division); `stream`: bypass the cache where possible. 1 if any is not
 * finite. */
typedef int fc_finish_fn(const double* acc, int64_t length, double divisor, void* out, int stream);
/* Squared norm of one block (length <= FC_NORM_BLOCK) of a row, less `center` (fp32, NULL for zero). */
typedef double fc_block_norm_fn(const void* row, const float* center, int64_t length);
/* panel[k][r] = fp32(row r, column k) - center[k] for `count` <= FC_GRAM_PANEL rows; other rows of the panel are 0.
 * peak[r]: the largest magnitude of row r, as bits, so that Inf and NaN are above every number. */
typedef void fc_gram_pack_fn(const void* const* rows, int count, const float* center, int64_t length, float* panel,
                             uint32_t* peak);
/* Products of `rows` rows of panel a (FC_GRAM_ROWS, or half of it where the cohort ends) with `wide` panels b,
 * panel_stride apart: accumulated in fp32 in column order, times row_scale[r] * column_scale[c] (NULL: all scales are
 * 1), added to the fp64 matrix `sum` of row stride `stride`. ahead: two stretches of FC_GRAM_AHEAD bytes that will be
 * packed next; asking for them here hides memory behind products. */
typedef void fc_gram_tile_fn(const float* a, int rows, const float* b, int64_t panel_stride, int wide, int64_t length,
                             double* sum, int64_t stride, const double* row_scale, const double* column_scale,
                             const char* const ahead[2]);
typedef void fc_to_f32_fn(const void* row, int64_t length, float* out);
typedef uint64_t fc_read_fn(const void* const* rows, int count, int64_t bytes);

typedef struct {
    fc_accumulate_fn* accumulate[3];
    fc_finish_fn* finish[3][4]; /* by row dtype, whose layout acc has, and output dtype */
    fc_block_norm_fn* block_norm[3];
    fc_gram_pack_fn* gram_pack[3];
    fc_gram_tile_fn* gram_tile;
    fc_to_f32_fn* to_f32[3];
    fc_read_fn* read;
} fc_kernels;

/* The portable kernels: every other ISA uses them for what is left over. */
fc_accumulate_fn fc_weighted_sum_f32_ref, fc_weighted_sum_f16_ref, fc_weighted_sum_bf16_ref;
fc_finish_fn fc_weighted_sum_to_f32_ref, fc_weighted_sum_to_f16_ref, fc_weighted_sum_to_bf16_ref,
    fc_weighted_sum_to_f64_ref;
fc_block_norm_fn fc_squared_norms_f32_ref, fc_squared_norms_f16_ref, fc_squared_norms_bf16_ref;
fc_gram_pack_fn fc_gram_pack_f32_ref, fc_gram_pack_f16_ref, fc_gram_pack_bf16_ref;
fc_gram_tile_fn fc_gram_tile_ref;
fc_to_f32_fn fc_to_f32_f32_ref, fc_to_f32_f16_ref, fc_to_f32_bf16_ref;
fc_read_fn fc_read_ref;

extern const fc_kernels fc_kernels_ref;
#if defined(__x86_64__)
extern const fc_kernels fc_kernels_avx2, fc_kernels_avx512;
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
static inline int64_t fc_ceil(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int fc_itemsize(fc_dtype dtype) { return dtype == FC_F64 ? 8 : dtype == FC_F32 ? 4 : 2; }

/* Columns start to start + length of row i: where they lie, or, when they cross pieces, a copy in `scratch`. */
const void* fc_gather(const fc_rows* x, int64_t i, int64_t start, int64_t length, void* scratch);

static inline uint32_t fc_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}
static inline float fc_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}
static inline float fc_load_f32(const void* row, int64_t k) {
    float value;
    memcpy(&value, (const char*)row + 4 * k, 4);
    return value;
}
static inline float fc_load_bf16(const void* row, int64_t k) {
    uint16_t bits;
    memcpy(&bits, (const char*)row + 2 * k, 2);
    return fc_float((uint32_t)bits << 16);
}
static inline float fc_load_f16(const void* row, int64_t k) {
    uint16_t half;
    memcpy(&half, (const char*)row + 2 * k, 2);
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, exponent = (half >> 10) & 31, mantissa = half & 1023;
    if (exponent == 31) return fc_float(sign | 0x7f800000 | mantissa << 13);
    if (exponent) return fc_float(sign | (exponent + 112) << 23 | mantissa << 13);
    float value = (float)mantissa * 0x1p-24f; /* exact: subnormal halves are normal floats */
    return fc_float(sign | fc_bits(value));
}

/* fp64 to a 16-bit float with `ebits` exponent bits: one rounding, to nearest even, in integers alone. */
static inline uint16_t fc_round16(double value, int ebits) {
    const int mbits = 15 - ebits, bias = (1 << (ebits - 1)) - 1;
    uint64_t bits;
    memcpy(&bits, &value, 8);
    const uint16_t sign = (uint16_t)(bits >> 48 & 0x8000), infinity = (uint16_t)(((1 << ebits) - 1) << mbits);
    const uint64_t fraction = bits & 0xfffffffffffffull;
    const int exponent = (int)(bits >> 52 & 0x7ff);
    if (exponent == 0x7ff) return (uint16_t)(sign | infinity | (fraction ? 1 << (mbits - 1) : 0));
    if (exponent == 0) return sign;            /* below half of the least subnormal of either format */
    const int target = exponent - 1023 + bias; /* biased exponent in the 16-bit format */
    const uint64_t mantissa = fraction | 1ull << 52;
    int shift = 52 - mbits + (target < 1 ? 1 - target : 0);
    if (shift > 54) return sign;
    const uint64_t half = 1ull << (shift - 1), rest = mantissa & ((half << 1) - 1);
    uint64_t kept = mantissa >> shift;
    kept += rest > half || (rest == half && (kept & 1));
    /* a normal number's hidden bit adds 1 to the exponent field; a carry runs into it, which is right too */
    const uint64_t packed = target < 1 ? kept : kept + ((uint64_t)(target - 1) << mbits);
    return (uint16_t)(sign | (packed >= infinity ? infinity : packed));
}
#endif
