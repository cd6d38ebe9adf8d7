/* gram in portable C: packing and the tile of products. fmaf is one rounding on every machine. */
#include "impl.h"

#define PACK(name, load)                                                                                    \
    void fc_gram_pack_##name##_ref(const void* const* rows, int count, const float* center, int64_t length, \
                                   float* panel, uint32_t* peak) {                                          \
        memset(peak, 0, FC_GRAM_PANEL * sizeof *peak);                                                      \
        for (int64_t k = 0; k < fc_ceil(length, FC_GRAM_CHAINS) * FC_GRAM_CHAINS; k++)                      \
            for (int r = 0; r < FC_GRAM_PANEL; r++) {                                                       \
                const int is = r < count && k < length;                                                     \
                const float value = is ? load(rows[r], k) - (center ? center[k] : 0.0f) : 0.0f;             \
                const uint32_t bits = fc_bits(value) & 0x7fffffff;                                          \
                panel[fc_gram_place(k) * FC_GRAM_PANEL + r] = value;                                        \
                peak[r] = bits > peak[r] ? bits : peak[r];                                                  \
            }                                                                                               \
    }
PACK(f32, fc_load_f32)
PACK(f16, fc_load_f16)
PACK(bf16, fc_load_bf16)

void fc_gram_tile_ref(const float* a, int rows, const float* b, int columns, int64_t length, double* sum,
                      int64_t stride, const double* row_scale, const double* column_scale) {
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < columns; c++) {
            float dot[FC_GRAM_CHAINS] = {0};
            for (int i = 0; i < FC_GRAM_CHAINS; i++)
                for (int64_t k = i * FC_GRAM_RUN; k < i * FC_GRAM_RUN + fc_ceil(length, FC_GRAM_CHAINS); k++)
                    dot[i] = fmaf(a[k * FC_GRAM_PANEL + r], b[k * FC_GRAM_PANEL + c], dot[i]);
            for (int left = FC_GRAM_CHAINS / 2; left; left /= 2)
                for (int i = 0; i < left; i++) dot[i] = dot[2 * i] + dot[2 * i + 1];
            sum[r * stride + c] += row_scale ? (double)dot[0] * (row_scale[r] * column_scale[c]) : (double)dot[0];
        }
}

#define TO_F32(name, load)                                                     \
    void fc_to_f32_##name##_ref(const void* row, int64_t length, float* out) { \
        for (int64_t k = 0; k < length; k++) out[k] = load(row, k);            \
    }
TO_F32(f32, fc_load_f32)
TO_F32(f16, fc_load_f16)
TO_F32(bf16, fc_load_bf16)
