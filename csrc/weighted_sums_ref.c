/* weighted_sums in portable C: the truth for every other ISA. */
#include "impl.h"

#define PACK(name, load)                                                                                              \
    void fc_weighted_sums_pack_##name##_ref(const void* row, int64_t length, double* strips, int64_t stride) {        \
        for (int64_t start = 0; start < length; start += FC_SUMS_STRIP)                                               \
            for (int64_t c = 0; c < FC_SUMS_STRIP; c++)                                                               \
                strips[start / FC_SUMS_STRIP * stride + c] = start + c < length ? (double)load(row, start + c) : 0.0; \
    }
PACK(f32, fc_load_f32)
PACK(f16, fc_load_f16)
PACK(bf16, fc_load_bf16)

void fc_weighted_sums_tile_ref(const double* strip, const double* w, int64_t rows, int outputs, double* acc,
                               int64_t stride, int first) {
    for (int o = 0; o < outputs; o++) {
        double sum[FC_SUMS_STRIP] = {0.0};
        if (!first) memcpy(sum, acc + o * stride, sizeof sum);
        for (int64_t k = 0; k < rows; k++)
            for (int c = 0; c < FC_SUMS_STRIP; c++) sum[c] += w[k * FC_SUMS_GROUP + o] * strip[k * FC_SUMS_STRIP + c];
        memcpy(acc + o * stride, sum, sizeof sum);
    }
}

#define FEW(name, load)                                                                                      \
    void fc_weighted_sums_few_##name##_ref(const void* const* rows, const double* w, int count, int outputs, \
                                           int64_t length, double* acc, int64_t stride, int first) {         \
        for (int o = 0; o < outputs; o++)                                                                    \
            for (int64_t k = 0; k < length; k++) {                                                           \
                double sum = first ? 0.0 : acc[o * stride + k];                                              \
                for (int r = 0; r < count; r++) sum += w[r * FC_SUMS_FEW + o] * (double)load(rows[r], k);    \
                acc[o * stride + k] = sum;                                                                   \
            }                                                                                                \
    }
FEW(f32, fc_load_f32)
FEW(f16, fc_load_f16)
FEW(bf16, fc_load_bf16)
