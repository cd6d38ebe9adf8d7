/* weighted_sums with NEON (64-bit Arm): 4 outputs x 6 vectors of 2 columns in registers, half a strip at a time. */
#include <arm_neon.h>

#include "impl.h"
#include "widen_neon.h"

/* sums live in registers only where every loop over them is unrolled */
#define UNROLL _Pragma("GCC unroll 8")
enum { STEP = 8 };
enum { WIDE = 6, COLUMNS = 2 * WIDE, OUTPUTS = 4 };

#define PACK(name, type)                                                                                        \
    void fc_weighted_sums_pack_##name##_neon(const void* row, int64_t length, double* strips, int64_t stride) { \
        const char* at = row;                                                                                   \
        for (; length >= FC_SUMS_STRIP; length -= FC_SUMS_STRIP, strips += stride)                              \
            for (int c = 0; c < FC_SUMS_STRIP; c += 4, at += 4 * fc_itemsize(type)) {                           \
                const float32x4_t x = widen4_f32(at, type);                                                     \
                vst1q_f64(strips + c, vcvt_f64_f32(vget_low_f32(x)));                                           \
                vst1q_f64(strips + c + 2, vcvt_high_f64_f32(x));                                                \
            }                                                                                                   \
        fc_weighted_sums_pack_##name##_ref(at, length, strips, stride);                                         \
    }
PACK(f32, FC_F32)
PACK(f16, FC_F16)
PACK(bf16, FC_BF16)

INLINE void tile(const double* strip, const double* w, int64_t rows, int outputs, double* acc, int64_t stride,
                 int first) {
    float64x2_t sum[OUTPUTS][WIDE];
    UNROLL for (int o = 0; o < outputs; o++) UNROLL for (int v = 0; v < WIDE; v++) sum[o][v] =
        first ? vdupq_n_f64(0.0) : vld1q_f64(acc + o * stride + 2 * v);
    for (int64_t k = 0; k < rows; k++) {
        float64x2_t x[WIDE];
        UNROLL for (int v = 0; v < WIDE; v++) x[v] = vld1q_f64(strip + k * FC_SUMS_STRIP + 2 * v);
        UNROLL for (int o = 0; o < outputs; o++) {
            const float64x2_t weight = vdupq_n_f64(w[k * FC_SUMS_GROUP + o]);
            UNROLL for (int v = 0; v < WIDE; v++) sum[o][v] = vfmaq_f64(sum[o][v], x[v], weight);
        }
    }
    UNROLL for (int o = 0; o < outputs; o++) UNROLL for (int v = 0; v < WIDE; v++)
        vst1q_f64(acc + o * stride + 2 * v, sum[o][v]);
}

void fc_weighted_sums_tile_neon(const double* strip, const double* w, int64_t rows, int outputs, double* acc,
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
    for (int64_t k = 0; k + STEP <= length; k += STEP) {
        float64x2_t sum[FC_SUMS_FEW][4];
        UNROLL for (int o = 0; o < outputs; o++) UNROLL for (int v = 0; v < 4; v++) sum[o][v] =
            first ? vdupq_n_f64(0.0) : vld1q_f64(acc + o * stride + k + 2 * v);
        for (int r = 0; r < count; r++) {
            const char* at = (const char*)rows[r] + k * fc_itemsize(type);
            float64x2_t x[4];
            for (int v = 0; v < 2; v++) {
                const float32x4_t four = widen4_f32(at + 4 * v * fc_itemsize(type), type);
                x[2 * v] = vcvt_f64_f32(vget_low_f32(four));
                x[2 * v + 1] = vcvt_high_f64_f32(four);
            }
            UNROLL for (int o = 0; o < outputs; o++) {
                const float64x2_t weight = vdupq_n_f64(w[r * FC_SUMS_FEW + o]);
                UNROLL for (int v = 0; v < 4; v++) sum[o][v] = vfmaq_f64(sum[o][v], x[v], weight);
            }
        }
        UNROLL for (int o = 0; o < outputs; o++) UNROLL for (int v = 0; v < 4; v++)
            vst1q_f64(acc + o * stride + k + 2 * v, sum[o][v]);
    }
}

#define FEW(name, type)                                                                                       \
    void fc_weighted_sums_few_##name##_neon(const void* const* rows, const double* w, int count, int outputs, \
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
