/* weighted_sums with AVX2 and FMA: 4 outputs x 3 vectors of 4 columns in registers, half a strip at a time. */
#include <immintrin.h>

#include "ask_x86.h"
#include "widen_avx2.h"

/* sums live in registers only where every loop over them is unrolled */
#define UNROLL _Pragma("GCC unroll 8")
enum { STEP = 8 };
enum { WIDE = 3, COLUMNS = 4 * WIDE, OUTPUTS = 4 };

#define PACK(name, type)                                                                                        \
    void fc_weighted_sums_pack_##name##_avx2(const void* row, int64_t length, double* strips, int64_t stride) { \
        const char* at = row;                                                                                   \
        for (; length >= FC_SUMS_STRIP; length -= FC_SUMS_STRIP, strips += stride)                              \
            for (int v = 0; v < FC_SUMS_STRIP / 4; v++, at += 4 * fc_itemsize(type))                            \
                _mm256_store_pd(strips + 4 * v, widen4_f64(at, type));                                          \
        fc_weighted_sums_pack_##name##_ref(at, length, strips, stride);                                         \
    }
PACK(f32, FC_F32)
PACK(f16, FC_F16)
PACK(bf16, FC_BF16)

INLINE void tile(const double* strip, const double* w, int64_t rows, int outputs, double* acc, int64_t stride,
                 int first) {
    __m256d sum[OUTPUTS][WIDE];
    UNROLL for (int o = 0; o < outputs; o++) UNROLL for (int v = 0; v < WIDE; v++) sum[o][v] =
        first ? _mm256_setzero_pd() : _mm256_load_pd(acc + o * stride + 4 * v);
    for (int64_t k = 0; k < rows; k++) {
        __m256d x[WIDE];
        UNROLL for (int v = 0; v < WIDE; v++) x[v] = _mm256_load_pd(strip + k * FC_SUMS_STRIP + 4 * v);
        UNROLL for (int o = 0; o < outputs; o++) {
            const __m256d weight = _mm256_set1_pd(w[k * FC_SUMS_GROUP + o]);
            UNROLL for (int v = 0; v < WIDE; v++) sum[o][v] = _mm256_fmadd_pd(x[v], weight, sum[o][v]);
        }
    }
    UNROLL for (int o = 0; o < outputs; o++) UNROLL for (int v = 0; v < WIDE; v++)
        _mm256_store_pd(acc + o * stride + 4 * v, sum[o][v]);
}

void fc_weighted_sums_tile_avx2(const double* strip, const double* w, int64_t rows, int outputs, double* acc,
                                int64_t stride, int first) {
    for (int o = 0; o < outputs; o += OUTPUTS)
        for (int c = 0; c < FC_SUMS_STRIP; c += COLUMNS) {
            double* at = acc + o * stride + c;
            switch (outputs - o) {
                case 1:
                    tile(strip + c, w + o, rows, 1, at, stride, first);
                    break;
                case 2:
                    tile(strip + c, w + o, rows, 2, at, stride, first);
                    break;
                case 3:
                    tile(strip + c, w + o, rows, 3, at, stride, first);
                    break;
                default:
                    tile(strip + c, w + o, rows, OUTPUTS, at, stride, first);
            }
        }
}

/* 8 columns a step. */
INLINE void few(const void* const* rows, const double* w, int count, int outputs, int64_t length, double* acc,
                int64_t stride, int first, fc_dtype type) {
    const int amd = on_amd();
    for (int64_t k = 0; k + STEP <= length; k += STEP) {
        __m256d sum[FC_SUMS_FEW][2];
        UNROLL for (int o = 0; o < outputs; o++) UNROLL for (int v = 0; v < 2; v++) sum[o][v] =
            first ? _mm256_setzero_pd() : _mm256_load_pd(acc + o * stride + k + 4 * v);
        for (int r = 0; r < count; r++) {
            const char* at = (const char*)rows[r] + k * fc_itemsize(type);
            __m256d x[2];
            ask(at, amd);
            UNROLL for (int v = 0; v < 2; v++) x[v] = widen4_f64(at + 4 * v * fc_itemsize(type), type);
            UNROLL for (int o = 0; o < outputs; o++) {
                const __m256d weight = _mm256_set1_pd(w[r * FC_SUMS_FEW + o]);
                UNROLL for (int v = 0; v < 2; v++) sum[o][v] = _mm256_fmadd_pd(x[v], weight, sum[o][v]);
            }
        }
        UNROLL for (int o = 0; o < outputs; o++) UNROLL for (int v = 0; v < 2; v++)
            _mm256_store_pd(acc + o * stride + k + 4 * v, sum[o][v]);
    }
}

#define FEW(name, type)                                                                                       \
    void fc_weighted_sums_few_##name##_avx2(const void* const* rows, const double* w, int count, int outputs, \
                                            int64_t length, double* acc, int64_t stride, int first) {         \
        const int64_t done = length / STEP * STEP;                                                            \
        const void* rest[FC_SUMS_STREAMS];                                                                    \
        if (outputs == 1) few(rows, w, count, 1, length, acc, stride, first, type);                           \
        if (outputs == 2) few(rows, w, count, 2, length, acc, stride, first, type);                           \
        if (outputs == 3) few(rows, w, count, 3, length, acc, stride, first, type);                           \
        if (outputs == 4) few(rows, w, count, 4, length, acc, stride, first, type);                           \
        for (int r = 0; r < count; r++) rest[r] = (const char*)rows[r] + done * fc_itemsize(type);            \
        fc_weighted_sums_few_##name##_ref(rest, w, count, outputs, length - done, acc + done, stride, first); \
    }
FEW(f32, FC_F32)
FEW(f16, FC_F16)
FEW(bf16, FC_BF16)
