/* weighted_sums with AVX-512 F: 8 outputs x 3 vectors of sums in registers, so that 24 chains of additions hide the
 * latency of both multipliers and each weight, loaded once, serves three products. */
#include <immintrin.h>

#include "ask_x86.h"
#include "widen_avx512.h"

/* sums live in registers only where every loop over them is unrolled */
#define UNROLL _Pragma("GCC unroll 8")
enum { STEP = 32 };
enum { WIDE = FC_SUMS_STRIP / 8 };

#define PACK(name, type)                                                                                          \
    void fc_weighted_sums_pack_##name##_avx512(const void* row, int64_t length, double* strips, int64_t stride) { \
        const char* at = row;                                                                                     \
        for (; length >= FC_SUMS_STRIP; length -= FC_SUMS_STRIP, strips += stride)                                \
            for (int v = 0; v < WIDE; v++, at += 8 * fc_itemsize(type))                                           \
                _mm512_store_pd(strips + 8 * v, widen8_f64(at, type));                                            \
        fc_weighted_sums_pack_##name##_ref(at, length, strips, stride);                                           \
    }
PACK(f32, FC_F32)
PACK(f16, FC_F16)
PACK(bf16, FC_BF16)

INLINE void tile(const double* strip, const double* w, int64_t rows, int outputs, double* acc, int64_t stride,
                 int first) {
    __m512d sum[FC_SUMS_GROUP][WIDE];
    UNROLL for (int o = 0; o < outputs; o++) UNROLL for (int v = 0; v < WIDE; v++) sum[o][v] =
        first ? _mm512_setzero_pd() : _mm512_load_pd(acc + o * stride + 8 * v);
    for (int64_t k = 0; k < rows; k++) {
        __m512d x[WIDE];
        UNROLL for (int v = 0; v < WIDE; v++) x[v] = _mm512_load_pd(strip + k * FC_SUMS_STRIP + 8 * v);
        UNROLL for (int o = 0; o < outputs; o++) {
            const __m512d weight = _mm512_set1_pd(w[k * FC_SUMS_GROUP + o]);
            UNROLL for (int v = 0; v < WIDE; v++) sum[o][v] = _mm512_fmadd_pd(x[v], weight, sum[o][v]);
        }
    }
    UNROLL for (int o = 0; o < outputs; o++) UNROLL for (int v = 0; v < WIDE; v++)
        _mm512_store_pd(acc + o * stride + 8 * v, sum[o][v]);
}

void fc_weighted_sums_tile_avx512(const double* strip, const double* w, int64_t rows, int outputs, double* acc,
                                  int64_t stride, int first) {
#define CASE(count)                                      \
    case count:                                          \
        tile(strip, w, rows, count, acc, stride, first); \
        break;
    switch (outputs) { CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) }
#undef CASE
}

/* 32 columns a step. */
INLINE void few(const void* const* rows, const double* w, int count, int outputs, int64_t length, double* acc,
                int64_t stride, int first, fc_dtype type) {
    const int amd = on_amd();
    for (int64_t k = 0; k + STEP <= length; k += STEP) {
        __m512d sum[FC_SUMS_FEW][4];
        UNROLL for (int o = 0; o < outputs; o++) UNROLL for (int v = 0; v < 4; v++) sum[o][v] =
            first ? _mm512_setzero_pd() : _mm512_load_pd(acc + o * stride + k + 8 * v);
        for (int r = 0; r < count; r++) {
            const char* at = (const char*)rows[r] + k * fc_itemsize(type);
            __m512d x[4];
            for (int64_t b = 0; b < 32 * fc_itemsize(type); b += 64) ask(at + b, amd);
            UNROLL for (int v = 0; v < 4; v++) x[v] = widen8_f64(at + 8 * v * fc_itemsize(type), type);
            UNROLL for (int o = 0; o < outputs; o++) {
                const __m512d weight = _mm512_set1_pd(w[r * FC_SUMS_FEW + o]);
                UNROLL for (int v = 0; v < 4; v++) sum[o][v] = _mm512_fmadd_pd(x[v], weight, sum[o][v]);
            }
        }
        UNROLL for (int o = 0; o < outputs; o++) UNROLL for (int v = 0; v < 4; v++)
            _mm512_store_pd(acc + o * stride + k + 8 * v, sum[o][v]);
    }
}

#define FEW(name, type)                                                                                         \
    void fc_weighted_sums_few_##name##_avx512(const void* const* rows, const double* w, int count, int outputs, \
                                              int64_t length, double* acc, int64_t stride, int first) {         \
        const int64_t done = length / STEP * STEP;                                                              \
        const void* rest[FC_SUMS_STREAMS];                                                                      \
        if (outputs == 1) few(rows, w, count, 1, length, acc, stride, first, type);                             \
        if (outputs == 2) few(rows, w, count, 2, length, acc, stride, first, type);                             \
        if (outputs == 3) few(rows, w, count, 3, length, acc, stride, first, type);                             \
        if (outputs == 4) few(rows, w, count, 4, length, acc, stride, first, type);                             \
        for (int r = 0; r < count; r++) rest[r] = (const char*)rows[r] + done * fc_itemsize(type);              \
        fc_weighted_sums_few_##name##_ref(rest, w, count, outputs, length - done, acc + done, stride, first);   \
    }
FEW(f32, FC_F32)
FEW(f16, FC_F16)
FEW(bf16, FC_BF16)
